// Markdown to elements: headings, lists, quotes, tables, code, paragraphs. HTML in it stays text.
//
// Contract: `MarkdownView.update` takes the whole text each time, which has only grown. Blocks that can no longer change
// are made once; the open one at the end is made anew. However it comes in pieces, the result is that of the whole.

import { button, copyText, element } from "./elements.js";
import { highlighted } from "./highlight.js";
import { inline } from "./inline.js";

const DEEPEST = 12;
const FENCE = /^( {0,3})(`{3,}|~{3,}) *([^`\n]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?: +(.*))?$/;
const RULE = /^ {0,3}([-*_])(?: *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])( +(?=\S)|$)/;
const INDENTED = / {4,}\S/y;

export class MarkdownView {
  constructor(root) {
    this.root = root;
    this.settled = 0; // characters whose blocks are made for good
    this.open = []; // nodes of the rest
  }

  update(text) {
    let lines = text.slice(this.settled).split("\n");
    const whole = blocks(lines.slice(0, -1).map(untabbed), 0); // the last line may still change what it is
    for (const node of this.open) node.remove();
    if (whole.length > 1) {
      const next = whole.at(-1).start;
      for (const block of whole.slice(0, -1)) this.root.append(block.render());
      this.settled += lines.slice(0, next).reduce((sum, line) => sum + line.length + 1, 0);
      lines = lines.slice(next);
    }
    this.open = blocks(lines.map(untabbed), 0).map((block) => block.render());
    this.root.append(...this.open);
  }
}

const untabbed = (line) => (line.includes("\t") ? line.replace(/^[ \t]+/, (space) => space.replaceAll("\t", "    ")) : line);
const blank = (line) => line.trim() === "";
const indent = (line) => line.length - line.trimStart().length;

/** Return blocks as {start, render}: the first line's number, and what makes its element. */
function blocks(lines, depth) {
  const found = [];
  for (let at = 0; at < lines.length; ) {
    if (blank(lines[at])) {
      at += 1;
      continue;
    }
    const [end, render] = depth > DEEPEST ? plainText(lines, at) : blockAt(lines, at, depth);
    found.push({ start: at, render });
    at = end;
  }
  return found;
}

function blockAt(lines, at, depth) {
  const line = lines[at];
  if (FENCE.test(line)) return fence(lines, at);
  if (HEADING.test(line)) return [at + 1, () => heading(line)];
  if (RULE.test(line)) return [at + 1, () => element("hr")];
  if (QUOTE.test(line)) return quote(lines, at, depth);
  if (ITEM.test(line)) return list(lines, at, depth);
  if (tableAt(lines, at)) return table(lines, at);
  INDENTED.lastIndex = 0;
  if (INDENTED.test(line)) return indentedCode(lines, at);
  return paragraph(lines, at);
}

function plainText(lines, at) {
  return [lines.length, () => element("p", { textContent: lines.slice(at).join("\n") })];
}

function startsBlock(lines, at) {
  const line = lines[at];
  const item = ITEM.exec(line);
  const breaks = item && item[3] && (!/\d/.test(item[2]) || parseInt(item[2], 10) === 1); // "1986. A good year" goes on
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || breaks || tableAt(lines, at);
}

function paragraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && !blank(lines[end]) && !startsBlock(lines, end)) end += 1;
  const shown = lines.slice(at, end).map((line, i) => (i ? "\u00a0".repeat(indent(line)) : "") + line.trimStart()); // code without a fence
  const text = shown.join("\n").trimEnd();
  return [end, () => element("p", {}, ...inline(text))];
}

function heading(line) {
  const [, marks, text = ""] = HEADING.exec(line);
  const words = text.trimEnd();
  let end = words.length;
  while (words[end - 1] === "#") end -= 1;
  const shown = end === 0 || words[end - 1] === " " ? words.slice(0, end).trimEnd() : words;
  return element(`h${Math.min(6, marks.length + 2)}`, { className: `level${marks.length}` }, ...inline(shown)); // h1, h2 are the page's
}

