// The two panels at the sides: beside the conversation where there is room, else above it, one at
// a time, with the focus inside. Owns which are open.

import { by } from "./dom.js";

const NARROW = {
  conversations: matchMedia("(max-width: 860px)"),
  experts: matchMedia("(max-width: 1180px)"),
};

const asked = { conversations: true, experts: true }; // beside the conversation
let above = null; // the one that lies above it

export function start() {
  try {
    asked.experts = localStorage.getItem("flashmoe.experts") !== "closed";
    asked.conversations = localStorage.getItem("flashmoe.conversations") !== "closed";
  } catch {
    // As it is, then.
  }
  for (const name of Object.keys(NARROW)) {
    NARROW[name].addEventListener("change", () => { above = null; apply(); });
    by(`open-${name}`).addEventListener("click", () => toggle(name));
    document.querySelector(`[data-close="${name}"]`).addEventListener("click", () => close(name));
  }
  by("veil").addEventListener("click", dismiss);
  apply();
}

/** Close what lies above the conversation; whether anything did. */
export function dismiss() {
  if (!above) return false;
  close(above);
  return true;
}

/** Whether a panel is to be seen. */
export function isOpen(name) {
  return NARROW[name].matches ? above === name : asked[name];
}

function toggle(name) {
  if (isOpen(name)) return close(name);
  if (NARROW[name].matches) above = name;
  else remember(name, true);
  apply();
  if (above === name) by(name).querySelector("button").focus();
}

function close(name) {
  if (NARROW[name].matches) above = null;
  else remember(name, false);
  apply();
  by(`open-${name}`).focus();
}

function remember(name, open) {
  asked[name] = open;
  localStorage.setItem(`flashmoe.${name}`, open ? "open" : "closed");
}

function apply() {
  for (const name of Object.keys(NARROW)) {
    const open = isOpen(name);
    by(name).inert = !open;
    by(name).classList.toggle("open", open);
    by(`open-${name}`).setAttribute("aria-expanded", String(open));
    document.body.classList.toggle(`with-${name}`, open && !NARROW[name].matches);
  }
  by("veil").hidden = above === null;
  document.querySelector("main").inert = above !== null;
  document.dispatchEvent(new Event("drawers"));
}
