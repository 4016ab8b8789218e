// One cell of the map: its crop, what is known of it, and the cells nearest to it.

import { askArray, askJson, Latest } from "../../shared/api.js";
import { announce, button, byId, facts, h, notice, shown } from "../../shared/dom.js";
import { gallery, nameOf, picture } from "../search/gallery.js";
import { cropOf, scrolling, strip } from "../crop/planes.js";

const NEAR = 12;

export class Detail {
  #latest = new Latest();

  constructor(root, map) {
    Object.assign(this, { root, map });
    this.clear();
  }

  clear() {
    this.root.replaceChildren(h("p", { class: "hint", text: "Click a cell of the map, or press Enter at the cross-hairs." }));
  }

  async show(row) {
    const { index, app } = this.map;
    try {
      await this.#latest.run(async (signal) => {
        const { cells: [cell] } = await askJson("cells", { json: { index, rows: [row], thumbnails: true }, signal });
        const near = h("div", {});
        const whole = h("div", {});
        const { row: _, thumbnail, volume, ...known } = cell;
        this.root.replaceChildren(
          h("div", { class: "cell-head" }, picture(cell), h("h3", { text: nameOf(cell) })),
          h("div", { class: "row tight" },
            cell.volume && button("Open as crop", () => app.go("crop", { volume: cell.volume, z: cell.z, y: cell.y, x: cell.x })),
            button("Cells like it", () => app.go("search", { ids: `#${row}`, index }))),
          whole, facts(Object.fromEntries(Object.entries(known).map(([name, value]) => [name, shown(value)]))),
          h("h3", { text: "Nearest cells" }), near);
        announce(`${nameOf(cell)} shown under the map's heading Cell`);
        byId("detail-title").scrollIntoView({ block: "nearest" });
        await Promise.all([this.#whole(whole, cell, signal), this.#near(near, row, signal)]);
      });
    } catch (problem) {
      notice(this.root, problem.message, "problem");
    }
  }

  async #whole(root, cell, signal) {
    if (!cell.volume) return notice(root, `The volume ${cell.brain ?? ""} is not registered here, so there is no picture.`);
    const crop = await askArray("crop", { query: { volume: cell.volume, z: cell.z, y: cell.y, x: cell.x }, signal });
    const region = scrolling("All planes of the crop", strip(cropOf(crop, 0), `Crop of ${nameOf(cell)}, all planes side by side`));
    root.replaceChildren(region);
    region.scrollLeft = (region.scrollWidth - region.clientWidth) / 2; // the cell is in the middle
  }

  async #near(root, row, signal) {
    const found = await askJson("search", { json: { index: this.map.index, ids: [`#${row}`], k: NEAR, thumbnails: true }, signal });
    root.replaceChildren(gallery(this.map.index, found.hits, (cell) => this.map.openRow(cell.row), "Nearest cells"));
  }
}