function fence(lines, at) {
  const [, space, marks, info] = FENCE.exec(lines[at]);
  const closes = (line) => {
    const trimmed = line.trim();
    return indent(line) < 4 && trimmed.length >= marks.length && trimmed === marks[0].repeat(trimmed.length);
  };
  let end = at + 1;
  while (end < lines.length && !closes(lines[end])) end += 1;
  const code = lines.slice(at + 1, end).map((line) => line.slice(Math.min(indent(line), space.length)));
  return [end + 1, () => codeBlock(code.join("\n"), info.trim().split(/[\s{]/, 1)[0])];
}

function indentedCode(lines, at) {
  let end = at;
  for (let i = at; i < lines.length && (blank(lines[i]) || indent(lines[i]) >= 4); i += 1) if (!blank(lines[i])) end = i + 1;
  return [end, () => codeBlock(lines.slice(at, end).map((line) => line.slice(4)).join("\n"), "")];
}

function codeBlock(text, language) {
  const code = element("code", {}, ...highlighted(text, language));
  const copy = button("Copy", (event) => copyText(text, event.currentTarget), { className: "quiet", "aria-label": "Copy code" });
  const name = element("span", { textContent: language || "text" });
  const pre = element("pre", { tabIndex: 0 }, code);
  return element("div", { className: "code", role: "group", "aria-label": `Code, ${language || "text"}` }, element("div", { className: "code-head" }, name, copy), pre);
}

function quote(lines, at, depth) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return [end, () => element("blockquote", {}, ...blocks(inner, depth + 1).map((block) => block.render()))];
}

function list(lines, at, depth) {
  const first = ITEM.exec(lines[at]);
  const kind = first[2].at(-1); // a list ends where its mark changes
  const items = [];
  let loose = false;
  let end = at;
  while (end < lines.length) {
    const mark = ITEM.exec(lines[end]);
    if (!mark || mark[2].at(-1) !== kind || RULE.test(lines[end])) break;
    const wide = mark[3].length > 4 ? 1 : mark[3].length || 1;
    const width = mark[1].length + mark[2].length + wide;
    const body = [lines[end].slice(width)];
    let next = end + 1;
    let gap = false;
    for (; next < lines.length; next += 1) {
      const line = lines[next];
      const space = indent(line);
      const nested = space >= mark[1].length + 2; // models indent by two whatever the mark's width
      if (blank(line)) {
        gap = true;
        body.push("");
      } else if (space >= width || (nested && ITEM.test(line.slice(Math.min(space, width))))) {
        body.push(line.slice(Math.min(space, width)));
        gap = false;
      } else if (!gap && !ITEM.test(line) && !startsBlock(lines, next)) {
        body.push(line.trimStart());
      } else {
        break;
      }
    }
    const last = body.findLastIndex((line) => !blank(line)) + 1;
    const more = next < lines.length && ITEM.exec(lines[next])?.[2].at(-1) === kind;
    loose ||= (gap && more) || looseInside(body.slice(0, last));
    items.push(body.slice(0, Math.max(1, last)));
    end = next;
  }
  return [end, () => {
    const start = parseInt(first[2], 10);
    const made = element(Number.isNaN(start) ? "ul" : "ol");
    if (start > 1) made.start = start;
    made.append(...items.map((body) => item(body, loose, depth)));
    return made;
  }];
}

function looseInside(body) {
  for (let i = 1; i < body.length; i += 1) {
    if (FENCE.test(body[i])) return false; // blank lines in code say nothing
    if (blank(body[i - 1]) && !blank(body[i]) && !ITEM.test(body[i])) return true;
  }
  return false;
}

function item(body, loose, depth) {
  const made = element("li");
  for (const block of blocks(body, depth + 1)) {
    const node = block.render();
    if (!loose && node.nodeName === "P") made.append(...node.childNodes);
    else made.append(node);
  }
  return made;
}

function cells(line) {
  const row = line.trim().replace(/^\|/, "");
  const out = [""];
  for (let i = 0; i < row.length; i += 1) {
    if (row[i] === "\\" && row[i + 1] === "|") {
      out[out.length - 1] += "|";
      i += 1;
    } else if (row[i] === "|") {
      out.push("");
    } else {
      out[out.length - 1] += row[i];
    }
  }
  if (out.length > 1 && blank(out.at(-1))) out.pop();
  return out.map((cell) => cell.trim());
}

function tableAt(lines, at) {
  if (!lines[at].includes("|") || at + 1 >= lines.length || !/^[ |:-]+$/.test(lines[at + 1])) return false;
  const rule = cells(lines[at + 1]);
  return rule.every((cell) => /^:?-+:?$/.test(cell)) && rule.length === cells(lines[at]).length;
}

function table(lines, at) {
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|") && !blank(lines[end])) end += 1;
  return [end, () => {
    const sides = cells(lines[at + 1]).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : ""));
    const row = (line, tag) => {
      const texts = cells(line);
      return element("tr", {}, ...sides.map((side, i) => element(tag, { className: side }, ...inline(texts[i] ?? ""))));
    };
    const body = element("tbody", {}, ...lines.slice(at + 2, end).map((line) => row(line, "td")));
    const made = element("table", {}, element("thead", {}, row(lines[at], "th")), body);
    return element("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Table" }, made);
  }];
}
