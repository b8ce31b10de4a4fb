// The picture of the map: a cell an expert, layer below layer. Owns how states look, so that they
// differ in shape and lightness and not by colour alone, and the canvas.
//
// A layer is one row of cells, or several where that makes them larger. What was chosen a moment
// ago fades, unless the reader wants less motion.

import { make } from "./dom.js";

/** As the server numbers them. */
export const STATES = [
  { name: "absent", text: "on the drive" },
  { name: "memory", text: "in memory" },
  { name: "vram", text: "in VRAM" },
  { name: "hit", text: "hit" },
  { name: "missed", text: "miss" },
  { name: "reading", text: "being read" },
];

const [HIT, MISSED] = ["hit", "missed"].map((name) => STATES.findIndex((one) => one.name === name));

const LARGEST = 20; // pixels of a cell
const SMALLEST = 1;
const TALLEST = 0.66; // of the window, for all layers
const FADE = 0.8; // a frame
const FRAME_MS = 125;
const SHAPED = 6; // pixels from which on shapes can be told apart
const NAMES = 22; // pixels at the left for the numbers of the layers

export class Field {
  constructor(canvas, box) {
    this.canvas = canvas;
    this.box = box;
    this.states = new Uint8Array(0);
    this.heat = new Float32Array(0); // of what was chosen; below zero where it was missed
    this.layers = this.experts = 0;
    this.calm = matchMedia("(prefers-reduced-motion: reduce)");
    this.due = 0;
    this.colours();
    new ResizeObserver(() => box.clientWidth !== this.width && this.fit()).observe(box);
    addEventListener("resize", () => this.fit());
    setInterval(() => this.fade(), FRAME_MS);
  }

  begin({ layers, experts }) {
    [this.layers, this.experts] = [layers, experts];
    this.states = new Uint8Array(layers * experts);
    this.heat = new Float32Array(layers * experts);
    this.fit();
  }

  /** Every state, a byte each in base64. */
  all(encoded) {
    const bytes = atob(encoded);
    for (let at = 0; at < this.states.length; at += 1) this.set(at, bytes.charCodeAt(at));
    this.draw();
  }

  /** Places by state, each as its distance from the one before. */
  changes(changed) {
    for (const [state, gaps] of Object.entries(changed)) {
      let at = 0;
      for (const gap of gaps) this.set(at += gap, Number(state));
    }
    this.draw();
  }

  set(at, state) {
    this.states[at] = state;
    if (state === HIT) this.heat[at] = 1;
    else if (state === MISSED) this.heat[at] = -1;
  }

  /** How many experts of each layer are in each state, by its name. */
  byLayer() {
    return Array.from({ length: this.layers }, (_, layer) => {
      const row = Object.fromEntries(STATES.map(({ name }) => [name, 0]));
      const from = layer * this.experts;
      for (let at = from; at < from + this.experts; at += 1) row[STATES[this.states[at]].name] += 1;
      return row;
    });
  }

  /** Colours of the page as it is now. */
  colours() {
    const style = getComputedStyle(document.documentElement);
    this.palette = Object.fromEntries([...STATES.map(({ name }) => name), "mark", "name"]
      .map((name) => [name, style.getPropertyValue(`--map-${name}`).trim()]));
    this.draw();
  }

  /** The rows a layer that make cells largest in the room there is. */
  fit() {
    this.width = this.box.clientWidth;
    const width = this.width - NAMES;
    if (!this.layers || width <= 0) return;
    const height = Math.max(innerHeight * TALLEST, 240);
    let best = null;
    for (let lines = 1; lines <= 16 && lines <= this.experts; lines += 1) {
      const columns = Math.ceil(this.experts / lines);
      const space = this.layers < 16 ? 4 : lines > 1 ? 2 : 1;
      const tall = (height - space * (this.layers - 1)) / (this.layers * lines);
      const cell = Math.min(width / columns, tall, LARGEST);
      if (!best || cell > best.cell * 1.1) best = { lines, columns, cell, space };
    }
    const scale = devicePixelRatio || 1;
    const cell = Math.max(SMALLEST, best.cell);
    this.grid = { ...best, cell, snap: (length) => Math.round(length * scale) / scale };
    const tall = this.layers * (best.lines * cell + best.space) - best.space;
    this.canvas.width = Math.round((width + NAMES) * scale);
    this.canvas.height = Math.round(tall * scale);
    this.canvas.style.width = `${width + NAMES}px`;
    this.canvas.style.height = `${tall}px`;
    this.draw();
  }

