// Markdown to nodes: blocks. Owns what a model's text may become on the page; `inline.js` owns what
// is inside a line.
//
// Nothing in a text is ever markup to the browser: every node is made here, of a kind listed here,
// and its text is text. Raw HTML shows as it was written. What is unfinished, as while a reply
// comes, is drawn as far as it goes.

import { copy, icon, make } from "./dom.js";
import { inline } from "./inline.js";

const DEEPEST = 10; // lists and quotes inside one another
const FENCE = /^( {0,3})(`{3,}|~{3,})\s*([^`\s]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})(?:\s+(.*?))?(?:\s+#+)?\s*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(?:\s+|$)/;
const DIVIDER = /^\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;

/** Draw a text into an element; blocks that are as they were keep their nodes. Returns the text of
 * those that have become final with this call: all before the last one. */
export function render(target, text) {
  const drawn = target.drawn ?? [];
  const wanted = split(text.split("\n"));
  let same = 0;
  while (same < drawn.length && same < wanted.length
      && drawn[same] === wanted[same].lines.join("\n")) same += 1;
  while (target.childNodes.length > same) target.lastChild.remove();
  target.append(...wanted.slice(same).map((block) => draw(block, 0)));
  target.drawn = wanted.map((block) => block.lines.join("\n"));
  const final = target.final ?? 0;
  target.final = Math.max(wanted.length - 1, 0);
  return target.drawn.slice(final, target.final).join("\n");
}

/** Lines by block: `{kind, lines}`. */
function split(lines) {
  const blocks = [];
  for (let at = 0; at < lines.length;) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const [kind, end] = extent(lines, at);
    blocks.push({ kind, lines: lines.slice(at, end) });
    at = end;
  }
  return blocks;
}

/** What begins at a line, and where it ends. */
function extent(lines, at) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return ["code", fenceEnd(lines, at, fence[2])];
  if (HEADING.test(line)) return ["heading", at + 1];
  if (RULE.test(line)) return ["rule", at + 1];
  if (QUOTE.test(line)) return ["quote", runOf(lines, at, (one) => QUOTE.test(one))];
  if (ITEM.test(line) && indent(line) < 4) return ["list", listEnd(lines, at)];
  if (isTable(lines, at)) {
    return ["table", runOf(lines, at, (one) => one.includes("|") && Boolean(one.trim()))];
  }
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !interrupts(lines, end)) end += 1;
  return ["paragraph", end];
}

function runOf(lines, at, belongs) {
  let end = at + 1;
  while (end < lines.length && belongs(lines[end])) end += 1;
  return end;
}

function fenceEnd(lines, at, mark) {
  const closing = new RegExp(`^ {0,3}${mark[0]}{${mark.length},}\\s*$`);
  let end = at + 1;
  while (end < lines.length && !closing.test(lines[end])) end += 1;
  return Math.min(end + 1, lines.length);
}

function interrupts(lines, at) {
  const line = lines[at];
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line)
    || /^ {0,3}(?:[-*+]|1[.)])\s+\S/.test(line) || isTable(lines, at);
}

function isTable(lines, at) {
  return lines[at].includes("|") && at + 1 < lines.length && lines[at + 1].includes("-")
    && DIVIDER.test(lines[at + 1]) && cells(lines[at]).length === cells(lines[at + 1]).length;
}

/** A list goes on over lines that are indented, and over further items of its own kind. */
function listEnd(lines, at) {
  const ordered = isOrdered(lines[at]);
  let end = at + 1;
  for (let next = end; next < lines.length; next += 1) {
    const line = lines[next];
    if (!line.trim()) continue;
    const item = ITEM.test(line) && !RULE.test(line);
    const mine = indent(line) >= 2 || (item && isOrdered(line) === ordered);
    const lazy = next === end && lines[next - 1].trim() && !item && !interrupts(lines, next);
    if (!mine && !lazy) break;
    end = next + 1;
  }
  return end;
}

function indent(line) {
  return line.replaceAll("\t", "    ").search(/\S|$/);
}

function isOrdered(line) {
  return /\d/.test(ITEM.exec(line)[2]);
}

