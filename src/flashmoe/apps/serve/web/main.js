// Where the page begins: joins the conversation, the list, the box, the settings and the map.

import { announce, by, icon, make, notify } from "./dom.js";
import * as conversations from "./conversations.js";
import * as drawers from "./drawers.js";
import * as server from "./server.js";
import { watch } from "./map.js";
import { EXAMPLE_TOOLS, askForKey, change, summary } from "./settings.js";
import { Thread } from "./thread.js";

// What any model can answer, the small one that comes with the program too.
const SUGGESTIONS = [
  { text: "Continue: Emma was sitting one evening with her father, when the door was thrown open." },
  { text: "What comes next? The letter was long, and not one line of it was about the ball." },
  { text: "What is the weather in Paris on Monday?", settings: { tools: EXAMPLE_TOOLS } },
];

const thread = new Thread(changed, unknown);
const ask = by("ask");

function changed() {
  const replying = thread.coming !== null;
  by("send").hidden = replying;
  by("stop").hidden = !replying;
  const { conversation } = thread;
  if (!conversation) return;
  by("title").textContent = conversation.title || "New conversation";
  by("model").textContent = thread.model;
  document.title = conversation.title ? `${conversation.title} – flashmoe` : "flashmoe";
  by("summary").textContent = summary(conversation.settings);
  by("summary").hidden = !by("summary").textContent;
  if (!conversation.messages.length && !replying) {
    thread.welcome(SUGGESTIONS.map((one) => ({ ...one, take: () => take(one) })));
  }
  drawList();
}

function take({ text, settings }) {
  Object.assign(thread.conversation.settings, settings);
  thread.say(text);
  ask.focus();
}

function unknown() {
  askForKey(server.keep, () => {
    greet();
    watch.again();
  });
}

async function greet() {
  try {
    thread.model = await server.model();
    changed();
  } catch (error) {
    if (error.status === 401) unknown();
    else notify(error.message);
  }
}

// The list

function drawList() {
  const kept = conversations.all();
  by("kept").hidden = Boolean(kept.length);
  by("list").replaceChildren(...kept.map((one) => {
    const open = make("button", { type: "button", className: "quiet entry", text: one.title,
      on: { click: () => show(one) } });
    if (one.id === thread.conversation.id) open.setAttribute("aria-current", "true");
    const remove = make("button", { type: "button", className: "quiet icon small",
      aria: { label: `Delete ${one.title}` }, on: { click: () => forget(one) } }, icon("remove"));
    return make("li", {}, open, remove);
  }));
}

function show(conversation) {
  conversations.remember(conversation);
  thread.show(conversation);
  drawers.dismiss();
  ask.focus();
}

function forget(conversation) {
  const current = conversation.id === thread.conversation.id;
  if (current) thread.discard();
  conversations.remove(conversation);
  if (current) show(conversations.begin());
  else drawList();
  notify("The conversation is deleted.", () => {
    conversations.keep(conversation);
    show(conversation);
  });
}

// The box

function send() {
  const text = ask.value.trim();
  if (!text || thread.coming) return;
  ask.value = "";
  fit();
  thread.say(text);
}

function fit() {
  ask.style.height = "auto";
  ask.style.height = `${Math.min(ask.scrollHeight, innerHeight * 0.4)}px`;
}

function stop() {
  thread.stop();
  ask.focus();
}

ask.addEventListener("input", fit);
ask.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
by("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
by("stop").addEventListener("click", stop);
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (!drawers.dismiss() && thread.coming) stop();
});

// The settings

function settings() {
  const { conversation } = thread;
  change(conversation.settings, (chosen) => {
    conversation.settings = chosen;
    conversations.prefer(chosen);
    if (conversation.messages.length) thread.keep();
    changed();
    announce("The settings hold from the next message on");
  });
}

by("open-settings").addEventListener("click", settings);
by("summary").addEventListener("click", settings);
by("begin").addEventListener("click", () => show(conversations.begin()));

// Light and dark

const THEMES = { system: ["both", "Colours of the system"], light: ["sun", "Light"],
  dark: ["moon", "Dark"] };

function theme(name) {
  const [drawing, label] = THEMES[name];
  document.documentElement.dataset.theme = name;
  by("theme").replaceChildren(icon(drawing));
  by("theme").setAttribute("aria-label", `Theme: ${label}`);
  by("theme").title = label;
  localStorage.setItem("flashmoe.theme", name);
  document.dispatchEvent(new Event("theme"));
}

by("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  const now = document.documentElement.dataset.theme;
  theme(names[(names.indexOf(now) + 1) % names.length]);
});

// The beginning

function furnish() {
  by("open-conversations").append(icon("menu"));
  by("open-settings").append(icon("settings"));
  by("open-experts").append(icon("map"));
  by("send").append(icon("send"));
  by("stop").append(icon("stop"));
  by("latest").prepend(icon("down"));
  for (const button of document.querySelectorAll(".close")) button.append(icon("close"));
}

furnish();
theme(document.documentElement.dataset.theme);
drawers.start();
thread.show(conversations.latest() ?? conversations.begin());
addEventListener("storage", drawList);
watch.start();
greet();
if (matchMedia("(pointer: fine)").matches) ask.focus();
