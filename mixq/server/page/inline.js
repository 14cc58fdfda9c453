// Text inside a Markdown block: emphasis, code, links. Everything becomes elements and text nodes; HTML stays text.
//
// Contract: time grows with the length of the text (a model can be made to write ten thousand asterisks). Links go to
// http, https and mailto only, and open apart; images are links, never fetched.

import { element } from "./elements.js";

const SAFE = new Set(["http:", "https:", "mailto:"]);
const LONGEST_URL = 2048;
const BARE = /https?:\/\/[^\s<>"'`|\\^{}]{1,2048}/y;
const AUTO = /<((?:https?:\/\/|mailto:)[^\s<>]{1,2048})>/y;
const TARGET = /\(\s{0,8}(?:<([^<>\n]{0,2048})>|([^\s()<>]{0,2048}(?:\([^\s()<>]{0,512}\)[^\s()<>]{0,1024}){0,4}))(?:\s{1,8}(?:"[^"\n]{0,256}"|'[^'\n]{0,256}'))?\s{0,8}\)/y;
const MARKS = { "*": true, _: true, "~": true };
const PUNCTUATION = /[\p{P}\p{S}]/u;
const DEEPEST = 16;

/** Return the address if a click may go there, else null. */
export function safeUrl(text) {
  if (text.length > LONGEST_URL || !/^(https?:\/\/|mailto:)/i.test(text)) return null; // no relative ones: they would be ours
  try {
    const url = new URL(text);
    return SAFE.has(url.protocol) ? url.href : null;
  } catch {
    return null; // not an address
  }
}

function link(url, children) {
  return element("a", { href: url, target: "_blank", rel: "noopener noreferrer", referrerPolicy: "no-referrer", title: url }, ...children);
}

/** Return the nodes of a text. */
export function inline(text, depth = 0) {
  return depth > DEEPEST ? [document.createTextNode(text)] : nest(tokens(text, depth));
}

function match(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text);
}

// A token is a node, or a mark: {mark, count, opens, closes}.
function tokens(text, depth) {
  const out = [];
  const backticks = runsByLength(text);
  const brackets = closingBrackets(text);
  let plain = "";
  const flush = () => {
    if (plain) out.push(document.createTextNode(plain));
    plain = "";
  };
  const add = (node) => { flush(); out.push(node); };
  for (let at = 0; at < text.length; ) {
    const c = text[at];
    if (c === "\\" && /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "")) {
      plain += text[at + 1];
      at += 2;
    } else if (c === "\n") {
      plain = plain.trimEnd().replace(/\\$/, "");
      add(element("br"));
      at += 1;
    } else if (c === "`") {
      let end = at;
      while (text[end] === "`") end += 1;
      const close = nextRun(backticks, end - at, end);
      if (close === undefined) {
        plain += text.slice(at, end);
        at = end;
      } else {
        let code = text.slice(end, close).replaceAll("\n", " ");
        if (/^ .*\S.* $/.test(code)) code = code.slice(1, -1);
        add(element("code", { textContent: code }));
        at = close + (end - at);
      }
    } else if (c === "<") {
      const found = match(AUTO, text, at);
      const url = found && safeUrl(found[1]);
      if (url) {
        add(link(url, [found[1]]));
        at += found[0].length;
      } else {
        plain += c;
        at += 1;
      }
    } else if (c === "[" || (c === "!" && text[at + 1] === "[")) {
      const open = c === "!" ? at + 1 : at;
      const close = brackets.get(open);
      const target = close === undefined ? null : match(TARGET, text, close + 1);
      const url = target && safeUrl(target[1] ?? target[2]);
      if (url) {
        const label = text.slice(open + 1, close);
        add(link(url, c === "!" ? [`image: ${label || url}`] : label ? inline(label, depth + 1).map(withoutLinks) : [url]));
        at = close + 1 + target[0].length;
      } else {
        plain += text.slice(at, open + 1);
        at = open + 1;
      }
    } else if (c === "h" && !/\w/.test(text[at - 1] ?? "") && match(BARE, text, at)) {
      let found = match(BARE, text, at)[0].replace(/[.,;:!?*_~]+$/, "");
      if (found.endsWith(")") && !found.includes("(")) found = found.replace(/\)+[.,;:!?]*$/, "");
      const url = safeUrl(found);
      if (url) add(link(url, [found]));
      else plain += found;
      at += found.length;
    } else if (MARKS[c]) {
      let end = at;
      while (text[end] === c) end += 1;
      if (c === "~" && end - at !== 2) {
        plain += text.slice(at, end);
      } else {
        flush();
        out.push(mark(text, c, at, end));
      }
      at = end;
    } else {
      plain += c;
      at += 1;
    }
  }
  flush();
  return out;
}

