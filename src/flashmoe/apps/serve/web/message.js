// One message as the page shows it. Owns its elements; what its buttons do is given (`deeds`).

import { action, copy, figure, make } from "./dom.js";
import { code, render } from "./markdown.js";

/** What the user said. */
export function drawUser(message, deeds) {
  const body = make("div", { className: "said", text: message.content });
  const node = make("article", { className: "turn user" }, heading("You"), body,
    make("div", { className: "deeds" },
      action("edit", "Edit", () => edit(node, message, deeds)),
      copying(() => message.content)));
  return node;
}

/** For those who go from message to message by headings. */
function heading(text) {
  return make("h2", { className: "unseen", text });
}

/** The same, being changed. */
function edit(node, message, deeds) {
  const before = [...node.childNodes];
  const back = () => {
    node.replaceChildren(...before);
    node.querySelector("button").focus();
  };
  const field = make("textarea", { value: message.content,
    rows: Math.min(message.content.split("\n").length + 1, 12), aria: { label: "Your message" } });
  const form = make("form", { className: "box edit", on: {
    submit: (event) => {
      event.preventDefault();
      if (field.value.trim()) deeds.edit(message, field.value);
    },
    keydown: (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        back();
      } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        form.requestSubmit();
      }
    },
  } }, field, make("div", { className: "tools" },
    make("button", { type: "button", className: "quiet small", text: "Cancel",
      on: { click: back } }),
    make("button", { type: "submit", className: "small", text: "Send again" })));
  node.replaceChildren(form);
  field.focus();
}

/** What a tool gave. */
export function drawTool(message) {
  return make("article", { className: "turn tool" }, heading("Tool"),
    make("details", { className: "fold" },
      make("summary", {}, "Result of ", make("code", { text: message.name })),
      code(message.content, "result")));
}

/** A reply, which may still be coming; `show` draws it as it is now, and returns the text that has
 * become final with that, for those who listen; `rest` is what has not. */
export function drawReply(reply, deeds) {
  const parts = {
    waiting: make("div", { className: "waiting" }),
    thinking: make("details", { className: "fold thinking", hidden: true },
      make("summary"), make("div", { className: "thoughts" })),
    content: make("div", { className: "prose" }),
    calls: make("div", { className: "calls" }),
    ending: make("p", { className: "ending", hidden: true }),
    deeds: make("div", { className: "deeds", hidden: true }),
  };
  const node = make("article", { className: "turn reply" }, heading("Reply"), ...Object.values(parts));
  const shown = { thoughts: -1, calls: "" };
  const show = () => {
    showThinking(parts.thinking, reply, shown);
    const final = render(parts.content, reply.content);
    const calls = JSON.stringify(reply.calls);
    if (calls !== shown.calls) {
      shown.calls = calls;
      parts.calls.replaceChildren(...reply.calls.filter(Boolean).map(drawCall));
    }
    showWaiting(parts.waiting, reply);
    node.setAttribute("aria-busy", String(reply.ended === null));
    node.classList.toggle("coming", reply.ended === null);
    return final;
  };
  const end = (last) => {
    show();
    const word = reply.failed ?? endingOf(reply);
    parts.ending.hidden = !word;
    parts.ending.textContent = word;
    parts.ending.classList.toggle("failed", Boolean(reply.failed));
    parts.deeds.hidden = false;
    parts.deeds.replaceChildren(
      make("span", { className: "cost", text: costLine(reply.cost) }),
      copying(() => reply.content || reply.calls.map((one) => one.arguments).join("\n")),
      action("again", reply.failed ? "Try again" : "Again", () => deeds.again(reply)));
    if (last && reply.calls.length && !reply.failed) parts.calls.append(answerForm(reply, deeds));
  };
  const rest = () => (parts.content.drawn ?? []).slice(parts.content.final ?? 0).join("\n");
  return { node, show, end, rest };
}