  /** The box of an expert, its edges on pixels: `[x, y, width, height]`. */
  place(at) {
    const { lines, columns, cell, space, snap } = this.grid;
    const layer = Math.floor(at / this.experts);
    const expert = at % this.experts;
    const left = NAMES + (expert % columns) * cell;
    const top = layer * (lines * cell + space) + Math.floor(expert / columns) * cell;
    const [x, y] = [snap(left), snap(top)];
    return [x, y, snap(left + cell) - x, snap(top + cell) - y];
  }

  /** The expert at a place of the canvas. */
  at(x, y) {
    if (!this.grid) return null;
    const { lines, columns, cell, space } = this.grid;
    const layer = Math.floor(y / (lines * cell + space));
    const line = Math.floor((y - layer * (lines * cell + space)) / cell);
    const column = Math.floor((x - NAMES) / cell);
    const expert = line * columns + column;
    if (column < 0 || column >= columns || line >= lines) return null;
    if (layer < 0 || layer >= this.layers || expert >= this.experts) return null;
    return { layer, expert, state: this.states[layer * this.experts + expert] };
  }

  fade() {
    let warm = false;
    for (let at = 0; at < this.heat.length; at += 1) {
      const chosen = this.states[at] === HIT || this.states[at] === MISSED;
      if (chosen || this.heat[at] === 0) continue;
      this.heat[at] *= this.calm.matches || Math.abs(this.heat[at]) < 0.05 ? 0 : FADE;
      warm = true;
    }
    if (warm) this.draw();
  }

  draw() {
    this.due ||= requestAnimationFrame(() => {
      this.due = 0;
      if (this.grid) this.paint();
    });
  }

  paint() {
    const pen = this.canvas.getContext("2d");
    const scale = devicePixelRatio || 1;
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    for (let at = 0; at < this.states.length; at += 1) {
      const box = this.place(at);
      cell(pen, box, this.states[at], this.palette);
      const heat = this.heat[at];
      if (heat && this.states[at] < HIT) {
        pen.globalAlpha = 0.75 * Math.abs(heat);
        body(pen, box, heat > 0 ? this.palette.hit : this.palette.missed);
        pen.globalAlpha = 1;
      }
    }
    this.name(pen);
  }

  name(pen) {
    const { lines, cell: size, space } = this.grid;
    const step = Math.max(1, Math.ceil(14 / (lines * size + space)));
    pen.fillStyle = this.palette.name;
    pen.font = "10px ui-sans-serif, system-ui, sans-serif";
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    for (let layer = 0; layer < this.layers; layer += step) {
      const middle = layer * (lines * size + space) + (lines * size) / 2;
      pen.fillText(String(layer), NAMES - 7, middle + 0.5);
    }
  }
}

function body(pen, [x, y, width, height], colour) {
  const gap = width >= 3 ? 1 : width >= 2 ? 0.5 : 0;
  pen.fillStyle = colour;
  if (width >= 8) {
    pen.beginPath();
    pen.roundRect(x, y, width - gap, height - gap, Math.min(3, width / 5));
    pen.fill();
  } else pen.fillRect(x, y, width - gap, height - gap);
}

/** One expert. Where there is room a hit has a dot, a miss a bar, one being read is hollow, and one
 * in VRAM has a smaller square within. */
function cell(pen, box, state, palette) {
  const { name } = STATES[state];
  const [x, y, width, height] = box;
  if (width < SHAPED || name === "absent" || name === "memory") {
    return body(pen, box, palette[name]);
  }
  const [wide, tall] = [width - 1, height - 1];
  body(pen, box, palette[name === "reading" ? "absent" : name]);
  pen.fillStyle = palette.mark;
  if (name === "reading") {
    const line = Math.max(1.5, width / 8);
    pen.strokeStyle = palette.reading;
    pen.lineWidth = line;
    pen.strokeRect(x + line / 2, y + line / 2, wide - line, tall - line);
  } else if (name === "vram") {
    pen.fillStyle = palette.memory;
    pen.fillRect(x + wide * 0.32, y + tall * 0.32, wide * 0.36, tall * 0.36);
  } else if (name === "hit") {
    pen.beginPath();
    pen.arc(x + wide / 2, y + tall / 2, Math.max(1, width / 7), 0, 2 * Math.PI);
    pen.fill();
  } else {
    const line = Math.max(1.2, height / 7);
    pen.fillRect(x + wide * 0.2, y + (tall - line) / 2, wide * 0.6, line);
  }
}

/** A cell for the legend. */
export function swatch(state, palette) {
  const size = 15;
  const scale = devicePixelRatio || 1;
  const canvas = make("canvas", { width: size * scale, height: size * scale,
    aria: { hidden: "true" } });
  canvas.style.width = canvas.style.height = `${size}px`;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  cell(pen, [0, 0, size, size], state, palette);
  return canvas;
}
