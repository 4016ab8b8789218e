// A registered volume, plane by plane, with the cells of a file over it: thresholds and counts at once.

import { askJson } from "../../shared/api.js";
import { css, onScale } from "../../shared/colours.js";
import { announce, button, byId, download, facts, field, h, notice, plural, select, shown } from "../../shared/dom.js";
import { CellPanel } from "./cell_panel.js";
import { readCells } from "./cells.js";
import { jobButtons } from "./jobs.js";
import { Plane } from "./plane.js";

export class VolumeView {
  constructor(app) {
    this.app = app;
    this.panel = new CellPanel(app);
    this.plane = new Plane({
      moved: () => this.#moved(), clicked: (place) => this.#clicked(place), failed: (sentence) => this.#say(sentence),
    });
    this.names = Object.keys(app.info.volumes);
    this.#build();
  }

  /** `volume`, `z`, `y`, `x` in the address name a place. */
  async show(query) {
    if (!this.names.length) return notice(byId("volume-box"), "No volume is registered: start with --volume NAME=PATH.");
    const name = query.get("volume") ?? this.volume.value;
    if (name !== this.open) await this.#open(name);
    if (query.has("z") && this.open) this.plane.goTo(Object.fromEntries(["z", "y", "x"].map((axis) => [axis, Number(query.get(axis))])));
  }

  forget() { this.open = null; }

