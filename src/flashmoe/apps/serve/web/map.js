// The live map of experts: listens to the server while the map is to be seen, and tells of it in
// figures, in a picture (`field.js`) and as a table.

import { by, figure, make } from "./dom.js";
import { isOpen } from "./drawers.js";
import { Field, STATES, swatch } from "./field.js";
import * as server from "./server.js";

const WINDOW_S = 2; // over which rates are formed
const PAUSE_S = 0.5; // after which a new stretch of work begins
const STILL_MS = 1500;
const TABLE_MS = 1000;

const field = new Field(by("map"), by("field"));
let listening = null;
let shape = null;
let frames = []; // {at, figures} of the last seconds, the oldest first
let heard = 0;
let told = -Infinity;
let wait = 1;
let timer = 0;

export const watch = {
  start() {
    legend();
    document.addEventListener("drawers", look);
    document.addEventListener("visibilitychange", look);
    document.addEventListener("theme", () => { field.colours(); legend(); });
    by("table").addEventListener("toggle", () => table(true));
    setInterval(still, 500);
    point();
    look();
  },
  again() {
    wait = 1;
    look();
  },
};

/** Listen while the map is to be seen, and only then. */
function look() {
  const seen = isOpen("experts") && !document.hidden;
  clearTimeout(timer);
  if (seen && !listening) listen();
  else if (!seen && listening) listening.abort();
  if (seen) field.fit();
}

async function listen() {
  const mine = listening = new AbortController();
  try {
    for await (const { event, data } of server.experts(mine.signal)) {
      wait = 1;
      take(event, data);
    }
    pulse("not connected", false);
  } catch (error) {
    if (!mine.signal.aborted) {
      pulse(error.status === 401 ? "wants a key" : error.status ? error.message
        : "not connected", false);
    }
  }
  listening = null;
  if (mine.signal.aborted) return look(); // it may be open again by now
  wait = Math.min(wait * 2, 30);
  timer = setTimeout(look, wait * 1000);
}

function take(event, data) {
  if (event === "shape") {
    shape = data;
    frames = [];
    field.begin(data);
    by("table").querySelector("tbody").replaceChildren();
    for (const one of by("experts").querySelectorAll(".above")) one.hidden = !data.vram_slots;
    legend();
    return;
  }
  if (event === "all") field.all(data.states);
  else field.changes(data.changed);
  heard = performance.now();
  note(data);
  figures();
  table(false);
}

/** Rates are of one stretch of work: what came before a pause is no part of them. */
function note({ at, figures: found }) {
  const last = frames.at(-1);
  if (last && at - last.at > PAUSE_S) {
    frames = found.tokens > last.figures.tokens
      ? [{ at: at - 0.125, figures: last.figures }] : [];
  }
  frames.push({ at, figures: found });
  while (frames.length > 2 && at - frames[0].at > WINDOW_S) frames.shift();
}

function figures() {
  const [from, to] = [frames[0], frames.at(-1)];
  const since = (name) => to.figures[name] - from.figures[name];
  const [tokens, misses] = ["tokens", "misses"].map(since);
  if (tokens > 0) {
    const asked = shape.vram_slots ? since("vram_hits") + since("vram_misses")
      : since("hits") + misses;
    by("hit-rate").textContent = asked ? `${figure((100 * (asked - misses)) / asked, 3)} %` : "–";
    by("speed").textContent = `${figure(tokens / (to.at - from.at))} tok/s`;
    by("read").textContent = amount(since("bytes_read") / tokens);
    by("wait").textContent = `${figure(since("read_wait_ms") / tokens, 2)} ms`;
    by("copied").textContent = amount(since("copied_bytes") / tokens);
    by("copy-wait").textContent = `${figure(since("copy_wait_ms") / tokens, 2)} ms`;
  }
  pulse("live", tokens > 0);
  const all = shape.layers * shape.experts;
  const above = shape.vram_slots ? `${figure(to.figures.vram_held)} in VRAM, room for `
    + `${figure(Math.min(shape.vram_slots, all))}. ` : "";
  const asked = shape.vram_slots ? "of what was not in VRAM " : "";
  by("held").textContent = `${figure(to.figures.held)} of ${figure(all)} experts in memory, room for `
    + `${figure(Math.min(to.figures.slots, all))}. ${above}`
    + `A token chooses ${shape.experts_per_token} in each layer: ${asked}hits were in memory then, `
    + "misses had to be read.";
}

function amount(bytes) {
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (bytes >= 0.1 * size) return `${figure(bytes / size, 2)} ${unit}`;
  }
  return `${figure(bytes)} B`;
}

function still() {
  if (listening && heard && performance.now() - heard > STILL_MS) pulse("idle", false);
}

function pulse(text, live) {
  by("pulse").textContent = text === "live" && !live ? "idle" : text;
  by("pulse").classList.toggle("live", live);
  by("experts").classList.toggle("still", !live);
}

/** For those who read rather than see, and a sentence in place of the picture. */
function table(now) {
  if (!shape || (!now && performance.now() - told < TABLE_MS)) return;
  told = performance.now();
  const rows = field.byLayer();
  const sum = (count) => rows.reduce((total, row) => total + count(row), 0);
  // What was chosen has come to the upper tier, where there is one.
  const chosen = (row) => row.hit + row.missed;
  const inVram = (row) => row.vram + chosen(row);
  const inMemory = (row) => row.memory + (shape.vram_slots ? 0 : chosen(row));
  by("map").setAttribute("aria-label", `Map of ${shape.layers} layers of ${shape.experts} experts: `
    + (shape.vram_slots ? `${sum(inVram)} in VRAM, ${sum(inMemory)} in memory alone, `
      : `${sum(inMemory)} in memory, `)
    + `${sum((row) => row.reading)} being read; at the last token ${sum((row) => row.hit)} hits and `
    + `${sum((row) => row.missed)} misses`);
  if (!by("table").open) return;
  const columns = [inMemory, (row) => row.reading, (row) => row.hit, (row) => row.missed];
  if (shape.vram_slots) columns.unshift(inVram);
  const body = by("table").querySelector("tbody");
  rows.forEach((row, layer) => {
    const line = body.children[layer] ?? body.appendChild(make("tr", {},
      make("th", { scope: "row", text: String(layer) }), ...columns.map(() => make("td"))));
    const cells = columns.map((count) => count(row));
    cells.forEach((count, at) => { line.children[at + 1].textContent = String(count); });
  });
}

function legend() {
  by("legend").replaceChildren(...STATES.map(({ name, text }, state) => make("li", {},
    swatch(state, field.palette), make("span", { text })))
    .filter((_, state) => shape?.vram_slots || STATES[state].name !== "vram"));
}

/** Which expert is under the pointer. */
function point() {
  const hint = by("point");
  by("map").addEventListener("pointermove", (event) => {
    const found = field.at(event.offsetX, event.offsetY);
    hint.hidden = !found;
    if (!found) return;
    hint.textContent = `Layer ${found.layer}, expert ${found.expert}: ${STATES[found.state].text}`;
    hint.style.top = `${event.offsetY + 18}px`;
    const width = hint.offsetWidth;
    hint.style.left = `${Math.max(0, Math.min(event.offsetX - width / 2, by("field").clientWidth - width))}px`;
  });
  by("map").addEventListener("pointerleave", () => { hint.hidden = true; });
}
