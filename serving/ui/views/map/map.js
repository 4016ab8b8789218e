// The view of the map: which index, which colours, which cells are selected, which one is shown.

import { askArray, askJson, Latest } from "../../shared/api.js";
import { announce, button, byId, field, h, notice, plural, select, shown } from "../../shared/dom.js";
import { category, colouring, css, onScale, onTheme } from "../../shared/colours.js";
import { Detail } from "./detail.js";
import { legend } from "./legend.js";
import { Plot } from "./plot.js";
import { Selection } from "./selection.js";
import { conditionForm } from "./condition_form.js";

const FIRST = ["marker", "region", "label", "brain", "score"]; // by what a map is coloured at first, if it tells cells apart
const PATIENCE_S = 3600; // UMAP takes minutes
const METHOD = { pca: "PCA", umap: "UMAP" };

export class MapView {
  #latest = new Latest();
  #columns = new Map();
  #hidden = new Set();

  constructor(app) {
    this.app = app;
    this.index = Object.keys(app.info.indexes)[0];
    this.method = "pca";
  }

  show() {
    if (!this.index) {
      notice(byId("map-note"), "No index is served. Make one with canvas-fm index EMBEDDINGS --out cells.index, and start the service with --index cells=cells.index.");
      byId("map-box").hidden = true;
      return;
    }
    if (!this.plot) this.#begin();
  }