  #build() {
    this.volume = select(this.names, this.names[0], (name) => this.#open(name), { "aria-label": "Volume" });
    this.z = h("input", { type: "range", min: 0, step: 1, class: "grow", "aria-label": "Plane z", on: { input: () => this.plane.goTo({ z: Number(this.z.value) }) } });
    this.zText = h("output", {});
    byId("volume-controls").replaceChildren(field("Volume", this.volume), field(h("span", {}, "Plane z ", this.zText), this.z),
      button("−", () => this.plane.zoom(1 / 1.5), { "aria-label": "Zoom out" }), button("+", () => this.plane.zoom(1.5), { "aria-label": "Zoom in" }));
    byId("volume-box").replaceChildren(this.plane.canvas);
    this.window = ["Darkest value", "Brightest value"].map((label) =>
      h("input", { type: "range", "aria-label": label, on: { input: () => this.#contrast() } }));
    this.windowText = h("output", {});
    const depth = h("input", { type: "range", min: 0, max: 60, step: 1, value: 10, "aria-label": "Depth of the cells shown", on: { input: () => {
      this.plane.depth = Number(depth.value);
      deep.textContent = `± ${depth.value} µm`;
      this.plane.draw();
    } } });
    const deep = h("output", { text: "± 10 µm" });
    const file = h("input", { type: "file", accept: ".csv,.tsv,.txt", on: { change: () => this.#load(file) } });
    this.counts = h("div", { id: "volume-counts", role: "status" });
    this.threshold = h("input", { type: "range", step: "any", "aria-label": "Threshold", on: { input: () => this.#count() } });
    this.ofCells = h("div", { hidden: true }, field("Threshold", this.threshold), this.counts);
    this.message = h("p", { class: "hint", role: "status" });
    byId("volume-side").replaceChildren(
      h("section", { class: "card" }, h("h2", { text: "Contrast" }),
        field(h("span", {}, "Dark to bright: ", this.windowText), h("div", { class: "stack tight" }, this.window)),
        button("The volume's own", () => this.#resetContrast())),
      h("section", { class: "card" }, h("h2", { text: "Cells" }),
        field("Cells as CSV (z, y, x; p_cell or score)", file, "It stays in this page."),
        jobButtons(this),
        this.ofCells,
        field(h("span", {}, "Cells shown above and below the plane: ", deep), depth), this.message),
      h("section", { class: "card", "aria-labelledby": "picked-title" }, h("h2", { id: "picked-title", tabIndex: -1, text: "Cell" }), this.panel.element));
  }

  #say(sentence) {
    this.message.textContent = sentence;
    announce(sentence);
  }

  async #open(name) {
    try {
      const pyramid = await askJson("pyramid", { query: { volume: name } });
      this.open = this.volume.value = name;
      this.about = this.app.info.volumes[name];
      this.plane.cells = this.plane.chosen = null;
      this.ofCells.hidden = true;
      this.z.max = this.about.shape_zyx[0] - 1;
      this.#resetContrast();
      this.plane.show(pyramid);
      this.#moved();
      this.panel.clear();
    } catch (problem) {
      this.#say(problem.message);
    }
  }

  #moved() {
    this.z.value = this.plane.place.z;
    this.zText.textContent = `${this.plane.place.z} of ${this.about.shape_zyx[0] - 1}`;
  }

  #resetContrast() {
    const [low, high] = this.about.window;
    const wide = high - low;
    for (const input of this.window) Object.assign(input, { min: low - wide / 2, max: high + 2 * wide, step: wide / 200 });
    [this.window[0].value, this.window[1].value] = [low, high];
    this.#contrast();
  }

  #contrast() {
    let [low, high] = this.window.map((input) => Number(input.value));
    if (high <= low) high = low + Number(this.window[0].step);
    this.windowText.textContent = `${shown(low)} to ${shown(high)}`;
    clearTimeout(this.settling);
    this.settling = setTimeout(() => {
      this.plane.window = [low, high];
      this.plane.draw();
    }, 120);
  }

  async #load(file) {
    if (!file.files[0]) return;
    try {
      this.take(await file.files[0].text());
    } catch (problem) {
      this.#say(`${file.files[0].name}: ${problem.message}`);
    }
  }

  /** Show the cells of a table; an Error says what is wrong with it. */
  take(text) {
    const cells = readCells(text);
    this.plane.cells = cells;
    this.plane.chosen = null;
    Object.assign(this.threshold, { min: cells.low, max: cells.high, value: cells.isProbability ? 0.5 : cells.low });
    this.threshold.disabled = !cells.name;
    this.ofCells.hidden = false;
    this.#count();
    this.#say(`${plural(cells.count, "cell")}${cells.name ? `, coloured by ${cells.name}` : ""}`);
  }

  #count() {
    const { cells } = this.plane;
    // The browser keeps 15 digits, values are of single precision: at its lowest end all cells are kept.
    const threshold = cells.name ? Math.fround(Number(this.threshold.value)) : -Infinity;
    this.plane.threshold = threshold;
    this.plane.draw();
    const at = cells.at(threshold);
    const all = cells.at(-Infinity);
    const interval = ({ expected, low, high }) => `${shown(Math.round(expected))} (${shown(Math.round(low))} to ${shown(Math.round(high))})`;
    const rows = { Kept: `${shown(at.kept)} of ${shown(cells.count)}` };
    if (cells.name) rows[cells.name === "p_cell" ? "P(cell) from" : `${cells.name} from`] = shown(threshold);
    if (at.expected !== undefined) {
      rows["True cells among them, 90 %"] = interval(at);
      rows["Among all candidates, 90 %"] = interval(all);
    }
    const bar = h("canvas", { class: "bar-scale", width: 200, height: 10, role: "img", "aria-label": `colours from ${shown(cells.low)} to ${shown(cells.high)}` });
    const pen = bar.getContext("2d");
    for (let x = 0; x < 200; x++) { pen.fillStyle = css(onScale(x / 199, "dark")); pen.fillRect(x, 0, 1, 10); }
    this.counts.replaceChildren(
      cells.name ? h("div", { class: "row tight" }, h("span", { text: shown(cells.low) }), bar, h("span", { text: shown(cells.high) })) : "",
      facts(rows),
      at.expected === undefined ? h("p", { class: "hint", text: "A score is no probability: refined cells have P(cell), and the count an interval." }) : "",
      button("Download the kept cells", () => download(new Blob([cells.kept(threshold)], { type: "text/csv" }), "cells.csv")));
  }

  #clicked(place) {
    const { cells, threshold } = this.plane;
    const within = Math.max(10 / this.plane.scale, this.plane.depth);
    const row = cells?.nearest(place, this.about.voxel_um, within, threshold) ?? null;
    this.plane.chosen = row;
    this.plane.draw();
    const at = row === null ? place : { z: cells.z[row], y: cells.y[row], x: cells.x[row] };
    this.panel.show(this.open, { z: Math.round(at.z), y: Math.round(at.y), x: Math.round(at.x) },
      row !== null && cells.name ? { [cells.name === "p_cell" ? "P(cell) of the file" : cells.name]: shown(cells.value[row]) } : {});
  }
}