function withoutLinks(node) {
  return node.nodeName === "A" ? document.createTextNode(node.textContent) : node;
}

function runsByLength(text) {
  const runs = new Map();
  for (const found of text.matchAll(/`+/g)) {
    if (!runs.has(found[0].length)) runs.set(found[0].length, { next: 0, at: [] });
    runs.get(found[0].length).at.push(found.index);
  }
  return runs;
}

function nextRun(runs, length, from) {
  const run = runs.get(length);
  while (run && run.at[run.next] < from) run.next += 1; // the text is read once, from left to right
  return run?.at[run.next];
}

function closingBrackets(text) {
  const open = [];
  const closing = new Map();
  for (let at = 0; at < text.length; at += 1) {
    if (text[at] === "\\") at += 1;
    else if (text[at] === "[") open.push(at);
    else if (text[at] === "]" && open.length) closing.set(open.pop(), at);
  }
  return closing;
}

function mark(text, c, start, end) {
  const before = text[start - 1] ?? " ";
  const after = text[end] ?? " ";
  const left = !/\s/.test(after) && (!PUNCTUATION.test(after) || /\s/.test(before) || PUNCTUATION.test(before));
  const right = !/\s/.test(before) && (!PUNCTUATION.test(before) || /\s/.test(after) || PUNCTUATION.test(after));
  const inWord = c === "_" && left && right; // snake_case is no emphasis
  return { mark: c, count: end - start, opens: left && !inWord, closes: right && !inWord };
}

// Pairs marks as they close; `waiting` says how many of a kind could be paired, so that nothing is searched in vain.
function nest(list) {
  const out = [];
  const waiting = { "*": 0, _: 0, "~": 0 };
  for (const token of list) {
    if (!token.mark) {
      out.push(token);
      continue;
    }
    let { count } = token;
    while (token.closes && count && waiting[token.mark]) {
      let at = out.length - 1;
      while (out[at].mark !== token.mark) at -= 1;
      const opener = out[at];
      const width = token.mark === "~" ? 2 : Math.min(2, count, opener.count);
      const inside = out.splice(at + 1).map((each) => settled(each, waiting));
      opener.count -= width;
      count -= width;
      if (!opener.count) {
        out.pop();
        waiting[token.mark] -= 1;
      }
      out.push(...wrapped(token.mark, width, inside));
    }
    if (!count) continue;
    out.push({ ...token, count });
    if (token.opens) waiting[token.mark] += 1;
    else out.push(settled(out.pop()));
  }
  return out.map((each) => settled(each));
}

const depths = new WeakMap();

// A thousand elements inside each other would bring the browser down: marks stay text beyond DEEPEST.
function wrapped(c, width, inside) {
  const depth = 1 + inside.reduce((most, node) => Math.max(most, depths.get(node) ?? 0), 0);
  if (depth > DEEPEST) return [document.createTextNode(c.repeat(width)), ...inside, document.createTextNode(c.repeat(width))];
  const made = element(c === "~" ? "del" : width === 2 ? "strong" : "em", {}, ...inside);
  depths.set(made, depth);
  return [made];
}

function settled(token, waiting = null) {
  if (!token.mark) return token;
  if (waiting && token.opens) waiting[token.mark] -= 1;
  return document.createTextNode(token.mark.repeat(token.count));
}
