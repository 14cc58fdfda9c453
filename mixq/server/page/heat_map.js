// The experts that each layer uses: a heat map, and the same in words and as a table.
//
// Contract: a cell shows the expert's share of the reply's tokens, and flashes when the last token used it, unless the
// user prefers reduced motion. Nothing is drawn while nothing changes.

import { byId, element } from "./elements.js";

const HALF_LIFE = 320; // ms, of a flash
const DARK = 0.02; // a dimmer flash is not drawn
const STOPS = ["--heat-0", "--heat-1", "--heat-2", "--heat-3"];

const percent = (share) => `${Math.round(share * 100)} %`;

export class HeatMap {
  constructor() {
    this.canvas = byId("heat");
    this.calm = matchMedia("(prefers-reduced-motion: reduce)");
    this.shape = [0, 0];
    this.clear();
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => this.say());
    byId("heat-details").addEventListener("toggle", () => this.fillTable());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.readColours());
    new ResizeObserver(() => this.fit()).observe(this.canvas.parentElement);
  }

  /** Set the numbers of layers and experts; a dense model has none. */
  resize(layers, experts) {
    if (this.shape[0] === layers && this.shape[1] === experts) return;
    this.shape = [layers, experts];
    byId("experts").hidden = !experts;
    this.clear();
    this.fit();
  }

  clear() {
    const [layers, experts] = this.shape;
    this.counts = Array.from({ length: layers }, () => new Uint32Array(experts));
    this.flares = Array.from({ length: layers }, () => new Float32Array(experts));
    this.tokens = 0;
    this.say();
    this.finish();
    this.draw();
  }

  /** Count the experts of tokens: a list per token, with a list per layer. */
  add(tokens) {
    const [layers, experts] = this.shape;
    for (const token of tokens) {
      if (!Array.isArray(token) || token.length !== layers) continue;
      token.forEach((chosen, layer) => {
        for (const expert of chosen) {
          if (!(expert >= 0 && expert < experts)) continue;
          this.counts[layer][expert] += 1;
          this.flares[layer][expert] = 1;
        }
      });
      this.tokens += 1;
    }
    byId("heat-tokens").textContent = this.tokens ? `${this.tokens} tokens` : "";
    this.wake();
  }

  /** Describe the map in words, at the end of a reply. */
  finish() {
    this.canvas.setAttribute("aria-label", this.description());
    byId("heat-tokens").textContent = this.tokens ? `${this.tokens} tokens` : "";
    this.fillTable();
  }

  description() {
    const [layers, experts] = this.shape;
    if (!this.tokens) return `Heat map of ${layers} layers and ${experts} experts: no tokens yet`;
    let [most, at] = [0, [0, 0]];
    this.counts.forEach((row, layer) => row.forEach((n, expert) => { if (n > most) [most, at] = [n, [layer, expert]]; }));
    return `Heat map of ${layers} layers and ${experts} experts over ${this.tokens} tokens; most used is expert ${at[1]} of layer ${at[0]}, with ${percent(most / this.tokens)} of the tokens`;
  }

  fillTable() {
    const table = byId("heat-table");
    if (!byId("heat-details").open) return;
    const [, experts] = this.shape;
    const head = element("tr", {}, element("th", { scope: "col", textContent: "Layer" }));
    for (let e = 0; e < experts; e += 1) head.append(element("th", { scope: "col", textContent: e }));
    const rows = this.counts.map((row, layer) => {
      const shares = [...row].map((n) => element("td", { textContent: this.tokens ? percent(n / this.tokens) : "–" }));
      return element("tr", {}, element("th", { scope: "row", textContent: layer }), ...shares);
    });
    table.replaceChildren(element("caption", { textContent: `Share of ${this.tokens} tokens that used each expert` }), element("thead", {}, head), element("tbody", {}, ...rows));
  }

  point(event) {
    const [layers, experts] = this.shape;
    if (!layers || !experts) return;
    const box = this.canvas.getBoundingClientRect();
    const layer = Math.min(layers - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * layers)));
    const expert = Math.min(experts - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * experts)));
    const share = this.tokens ? percent(this.counts[layer][expert] / this.tokens) : "no tokens yet";
    this.say(`Layer ${layer}, expert ${expert}: ${share}`);
  }

  say(text = "Each token uses a few experts in each layer.") {
    byId("heat-at").textContent = text;
  }

  fit() {
    const [layers] = this.shape;
    const width = this.canvas.parentElement.clientWidth;
    if (!layers || !width) return;
    const row = Math.max(7, Math.min(18, Math.floor(300 / layers)));
    const scale = window.devicePixelRatio || 1;
    this.canvas.style.height = `${row * layers}px`;
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(row * layers * scale);
    this.readColours();
  }

  readColours() {
    const style = getComputedStyle(document.documentElement);
    this.stops = STOPS.map((name) => style.getPropertyValue(name).trim().match(/\w\w/g).map((hex) => parseInt(hex, 16)));
    this.draw();
  }

  wake() {
    this.last ??= performance.now();
    this.frame ??= requestAnimationFrame((now) => this.step(now));
  }

  step(now) {
    this.frame = null;
    const left = this.calm.matches ? 0 : 0.5 ** (Math.max(0, now - this.last) / HALF_LIFE);
    this.last = now;
    let alive = false;
    for (const row of this.flares) {
      for (let e = 0; e < row.length; e += 1) {
        row[e] = row[e] * left < DARK ? 0 : row[e] * left;
        alive ||= row[e] > 0;
      }
    }
    this.draw();
    if (alive) this.wake();
    else this.last = null;
  }

  colour(heat) {
    const place = Math.min(1, Math.max(0, heat)) * (this.stops.length - 1);
    const i = Math.min(this.stops.length - 2, Math.floor(place));
    const mixed = this.stops[i].map((from, c) => Math.round(from + (this.stops[i + 1][c] - from) * (place - i)));
    return `rgb(${mixed.join(" ")})`;
  }

  draw() {
    const [layers, experts] = this.shape;
    if (!this.stops || !layers || !experts) return;
    const pen = this.canvas.getContext("2d");
    const { width, height } = this.canvas;
    const gap = Math.max(1, Math.round(window.devicePixelRatio || 1));
    const most = Math.max(1, ...this.counts.map((row) => Math.max(...row)));
    const ceiling = this.calm.matches ? 1 : 0.62; // flashes are drawn over shares
    pen.clearRect(0, 0, width, height);
    for (let layer = 0; layer < layers; layer += 1) {
      const [top, bottom] = [Math.round((layer * height) / layers), Math.round(((layer + 1) * height) / layers)];
      for (let expert = 0; expert < experts; expert += 1) {
        const [left, right] = [Math.round((expert * width) / experts), Math.round(((expert + 1) * width) / experts)];
        pen.fillStyle = this.colour(Math.max((this.counts[layer][expert] / most) * ceiling, this.flares[layer][expert]));
        pen.fillRect(left, top, right - left - gap, bottom - top - gap);
      }
    }
  }
}
