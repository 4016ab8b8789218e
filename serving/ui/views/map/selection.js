// The selected cells: how many of what, a few of them as pictures, all of them as a file or as examples.

import { ask, askJson, Latest } from "../../shared/api.js";
import { announce, button, download, h, notice, plural, shown } from "../../shared/dom.js";
import { category, css } from "../../shared/colours.js";
import { examples, gallery } from "../search/gallery.js";

const STEP = 24; // pictures at a time

export class Selection {
  #latest = new Latest();

  constructor(root, map) {
    Object.assign(this, { root, map });
  }

  show() {
    const { selected } = this.map;
    if (!selected?.length) {
      this.root.replaceChildren(h("p", { class: "hint", text: "None yet: draw a lasso around cells, or select by a column." }));
      return;
    }
    this.pictures = h("div", {});
    this.root.replaceChildren(
      h("p", { id: "selection-count" }, h("b", { text: plural(selected.length, "cell") })),
      this.#shares(),
      h("div", { class: "row tight" },
        button("CSV", () => this.#file(), { "aria-label": "Download the selected cells as CSV" }),
        button("As examples", () => this.#asExamples("like")),
        button("As counter-examples", () => this.#asExamples("unlike")),
        button("Clear", () => this.map.clear(), { "aria-label": "Clear the selection" })),
      this.pictures);
    this.#draw(STEP);
  }

  get #rows() {
    return Array.from(this.map.selected, (i) => this.map.rows[i]);
  }

  /** Evenly from among the selected, so that a few stand for all. */
  #some(count) {
    const rows = this.#rows;
    const step = Math.max(1, rows.length / count);
    return Array.from({ length: Math.min(count, rows.length) }, (_, i) => rows[Math.floor(i * step)]);
  }

  /** How the selected are shared among the groups of the colouring. */
  #shares() {
    const { colouring, selected } = this.map;
    if (colouring?.kind !== "words") return null;
    const counts = new Map();
    for (const i of selected) counts.set(colouring.of[i], (counts.get(colouring.of[i]) ?? 0) + 1);
    const rows = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 8).map(([place, count]) => {
      const { name, slot } = colouring.groups[place];
      const bar = h("span", { class: "share" });
      bar.style.width = `${(100 * count) / selected.length}%`;
      bar.style.background = css(category(slot));
      return h("tr", {}, h("th", { scope: "row", text: name }),
        h("td", { class: "bars" }, bar), h("td", { class: "number", text: `${shown(count)} · ${Math.round((100 * count) / selected.length)} %` }));
    });
    return h("table", { class: "shares" }, h("caption", { class: "unseen", text: `Selected cells by ${this.map.by}` }), h("tbody", {}, rows));
  }

  async #draw(count) {
    const rows = this.#some(count);
    try {
      const reply = await this.#latest.run((signal) => askJson("cells", {
        json: { index: this.map.index, rows, thumbnails: true }, signal }));
      if (!reply) return;
      this.pictures.replaceChildren(
        gallery(this.map.index, reply.cells, (cell) => this.map.openRow(cell.row), "Some of the selected cells"),
        rows.length < this.map.selected.length && count < 240 ? button(`More of them`, () => this.#draw(count + 2 * STEP)) : "");
    } catch (problem) {
      notice(this.pictures, problem.message, "problem");
    }
  }

  async #file() {
    try {
      const reply = await ask("cells", { json: { index: this.map.index, rows: this.#rows }, accept: "text/csv" });
      download(await reply.blob(), `${this.map.index}_selected.csv`);
      announce("file made");
    } catch (problem) {
      notice(this.pictures, problem.message, "problem");
    }
  }

  async #asExamples(kind) {
    const reply = await askJson("cells", { json: { index: this.map.index, rows: this.#some(STEP), thumbnails: true } })
      .catch((problem) => notice(this.pictures, problem.message, "problem"));
    if (reply) examples.put(this.map.index, reply.cells, kind);
  }
}
