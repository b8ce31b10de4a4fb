// Elements made from data. Owns the only ways in which this page makes nodes: text is always text.

const SVG = "http://www.w3.org/2000/svg";

/** An element. `on` are listeners by event, `data` and `aria` attributes by the rest of their
 * names, `role` is one too; `text` its text; anything else a property of the element. */
export function make(tag, options = {}, ...children) {
  const node = document.createElement(tag);
  const { on = {}, data = {}, aria = {}, role, text, ...rest } = options;
  for (const [name, value] of Object.entries(rest)) if (value !== undefined) node[name] = value;
  for (const [name, value] of Object.entries(data)) node.dataset[name] = value;
  for (const [name, value] of Object.entries(aria)) node.setAttribute(`aria-${name}`, value);
  for (const [name, listener] of Object.entries(on)) node.addEventListener(name, listener);
  if (role) node.setAttribute("role", role);
  if (text !== undefined) node.textContent = text;
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** The element with an id, which is there. */
export function by(id) {
  const node = document.getElementById(id);
  if (!node) throw new Error(`the page has no element ${id}`);
  return node;
}

const ICONS = {
  menu: "M4 7h16M4 12h16M4 17h10",
  close: "M6 6l12 12M18 6L6 18",
  settings: "M4 8h9M19 8h1M4 16h1M11 16h9M16 5.5a2.5 2.5 0 1 0 0 5 2.5 2.5 0 1 0 0-5M8 13.5a2.5 2.5 0 1 0 0 5 2.5 2.5 0 1 0 0-5",
  map: "M4 4h4v4H4zM10 4h4v4h-4zM16 4h4v4h-4zM4 10h4v4H4zM10 10h4v4h-4zM16 10h4v4h-4zM4 16h4v4H4zM10 16h4v4h-4zM16 16h4v4h-4z",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 1 0 0-8M12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.4 1.4M17.6 17.6L19 19M5 19l1.4-1.4M17.6 6.4L19 5",
  moon: "M20 14.5A8 8 0 1 1 9.5 4a6.5 6.5 0 0 0 10.5 10.5z",
  both: "M12 4a8 8 0 1 0 0 16zM12 4a8 8 0 0 1 0 16",
  copy: "M9 9h10v10H9zM5 15V5h10",
  again: "M19 12a7 7 0 1 1-2-5l2 2M19 4v5h-5",
  edit: "M4 20l1-4L16 5l3 3L8 19zM14 7l3 3",
  remove: "M5 7h14M10 4h4M7 7l1 13h8l1-13",
  down: "M12 5v14M6 13l6 6 6-6",
};

/** A line drawing that says nothing to screen readers: its button has a name. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("drawn");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** A small button with an icon and, where there is room, a word. */
export function action(name, word, listener) {
  return make("button", { type: "button", className: "quiet small", on: { click: listener } },
    icon(name), make("span", { text: word }));
}

/** Say something to those who do not see it; what is said again is heard again. */
export function announce(text) {
  const status = by("status");
  status.textContent = "";
  requestAnimationFrame(() => { status.textContent = text; });
}

let hiding = 0;

/** A line at the edge of the page, for some seconds; `undo` puts a button beside it. */
export function notify(text, undo = null) {
  const notice = by("notice");
  clearTimeout(hiding);
  notice.replaceChildren(make("span", { text }));
  if (undo) {
    const again = () => { notice.replaceChildren(); undo(); };
    notice.append(make("button", { type: "button", className: "quiet small", text: "Undo",
      on: { click: again } }));
  }
  hiding = setTimeout(() => notice.replaceChildren(), 8000);
}

/** Put text on the clipboard, and say so on the button that was pressed. */
export async function copy(text, button) {
  const word = button.querySelector("span") ?? button;
  const before = word.textContent;
  try {
    await navigator.clipboard.writeText(text);
    word.textContent = "Copied";
    announce("Copied");
  } catch {
    word.textContent = "Not allowed";
    announce("The browser does not allow copying here");
  }
  setTimeout(() => { word.textContent = before; }, 1600);
}

/** A number for reading: `digits` significant ones at most where it is not whole. */
export function figure(number, digits = 3) {
  const whole = Number.isInteger(number) || Math.abs(number) >= 10 ** (digits - 1);
  return new Intl.NumberFormat("en-GB", whole
    ? { maximumFractionDigits: 0 } : { maximumSignificantDigits: digits }).format(number);
}
