// What may be set for a conversation. Owns the dialog and its checks. An empty field leaves a thing
// as the model has it.

import { by, make } from "./dom.js";
import { toolsOf } from "./request.js";

const NUMBERS = [
  ["temperature", "Temperature", { min: 0, max: 2, step: "any" }, "0 is always the likeliest word"],
  ["top_p", "Top p", { min: 0, max: 1, step: "any" }, "share of likelihood to draw from"],
  ["top_k", "Top k", { min: 0, max: 100000, step: 1 }, "words to draw from, 0 for all"],
  ["max_tokens", "Most tokens", { min: 1, max: 1000000, step: 1 }, "of a reply, thinking included"],
];

export const EXAMPLE_TOOLS = JSON.stringify([{
  name: "get_weather",
  description: "Get the weather forecast for a city on a day.",
  parameters: {
    type: "object",
    properties: { city: { type: "string" }, day: { type: "string" } },
    required: ["city", "day"],
  },
}], null, 2);

/** Let the settings be changed; `done` gets the new ones. */
export function change(settings, done) {
  const dialog = by("settings");
  const numbers = NUMBERS.map(([name, label, limits, hint]) => [name, make("input", {
    type: "number", id: `set-${name}`, inputMode: "decimal", ...limits,
    value: settings[name] ?? "", placeholder: "model's own", aria: { describedby: `hint-${name}` },
  }), label, hint]);
  const thinking = make("select", { id: "set-thinking" },
    ...[["default", "as the model has it"], ["on", "on"], ["off", "off"]].map(([value, text]) =>
      make("option", { value, text, selected: settings.thinking === value })));
  const system = make("textarea", { id: "set-system", rows: 3, value: settings.system });
  const tools = make("textarea", { id: "set-tools", rows: 5, value: settings.tools,
    spellcheck: false, className: "mono", aria: { describedby: "hint-tools" } });
  const wrong = make("p", { className: "wrong", id: "wrong-tools", role: "alert" });
  const close = () => dialog.close();
  const submit = (event) => {
    event.preventDefault();
    const problem = problemOf(tools.value);
    wrong.textContent = problem;
    tools.setAttribute("aria-invalid", String(Boolean(problem)));
    if (problem) return tools.focus();
    const read = numbers.map(([name, field]) => [name, field.value === "" ? null : +field.value]);
    done({ ...Object.fromEntries(read), thinking: thinking.value, system: system.value,
      tools: tools.value });
    close();
  };
  const example = make("button", { type: "button", className: "quiet small",
    text: "Take an example", on: { click: () => { tools.value = EXAMPLE_TOOLS; } } });
  dialog.replaceChildren(make("form", { method: "dialog", on: { submit } },
    make("h2", { id: "settings-title", text: "This conversation" }),
    field("set-system", "System prompt", system),
    make("div", { className: "numbers" },
      ...numbers.map(([name, input, label, hint]) => field(input.id, label, input,
        make("p", { className: "fine", id: `hint-${name}`, text: hint }))),
      field("set-thinking", "Thinking", thinking)),
    field("set-tools", "Tools", tools, wrong, make("p", { className: "fine", id: "hint-tools" },
      "A JSON list of functions. The page runs none: you give their results. "), example),
    make("div", { className: "ends" },
      make("button", { type: "button", className: "quiet", text: "Cancel", on: { click: close } }),
      make("button", { type: "submit", text: "Use these" }))));
  dialog.showModal();
}

/** The settings that differ from the model's own, in a few words. */
export function summary(settings) {
  const parts = [];
  if (settings.system.trim()) parts.push("system prompt");
  if (settings.temperature !== null) parts.push(`temperature ${settings.temperature}`);
  if (settings.top_p !== null) parts.push(`top p ${settings.top_p}`);
  if (settings.top_k !== null) parts.push(`top k ${settings.top_k}`);
  if (settings.max_tokens !== null) parts.push(`≤ ${settings.max_tokens} tokens`);
  if (settings.thinking !== "default") parts.push(`thinking ${settings.thinking}`);
  if (settings.tools.trim()) parts.push("tools");
  return parts.join(" · ");
}

function field(id, label, ...nodes) {
  const node = make("div", { className: "field" }, make("label", { htmlFor: id, text: label }));
  node.append(...nodes);
  return node;
}

function problemOf(text) {
  if (!text.trim()) return "";
  try {
    toolsOf(text);
    return "";
  } catch (error) {
    return error.message;
  }
}

/** Ask for the server's key; `done` once there is one. */
export function askForKey(keep, done) {
  const dialog = by("key");
  if (dialog.open) return;
  const field_ = make("input", { type: "password", id: "set-key", required: true,
    autocomplete: "off" });
  const submit = (event) => {
    event.preventDefault();
    keep(field_.value.trim());
    dialog.close();
    done();
  };
  dialog.replaceChildren(make("form", { method: "dialog", on: { submit } },
    make("h2", { id: "key-title", text: "This server wants a key" }),
    make("p", { text: "It was started with --api-key. What you enter is kept until this tab is "
      + "closed, and sent to this server only." }),
    field("set-key", "Key", field_),
    make("div", { className: "ends" }, make("button", { type: "submit", text: "Enter" }))));
  dialog.showModal();
}
