// Markdown to elements. markdown-it (vendor/) parses it; the elements are created here from its tokens, so that nothing a
// model writes is read as HTML: HTML, entities and link references stay text.
//
// Contract: `MarkdownView.update` receives the whole text, which has only grown. Elements of blocks that can no longer
// change are created once; those of the last block each time. The result does not depend on how the text arrived. Links
// go to http, https and mailto only and open in a new tab; images become links and are never loaded.

import { button, copyText, element } from "./elements.js";
import { highlighted } from "./highlight.js";
import MarkdownIt from "./vendor/markdown-it.esm.min.mjs";

const DEEPEST = 16; // most levels of nested blocks and of nested marks: thousands would crash the browser
const LONGEST_URL = 2048;
const LINK = /^(https?:\/\/|mailto:)/i; // no relative addresses: they would point to this server
const ITEM = /^( *)((?:[-*+]|\d{1,9}[.)]) {1,4}(?=\S))?/;
const FENCE = /^ *(```|~~~)/;

const parser = new MarkdownIt({ html: false, linkify: true, maxNesting: 2 * DEEPEST });
parser.disable(["reference", "entity", "newline"]);
parser.validateLink = (url) => safeUrl(url) !== null;
parser.normalizeLink = (url) => url;
parser.normalizeLinkText = (text) => text;
parser.linkify.set({ fuzzyLink: false, fuzzyEmail: false }).add("ftp:", null).add("//", null).add("mailto:", null);
parser.block.ruler.before("table", "too_deep", tooDeep);

export class MarkdownView {
  constructor(root) {
    this.root = root;
    this.settled = 0; // characters whose elements are final
    this.open = []; // nodes of the rest
  }

  update(text) {
    let rest = text.replace(/\r\n?/g, "\n").slice(this.settled);
    const last = lastBlock(rest.slice(0, rest.lastIndexOf("\n") + 1)); // the last line may still become another kind of block
    for (const node of this.open) node.remove();
    if (last > 0) this.root.append(...blocks(rest.slice(0, last)));
    this.settled += last;
    rest = rest.slice(last);
    this.open = blocks(rest);
    this.root.append(...this.open);
  }
}

/** Return where the last block of a text begins. */
function lastBlock(text) {
  const tokens = [];
  parser.block.parse(nestedByTwo(text), parser, {}, tokens);
  const line = tokens.findLast((token) => token.level === 0 && token.nesting >= 0)?.map[0] ?? 0;
  return text.split("\n", line).reduce((sum, each) => sum + each.length + 1, 0);
}

function blocks(text) {
  const root = document.createDocumentFragment();
  const open = [root];
  for (const token of parser.parse(nestedByTwo(text), {})) {
    const parent = open.at(-1);
    if (token.nesting < 0) open.pop();
    else if (token.type === "inline") addInline(parent, token.children);
    else if (token.hidden) open.push(parent); // a paragraph of a tight list
    else {
      const made = block(token);
      parent.append(token.type === "table_open" ? scrolling(made) : made);
      if (token.nesting > 0) open.push(made);
    }
  }
  return [...root.childNodes];
}

function block(token) {
  const { type, tag } = token;
  if (type === "fence" || type === "code_block") return codeBlock(token.content.replace(/\n$/, ""), token.info.trim().split(/[\s{]/, 1)[0]);
  if (type === "heading_open") return element(`h${Math.min(6, Number(tag[1]) + 2)}`, { className: `level${tag[1]}` }); // h1, h2 are the page's
  if (type === "too_deep") return element("p", { textContent: token.content });
  if (tag === "ol") return element("ol", token.attrs ? { start: token.attrGet("start") } : {});
  if (tag === "th" || tag === "td") return element(tag, { className: /right|center/.exec(token.attrGet("style")) ?? "" });
  return element(tag);
}

function codeBlock(text, language) {
  const code = element("code", {}, ...highlighted(text, language));
  const copy = button("Copy", (event) => copyText(text, event.currentTarget), { className: "quiet", "aria-label": "Copy code" });
  const name = element("span", { textContent: language || "text" });
  const pre = element("pre", { tabIndex: 0 }, code);
  return element("div", { className: "code", role: "group", "aria-label": `Code, ${language || "text"}` }, element("div", { className: "code-head" }, name, copy), pre);
}

function scrolling(table) {
  return element("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Table" }, table);
}

function addInline(root, tokens) {
  const open = [root];
  for (const token of tokens) {
    const parent = open.at(-1);
    if (token.nesting < 0) {
      open.pop();
      if (parent === open.at(-1)) parent.append(token.markup); // nested too deep
      else if (token.tag === "a" && !parent.hasChildNodes()) parent.append(parent.title);
    } else if (token.nesting > 0 && token.tag !== "a" && open.length > DEEPEST) {
      parent.append(token.markup);
      open.push(parent);
    } else {
      const made = inline(token, parent);
      parent.append(...made);
      if (token.nesting > 0) open.push(...made);
    }
  }
}

function inline(token, parent) {
  if (token.type === "text") return lines(token.content);
  if (token.type === "code_inline") return [element("code", { textContent: token.content })];
  if (token.tag === "a") return [link(token.attrGet("href"))];
  if (token.type !== "image") return [element(token.tag)];
  const label = `image: ${token.content || token.attrGet("src")}`;
  return [parent.closest("a") ? label : link(token.attrGet("src"), label)];
}

/** Return the lines of a paragraph. They keep their indentation: they may be code without a fence. */
function lines(text) {
  const indented = (line) => line.replace(/^[ \t]+/, (space) => space.replaceAll("\t", "    ").replaceAll(" ", "\u00a0"));
  return text.split("\n").flatMap((line, i) => (i ? [element("br"), indented(line)] : [line]));
}

function link(address, ...children) {
  const url = safeUrl(address);
  return element("a", { href: url, target: "_blank", rel: "noopener noreferrer", referrerPolicy: "no-referrer", title: url }, ...children);
}

/** Return the address if links may point there, else null. */
function safeUrl(text) {
  if (text.length > LONGEST_URL || !LINK.test(text)) return null;
  try {
    return new URL(text).href;
  } catch {
    return null; // not an address
  }
}

/** A rule of the parser: what is nested too deep is shown as plain text. */
function tooDeep(state, start, end) {
  if (state.level < DEEPEST) return false;
  const token = state.push("too_deep", "p", 0);
  token.content = state.getLines(start, end, state.blkIndent, false);
  token.map = [start, end];
  state.line = end;
  return true;
}

/** Return the text with nested lists indented by the width of the mark, as CommonMark requires; models indent by two. */
function nestedByTwo(text) {
  const items = []; // the items that a line may belong to: their indent, what is added to it, where their text starts
  let fenced = false;
  const indented = (line) => {
    if (!line.trim()) return line;
    const [, { length: indent }, mark] = ITEM.exec(line);
    while (!fenced && items.length && indent < items.at(-1).indent + 2) items.pop();
    const item = items.at(-1);
    let added = item?.added ?? 0;
    if (mark && !fenced && (item || indent < 4)) {
      if (item) added = Math.max(added, item.width - indent);
      items.push({ indent, added, width: indent + added + mark.length });
    }
    if (FENCE.test(line)) fenced = !fenced;
    return " ".repeat(added) + line;
  };
  return text.split("\n").map(indented).join("\n");
}