  #begin() {
    this.plot = new Plot(byId("map-box"), "map-help");
    this.plot.addEventListener("hover", ({ detail }) => this.#tip(detail));
    this.plot.addEventListener("cursor", ({ detail }) => announce(detail < 0 ? "no cell here" : this.#describe(detail)));
    this.plot.addEventListener("open", ({ detail }) => this.#open(detail));
    this.plot.addEventListener("select", ({ detail }) => this.#select(detail.indices));
    this.plot.addEventListener("say", ({ detail }) => announce(detail));
    this.selection = new Selection(byId("selection"), this);
    this.detail = new Detail(byId("detail"), this);
    onTheme(() => this.#paint());
    this.#tools();
    this.#load();
  }

  #tools() {
    const tools = ["pan", "lasso"].map((tool) => button(tool === "pan" ? "Pan" : "Lasso", () => {
      this.plot.take(tool);
      for (const each of tools) each.setAttribute("aria-pressed", String(each.dataset.tool === tool));
    }, { data: { tool }, "aria-pressed": String(tool === "pan") }));
    const size = h("input", { type: "range", min: 0.5, max: 3, step: 0.25, value: 1, "aria-label": "Size of the points",
      on: { input: () => { this.plot.size = Number(size.value); this.plot.redraw(); } } });
    byId("map-tools").replaceChildren(...tools,
      button("+", () => this.plot.zoom(1.5), { "aria-label": "Zoom in" }),
      button("−", () => this.plot.zoom(1 / 1.5), { "aria-label": "Zoom out" }),
      button("All", () => this.plot.fit(), { title: "The whole map" }), size);
  }

  async #load() {
    const note = byId("map-note");
    note.textContent = "The map is being computed …";
    this.#columns.clear();
    this.#hidden.clear();
    const query = { index: this.index, method: this.method };
    try {
      const loaded = await this.#latest.run(async (signal) => {
        const about = await askJson("map", { query, signal, patience: PATIENCE_S });
        return [about, await askArray("map/points", { query, signal }), await this.column("row", about)];
      });
      if (!loaded) return;
      [this.about, { data: this.xy }, this.rows] = loaded;
      this.colouring = null; // the one before is of other cells
      this.plot.points(this.xy);
      this.selected = new Uint32Array();
      this.#controls();
      await this.colour(this.by in this.about.columns ? this.by : await this.#telling());
      this.selection.show();
      this.detail.clear();
      note.textContent = this.#sentence();
      announce(note.textContent);
    } catch (problem) {
      notice(note, problem.message, "problem");
    }
  }

  #sentence() {
    const { shown: some, cells, share, method } = this.about;
    const count = some < cells ? `${plural(some, "cell")} of ${plural(cells, "cell")}, drawn at random` : plural(cells, "cell");
    const axes = share ? `: the two directions in which embeddings vary most, ${share.map((part) => `${Math.round(100 * part)} %`).join(" and ")} of the variance` : "";
    return `${count}, laid out by ${METHOD[method]}${axes}.`;
  }

  #controls() {
    const names = Object.keys(this.app.info.indexes);
    const again = (change) => { change(); this.#load(); };
    byId("map-controls").replaceChildren(
      names.length > 1 ? field("Index", select(names, this.index, (name) => again(() => { this.index = name; }))) : "",
      this.about.methods.length > 1 ? field("Layout", select(this.about.methods.map((name) => [name, METHOD[name]]), this.method,
        (name) => again(() => { this.method = name; }))) : "",
      field("Colour by", this.choice = select(Object.keys(this.about.columns).filter((name) => name !== "row"), null, (name) => this.colour(name))));
    conditionForm(byId("where-form"), this.about.columns, (name) => this.column(name), (indices) => this.#select(indices));
  }

  /** A column's values, asked for once; `about` where the map is not there yet. */
  column(name, about = this.about) {
    const key = JSON.stringify([about.index, about.method, name]);
    if (!this.#columns.has(key)) {
      const query = { index: about.index, method: about.method, name };
      const coming = askArray("map/column", { query }).then(({ data }) => data);
      coming.catch(() => this.#columns.delete(key));
      this.#columns.set(key, coming);
    }
    return this.#columns.get(key);
  }

  /** The first usual column that tells cells apart. */
  async #telling() {
    for (const name of FIRST.filter((each) => each in this.about.columns)) {
      const { words } = this.about.columns[name];
      if (words ? words.length > 1 : new Set((await this.column(name)).slice(0, 1000)).size > 1) return name;
    }
    return "z";
  }

  async colour(name) {
    const { about } = this;
    this.by = name;
    this.choice.value = name;
    this.#hidden.clear();
    try {
      const values = await this.column(name);
      if (this.by !== name || this.about !== about) return; // another column or map was chosen meanwhile
      this.colouring = colouring(values, this.about.columns[name].words);
    } catch (problem) {
      return notice(byId("legend"), problem.message, "problem");
    }
    this.#paint();
    this.selection.show();
  }

  #paint() {
    if (!this.colouring) return;
    const { kind, of, groups, low, high } = this.colouring;
    const count = this.xy.length / 2;
    const rgba = new Uint8Array(4 * count);
    const front = new Uint8Array(count);
    const chosen = this.selected.length > 0;
    for (const i of this.selected) front[i] = 1;
    const alpha = count > 50_000 ? 190 : 225;
    const colours = groups?.map(({ slot }) => category(slot));
    const scale = Array.from({ length: 256 }, (_, step) => onScale(step / 255));
    const none = category(-1);
    for (let i = 0; i < count; i++) {
      const share = kind === "numbers" ? (of[i] - low) / (high - low || 1) : 0;
      const colour = colours ? colours[of[i]] : Number.isFinite(share) ? scale[Math.round(255 * Math.min(1, Math.max(0, share)))] : none;
      const gone = colours && this.#hidden.has(of[i]);
      rgba[4 * i] = colour[0];
      rgba[4 * i + 1] = colour[1];
      rgba[4 * i + 2] = colour[2];
      rgba[4 * i + 3] = gone ? 0 : chosen && !front[i] ? 40 : alpha;
    }
    this.plot.paint(rgba, front, (i) => !(colours && this.#hidden.has(of[i])));
    legend(byId("legend"), this.by, this.colouring, this.#hidden, () => this.#paint());
  }

  #select(indices) {
    this.selected = indices;
    this.#paint();
    this.selection.show();
    announce(`${plural(indices.length, "cell")} selected`);
  }

  clear() {
    this.#select(new Uint32Array());
  }

  async #open(i) {
    this.plot.marked = i;
    this.plot.redraw();
    await this.detail.show(this.rows[i]);
  }

  /** Mark and show a cell of the index, wherever it was found. */
  async openRow(row) {
    this.plot.marked = this.rows.indexOf(row);
    this.plot.redraw();
    await this.detail.show(row);
  }

  /** What is known of a cell without asking: its value in the column that colours. */
  valueOf(i) {
    if (!this.colouring) return "…"; // its column is on its way
    const { kind, groups, of } = this.colouring;
    return kind === "words" ? groups[of[i]].name : shown(of[i]);
  }

  #describe = (i) => `row ${this.rows[i]}, ${this.by} ${this.valueOf(i)}`;

  #tip(i) {
    if (i < 0 || !this.colouring) return this.plot.showTip(i, null);
    const { kind, groups, of, low, high } = this.colouring;
    const colour = kind === "words" ? category(groups[of[i]].slot) : onScale((of[i] - low) / (high - low || 1));
    const swatch = h("span", { class: "swatch" });
    swatch.style.background = css(colour);
    this.plot.showTip(i, h("span", {}, swatch, h("b", { text: `${this.by} ${this.valueOf(i)}` }), ` · row ${this.rows[i]}`));
  }
}
