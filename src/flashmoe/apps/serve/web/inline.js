// Markdown to nodes: what is inside a line. Emphasis, code, links; the rest is text.
//
// Links go to the web or to a mail program, and tell the other side nothing. Pictures are links
// too: the page loads nothing from elsewhere. Time grows with the length, whatever the text.

import { make } from "./dom.js";

const DEEPEST = 8;
const SPECIAL = /[\\`*_~[!<h\n]/g;
const LINK = /!?\[((?:[^[\]\\\n]|\\.){0,500})\]\(\s*<?([^\s<>()]{1,2000}(?:\([^\s<>()]{0,500}\)[^\s<>()]{0,500})?)>?(?:\s+"[^"\n]{0,500}")?\s*\)/y;
const ADDRESS = /<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/y;
const BARE = /https?:\/\/[^\s<>"'`]{1,2000}/y;
const BREAK = /<br\s*\/?>/iy;
const PUNCTUATION = /[!-/:-@[-`{-~]/;
const KINDS = { "**": "strong", __: "strong", "*": "em", _: "em", "~~": "del" };

/** The nodes of a text. */
export function inline(text, depth = 0) {
  const nodes = [];
  const hopeless = new Set(); // marks that nothing closes from here on
  let plain = "";
  const flush = () => {
    if (plain) nodes.push(document.createTextNode(plain));
    plain = "";
  };
  for (let at = 0; at < text.length;) {
    SPECIAL.lastIndex = at;
    const next = SPECIAL.exec(text)?.index ?? text.length;
    plain += text.slice(at, next);
    at = next;
    if (at === text.length) break;
    const found = special(text, at, depth, hopeless);
    if (!found) {
      plain += text[at];
      at += 1;
    } else {
      if (typeof found.node === "string") plain += found.node;
      else {
        flush();
        nodes.push(found.node);
      }
      at = found.end;
    }
  }
  flush();
  return nodes;
}

/** What begins at a character that may mean something: `{node, end}`, or null. */
function special(text, at, depth, hopeless) {
  switch (text[at]) {
    case "\\": return escaped(text, at);
    case "\n": return { node: make("br"), end: at + 1 };
    case "`": return codeSpan(text, at, hopeless);
    case "[": return link(text, at, depth);
    case "!": return text[at + 1] === "[" ? link(text, at, depth) : null;
    case "<": return angle(text, at);
    case "h": return bare(text, at);
    default: return emphasis(text, at, depth, hopeless);
  }
}

function escaped(text, at) {
  const next = text[at + 1];
  if (next === "\n") return { node: make("br"), end: at + 2 };
  return next && PUNCTUATION.test(next) ? { node: next, end: at + 2 } : null;
}

function codeSpan(text, at, hopeless) {
  const marks = /`+/y;
  marks.lastIndex = at;
  const [mark] = marks.exec(text);
  const end = hopeless.has(mark) ? -1 : spanEnd(text, at + mark.length, mark);
  if (end < 0) {
    hopeless.add(mark);
    return { node: mark, end: at + mark.length };
  }
  let inside = text.slice(at + mark.length, end).replaceAll("\n", " ");
  if (/^ .*[^ ].* $/.test(inside)) inside = inside.slice(1, -1);
  return { node: make("code", { text: inside }), end: end + mark.length };
}

/** Where a run of exactly these backticks begins. */
function spanEnd(text, from, mark) {
  const runs = /`+/g;
  runs.lastIndex = from;
  for (let run = runs.exec(text); run; run = runs.exec(text)) {
    if (run[0] === mark) return run.index;
  }
  return -1;
}

function link(text, at, depth) {
  LINK.lastIndex = at;
  const match = LINK.exec(text);
  if (!match) return null;
  const label = match[1] || match[2];
  const inside = depth < DEEPEST ? inline(label, DEEPEST) : [label];
  return { node: anchor(match[2], inside), end: at + match[0].length };
}

function angle(text, at) {
  BREAK.lastIndex = ADDRESS.lastIndex = at;
  const line = BREAK.exec(text);
  if (line) return { node: make("br"), end: at + line[0].length };
  const match = ADDRESS.exec(text);
  return match && { node: anchor(match[1], [match[1]]), end: at + match[0].length };
}

function bare(text, at) {
  if (at > 0 && /\w/.test(text[at - 1])) return null;
  BARE.lastIndex = at;
  const match = BARE.exec(text);
  if (!match) return null;
  let address = match[0].replace(/[.,:;!?*_~\]}]+$/, "");
  while (address.endsWith(")") && !address.includes("(")) address = address.slice(0, -1);
  return { node: anchor(address, [address]), end: at + address.length };
}

/** A link, or its text where it leads anywhere but to the web or to a mail program. */
function anchor(address, inside) {
  let url = null;
  try {
    url = new URL(address);
  } catch {
    // Relative: to this page, which has nothing for it.
  }
  if (!url || !["http:", "https:", "mailto:"].includes(url.protocol)) {
    return make("span", { title: address }, ...inside);
  }
  return make("a", { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow" },
    ...inside);
}

function emphasis(text, at, depth, hopeless) {
  if (depth >= DEEPEST) return null;
  const double = text.slice(at, at + 2);
  const mark = double in KINDS ? double : text[at];
  if (!(mark in KINDS) || hopeless.has(mark)) return null;
  if (!opens(text, at, mark)) return { node: mark, end: at + mark.length };
  const end = closing(text, at + mark.length, mark);
  if (end < 0) {
    hopeless.add(mark);
    return { node: mark, end: at + mark.length };
  }
  const inside = inline(text.slice(at + mark.length, end), depth + 1);
  return { node: make(KINDS[mark], {}, ...inside), end: end + mark.length };
}

/** Whether a mark stands before a word, and an underscore not inside one. */
function opens(text, at, mark) {
  const after = text[at + mark.length];
  if (!after || /\s/.test(after)) return false;
  return mark[0] !== "_" || at === 0 || !/\w/.test(text[at - 1]);
}

/** Where a mark is closed: behind a word, neither in code nor escaped. */
function closing(text, from, mark) {
  for (let at = from; at < text.length; at += 1) {
    if (text[at] === "\\") at += 1;
    else if (text[at] === "`") at = skipped(text, at);
    else if (text.startsWith(mark, at) && at > from && !/\s/.test(text[at - 1])) {
      const width = runLength(text, at);
      if (mark.length === 1 && width === 2) at += 1; // a double mark inside
      else if (mark[0] !== "_" || !/\w/.test(text[at + mark.length] ?? "")) {
        return width > 2 && mark.length === 1 ? at + width - 1 : at + Math.max(0, width - 2) % 2;
      } else at += width - 1;
    }
  }
  return -1;
}

function runLength(text, at) {
  let end = at;
  while (text[end] === text[at]) end += 1;
  return end - at;
}

/** The last character of a code span, or of backticks that open none. */
function skipped(text, at) {
  const width = runLength(text, at);
  const end = spanEnd(text, at + width, text.slice(at, at + width));
  return (end < 0 ? at : end) + width - 1;
}
