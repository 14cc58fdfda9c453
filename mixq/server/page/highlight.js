// Colours in code: comments, strings, numbers and the keywords that most languages share. It need not be exact for
// every language; a library would be larger than the rest of the page.

import { element } from "./elements.js";

const LONGEST = 20000;
const HASH = new Set(["python", "py", "sh", "bash", "shell", "zsh", "yaml", "yml", "toml", "ruby", "rb", "r", "perl", "dockerfile", "makefile"]);
const PLAIN = new Set(["", "text", "txt", "plain", "plaintext", "output", "markdown", "md", "console"]);
const KEYWORDS = new Set(
  `and as assert async await break case catch class const continue def default del do elif else enum except export extends
  false False finally fn for from func function global if impl import in interface is lambda let match mut new nil None not
  null or package pass private protected public pub raise return self static struct super switch this throw True true try
  type typeof undefined use using var void while with yield int float double char bool string long unsigned then fi done echo
  select SELECT FROM WHERE INSERT INTO VALUES UPDATE SET CREATE TABLE JOIN ON AND OR GROUP BY ORDER LIMIT`.split(/\s+/),
);
const STRING = `"(?:[^"\\\\\\n]|\\\\.)*"|'(?:[^'\\\\\\n]|\\\\.)*'`;
const WORD = `\\b\\d[\\w.]*|[A-Za-z_$][\\w$]*`;
const WITH_HASH = new RegExp(`(#[^\\n]*)|("""[^]*?(?:"""|$)|${STRING})|(${WORD})`, "g");
const WITH_SLASHES = new RegExp(`(\\/\\/[^\\n]*|\\/\\*[^]*?(?:\\*\\/|$)|(?:^|(?<=\\n))-- [^\\n]*)|(${STRING})|(${WORD})`, "g");

/** Return nodes for a code block's text. */
export function highlighted(text, language) {
  const name = language.toLowerCase();
  if (PLAIN.has(name) || text.length > LONGEST) return [document.createTextNode(text)];
  const nodes = [];
  let plain = 0;
  for (const found of text.matchAll(HASH.has(name) ? WITH_HASH : WITH_SLASHES)) {
    const [all, comment, string, word] = found;
    const kind = comment ? "comment" : string ? "string" : /^\d/.test(word) ? "number" : KEYWORDS.has(word) ? "keyword" : null;
    if (!kind) continue;
    nodes.push(document.createTextNode(text.slice(plain, found.index)), element("span", { className: kind, textContent: all }));
    plain = found.index + all.length;
  }
  nodes.push(document.createTextNode(text.slice(plain)));
  return nodes;
}