/** Why a reply ended, where that is not plain from what there is. */
function endingOf({ ended, content, reasoning, calls }) {
  if (ended === "stopped") return "Stopped.";
  const answered = content.trim() || calls.length;
  if (ended === "length") {
    return answered ? "Ended at the limit of tokens."
      : "Ended at the limit of tokens, before there was an answer.";
  }
  if (answered) return "";
  return reasoning.trim()
    ? "The model stopped thinking without an answer. It may answer with Thinking off, in the settings."
    : "The model gave no answer.";
}

function showThinking(thinking, reply, shown) {
  thinking.hidden = !reply.reasoning;
  if (thinking.hidden || shown.thoughts === reply.reasoning.length + (reply.ended ? 1 : 0)) return;
  const over = reply.content || reply.calls.length || reply.ended;
  const [summary, body] = thinking.children;
  const seconds = (reply.thought ?? 0) / 1000;
  summary.textContent = over
    ? `Thought${seconds >= 1 ? ` for ${figure(Math.round(seconds))} s` : ""}` : "Thinking";
  thinking.classList.toggle("live", !over);
  render(body, reply.reasoning.trim());
  shown.thoughts = reply.reasoning.length + (reply.ended ? 1 : 0);
}

function drawCall({ name, arguments: given }) {
  let told = given;
  try {
    told = JSON.stringify(JSON.parse(given), null, 2);
  } catch {
    // As it came.
  }
  return make("section", { className: "call", aria: { label: `Call of ${name}` } },
    make("div", { className: "call-head" }, "Calls ", make("code", { text: name })),
    make("pre", { tabIndex: 0, role: "group", aria: { label: `Arguments for ${name}` } },
      make("code", { text: told })));
}

/** The page has no tools of its own: whoever reads says what they give. */
function answerForm(reply, deeds) {
  const fields = reply.calls.map((one) => make("textarea", { rows: 2, required: true,
    placeholder: "What the tool gives", aria: { label: `Result of ${one.name}` } }));
  return make("form", { className: "answer", on: {
    submit: (event) => {
      event.preventDefault();
      deeds.answer(reply, fields.map((field) => field.value));
    },
  } }, ...reply.calls.map((one, at) => make("label", {}, make("span", {}, "Result of ",
    make("code", { text: one.name })), fields[at])),
  make("button", { type: "submit", className: "small", text: "Give the result" }));
}

function showWaiting(node, reply) {
  const waits = reply.ended === null ? reply.waits : null;
  node.hidden = !waits;
  if (!waits) return;
  if (!node.firstChild) {
    node.append(make("span", { className: "dots", aria: { hidden: "true" } }), make("span"),
      make("progress", { max: 1, aria: { label: "Prompt read" } }));
  }
  const [, text, bar] = node.children;
  text.textContent = waitingLine(waits);
  bar.hidden = waits.what !== "prompt";
  if (waits.what === "prompt") bar.value = waits.total ? waits.done / waits.total : 0;
}

/** What a reply waits for, as a sentence. */
export function waitingLine({ what, place, done, total, rate, left }) {
  if (what === "queue") {
    return place ? `Waiting: ${figure(place)} before this one` : "Waiting: this one is next";
  }
  if (what !== "prompt") return { call: "Writing a call of a tool", server: "Asking" }[what];
  const parts = [`Reading the prompt: ${figure(Math.floor(done))} of ${figure(total)} tokens`];
  if (rate) parts.push(`${figure(rate)} tok/s`);
  if (left >= 1) parts.push(left >= 90 ? `${figure(Math.round(left / 60))} min left`
    : `${figure(Math.round(left))} s left`);
  return parts.join(" · ");
}

function costLine(cost) {
  if (!cost) return "";
  const parts = [`${figure(cost.tokens)} ${cost.tokens === 1 ? "token" : "tokens"}`];
  if (cost.rate !== null) parts.push(`${figure(cost.rate)} tok/s`);
  if (cost.first !== null) parts.push(`first after ${figure(cost.first, 2)} s`);
  if (cost.cached) parts.push(`${figure(cost.cached)} of ${figure(cost.prompt)} prompt tokens kept`);
  return parts.join(" · ");
}

function copying(text) {
  const button = action("copy", "Copy", () => copy(text(), button));
  return button;
}