function draw(block, depth) {
  return DRAWN[block.kind](block.lines, depth);
}

function within(lines, depth) {
  if (depth >= DEEPEST) return [make("p", { text: lines.join("\n") })];
  return split(lines).map((block) => draw(block, depth + 1));
}

const DRAWN = {
  paragraph: (lines) => make("p", {}, ...inline(lines.map((line) => line.trim()).join("\n"))),

  heading(lines) {
    const [, marks, text] = HEADING.exec(lines[0]);
    // The page has two levels of its own above.
    return make(`h${Math.min(marks.length + 2, 6)}`, {}, ...inline(text ?? ""));
  },

  rule: () => make("hr"),

  quote: (lines, depth) =>
    make("blockquote", {}, ...within(lines.map((line) => line.replace(QUOTE, "")), depth)),

  code(lines) {
    const [, margin, mark, language] = FENCE.exec(lines[0]);
    const closed = lines.length > 1 && new RegExp(`^ {0,3}${mark[0]}{${mark.length},}\\s*$`)
      .test(lines.at(-1));
    const body = lines.slice(1, closed ? -1 : undefined)
      .map((line) => line.replace(new RegExp(`^ {0,${margin.length}}`), "")).join("\n");
    return code(body, language);
  },

  list(lines, depth) {
    const ordered = isOrdered(lines[0]);
    const loose = lines.some((line, at) => !line.trim() && at + 1 < lines.length);
    const list = make(ordered ? "ol" : "ul");
    if (ordered) list.start = Number.parseInt(ITEM.exec(lines[0])[2], 10);
    list.append(...items(lines).map((item) => listItem(item, loose, depth)));
    return list;
  },

  table(lines) {
    const align = cells(lines[1]).map((cell) => /^:?-+:$/.test(cell)
      ? (cell.startsWith(":") ? "middle" : "end") : undefined);
    const row = (line, tag) => make("tr", {}, ...cells(line).slice(0, align.length)
      .map((cell, at) => make(tag, { className: align[at] }, ...inline(cell))));
    const table = make("table", {}, make("thead", {}, row(lines[0], "th")),
      make("tbody", {}, ...lines.slice(2).map((line) => row(line, "td"))));
    return make("div", { className: "wide-table", tabIndex: 0, role: "group",
      aria: { label: "Table" } }, table);
  },
};

/** A block of code, with what copies it. */
export function code(text, language = "") {
  const button = make("button", { type: "button", className: "quiet small" },
    icon("copy"), make("span", { text: "Copy" }));
  button.addEventListener("click", () => copy(text, button));
  const label = language || "text";
  return make("div", { className: "code" },
    make("div", { className: "code-head" }, make("span", { text: label }), button),
    make("pre", { tabIndex: 0, role: "group", aria: { label: `Code, ${label}` } },
      make("code", { text })));
}

/** The lines of each item, its mark and its indentation taken off. */
function items(lines) {
  const found = [];
  const first = indent(lines[0]);
  for (const line of lines) {
    const match = ITEM.exec(line);
    if (match && indent(line) < first + 2) {
      const width = Math.min(match[0].length, match[1].length + match[2].length + 1);
      found.push({ width, lines: [line.slice(match[0].length)] });
    } else {
      const { width, lines: own } = found.at(-1);
      const taken = Math.min(indent(line), width);
      own.push(line.replaceAll("\t", "    ").slice(taken));
    }
  }
  return found.map((item) => item.lines);
}

function listItem(lines, loose, depth) {
  const task = /^\[([ xX])\]\s+/.exec(lines[0]);
  if (task) lines = [lines[0].slice(task[0].length), ...lines.slice(1)];
  const nodes = within(lines, depth).flatMap((node) =>
    !loose && node.tagName === "P" ? [...node.childNodes] : [node]);
  return make("li", { className: task ? "task" : undefined },
    task ? make("span", { className: "tick", text: task[1] === " " ? "☐ " : "☑ " }) : null,
    ...nodes);
}

/** The cells of a row; a bar after a backslash is part of one. */
function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(^|[^\\])\|$/, "$1");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}
