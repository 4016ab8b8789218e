// A place that was clicked: its crop, P(cell) by the refiners, and the nearest cells of an index.

import { askArray, askJson, Latest } from "../../shared/api.js";
import { announce, button, facts, h, notice } from "../../shared/dom.js";
import { dump } from "../../shared/npy.js";
import { refinerScores } from "../crop/refiner_scores.js";
import { scrolling, strip } from "../crop/planes.js";
import { gallery } from "../search/gallery.js";

export class CellPanel {
  #latest = new Latest();

  constructor(app) {
    this.app = app;
    this.element = h("div", {});
    this.clear();
  }

  clear() { notice(this.element, "Click a cell, or any place, to see its crop, P(cell) and nearest cells."); }

  async show(volume, place, more) {
    const { app } = this;
    const fixed = [
      facts({ "z, y, x": `${place.z}, ${place.y}, ${place.x}`, ...more }),
      button("Crop, reconstruction, embedding", () => app.go("crop", { volume, ...place })),
    ];
    this.element.replaceChildren(...fixed);
    try {
      await this.#latest.run(async (signal) => {
        const crop = await askArray("crop", { query: { volume, ...place, model: app.model.name }, signal });
        const shape = crop.shape.slice(-3);
        this.element.prepend(scrolling("All planes of the crop", strip({ data: crop.data, shape }, "Crop around the cell, planes side by side", [], { own: true })));
        const npy = dump(crop.data, [1, ...shape]);
        const scores = await refinerScores(app, npy, { volume, ...place }, signal);
        if (scores) this.element.append(scores);
        const [index] = app.indexes;
        if (index) {
          const found = await askJson("search", { npy, signal, query: { index, k: 6, thumbnails: true } });
          this.element.append(h("h3", { text: "Nearest cells" }),
            gallery(index, found.hits, (cell) => cell.volume && app.go("volume", { volume: cell.volume, z: cell.z, y: cell.y, x: cell.x }), "Nearest cells"));
        }
        announce("cell shown");
      });
    } catch (problem) {
      this.element.append(h("p", { class: "problem", role: "alert", text: problem.message }));
    }
  }
}
