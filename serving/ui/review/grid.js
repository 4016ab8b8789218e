// Forty candidates at one presumed label: those that are wrong are clicked, and all are recorded at once.

import { askArray, askJson } from "../shared/api.js";
import { announce, byId, h } from "../shared/dom.js";
import { picture, pointAtMiddle, projection } from "./pictures.js";

const COUNT = 40;

export class Grid {
  constructor(contrast, failed, identity, recorded) {
    Object.assign(this, { contrast, failed, identity, recorded, rows: [], wrong: new Set(), crops: null });
    byId("grid-label").addEventListener("change", () => this.load());
    byId("grid-done").addEventListener("click", () => this.record());
    byId("tiles").addEventListener("keydown", (event) => this.#key(event));
  }

  get label() {
    return Number(byId("grid-label").value);
  }

  async load() {
    try {
      const { rows } = await askJson("review/batch", { query: { label: this.label, count: COUNT } });
      this.rows = rows;
      this.wrong.clear();
      this.crops = rows.length ? await askArray("review/crops", { query: { rows: rows.map(({ row }) => row).join(",") } }) : null;
      this.draw();
      byId("tiles").querySelector("button")?.focus();
      announce(`${rows.length} candidates, presumed to be ${this.label ? "cells" : "no cells"}`);
    } catch (problem) {
      this.failed(problem);
    }
  }

  draw() {
    const tiles = byId("tiles");
    byId("grid-done").disabled = !this.rows.length;
    this.#count();
    if (!this.rows.length) return tiles.replaceChildren(h("p", { class: "note", text: "Nothing is left to answer." }));
    const [, planes, rows, columns] = this.crops.shape;
    const size = planes * rows * columns;
    tiles.replaceChildren(...this.rows.map(({ row }, number) => {
      const crop = { data: this.crops.data.subarray(number * size, (number + 1) * size), shape: [planes, rows, columns] };
      const flat = projection(crop, 0);
      const canvas = picture(flat.values, rows, columns, this.contrast.grey(crop.data), "", 3);
      canvas.setAttribute("aria-hidden", "true");
      return h("button", {
        type: "button", class: "tile", "aria-pressed": String(this.wrong.has(row)), "aria-label": `Candidate ${number + 1}, wrong`,
        tabIndex: number ? -1 : 0, on: { click: (event) => this.#toggle(row, event.currentTarget) },
      }, pointAtMiddle(canvas, rows >> 1, rows, columns >> 1, columns));
    }));
  }

  #count() {
    byId("grid-note").textContent = `${this.rows.length} candidates, ${this.wrong.size} marked wrong`;
  }

  #toggle(row, tile) {
    if (!this.wrong.delete(row)) this.wrong.add(row);
    tile.setAttribute("aria-pressed", String(this.wrong.has(row)));
    this.#count();
  }

  #key(event) {
    const tiles = [...byId("tiles").querySelectorAll("button")];
    const at = tiles.indexOf(document.activeElement);
    if (at < 0) return;
    if (event.key === "Enter") {
      event.preventDefault();
      event.stopPropagation();
      return this.record();
    }
    const across = Math.max(1, tiles.filter((tile) => tile.offsetTop === tiles[0].offsetTop).length);
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across }[event.key];
    const next = tiles[at + (step ?? 0)];
    if (!step || !next) return;
    event.preventDefault();
    tiles[at].tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  async record() {
    if (!this.rows.length || this.busy) return;
    this.busy = true;
    try {
      const rows = this.rows.map(({ row }) => row);
      const found = await askJson("review/answers", { json: { id: this.identity(), rows, label: this.label, wrong: [...this.wrong] } });
      announce(`${rows.length} answers saved`);
      this.recorded(found);
      await this.load();
    } catch (problem) {
      this.failed(problem);
    } finally {
      this.busy = false;
    }
  }
}
