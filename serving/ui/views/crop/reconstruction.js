// What the model makes of the patches that it was not shown: mask ratio and seed chosen, the paper's four rows.

import { askArray, Latest } from "../../shared/api.js";
import { announce, button, field, h, notice, settled, shown } from "../../shared/dom.js";
import { dump } from "../../shared/npy.js";
import { cropOf, framesOf, hiddenPatches, psnr, scrolling, strip } from "./planes.js";

const ROWS = ["Original", "Masked", "Reconstruction", "Merged"];

export class Reconstruction {
  #latest = new Latest();
  #crop = null;

  constructor(root, app) {
    Object.assign(this, { root, app });
    this.ratio = h("input", { type: "range", min: 0.05, max: 0.95, step: 0.05, value: app.model.mask_ratio,
      on: { input: () => { this.#say(); this.#soon(); } } });
    this.percent = h("b", {});
    this.seed = h("input", { type: "number", min: 0, max: 999999999, step: 1, value: 0, class: "short",
      on: { input: () => this.#soon() } });
    this.rows = h("div", { class: "rows" });
    this.message = h("p", { class: "hint", role: "status" });
    this.#soon = settled(() => this.#draw(), 120);
  }

  #soon;

  /** Show the four rows of a crop {data, shape: [z, y, x]}. */
  show(crop) {
    this.#crop = crop;
    if (!this.app.model.reconstructs) {
      notice(this.root, "This model was saved without its decoder, so it cannot reconstruct.");
      return;
    }
    if (!this.root.contains(this.rows)) {
      this.root.replaceChildren(
        h("div", { class: "row" },
          h("label", { class: "field grow" }, h("span", {}, "Hidden patches ", this.percent), this.ratio),
          field("Seed of the mask", this.seed),
          button("Another mask", () => { this.seed.value = Number(this.seed.value) + 1; this.#draw(); })),
        scrolling("Reconstruction, four rows of all planes", this.rows), this.message);
    }
    this.#draw();
  }

  #say() {
    const patches = this.app.model.architecture;
    const tokens = this.app.model.crop_zyx.reduce((count, size, axis) => count * (size / patches.patch_zyx[axis]), 1);
    const hidden = tokens - Math.floor(tokens * (1 - this.ratio.value));
    this.percent.textContent = `${Math.round(100 * this.ratio.value)} % · ${hidden} of ${tokens}`;
    this.ratio.setAttribute("aria-valuetext", this.percent.textContent);
  }

  async #draw() {
    this.#say();
    const { crop_zyx: size, architecture: { patch_zyx: patch }, name: model, reconstruction_given: given } = this.app.model;
    const crop = this.#crop;
    try {
      const four = await this.#latest.run((signal) => askArray("reconstruct", {
        npy: dump(crop.data, [1, ...size]), signal,
        query: { mask_ratio: Number(this.ratio.value).toFixed(2), seed: Math.max(0, Math.round(this.seed.value)) || 0, model },
      }));
      if (!four) return;
      const hidden = hiddenPatches(four, patch);
      const frames = framesOf(hidden, patch);
      this.rows.replaceChildren(...ROWS.flatMap((name, row) => [
        h("span", { class: "row-name", text: name }),
        strip(cropOf(four, row), `${name}, ${size[0]} planes side by side`, row === 1 ? frames : []),
      ]));
      const { reconstruction, visibleMean } = psnr(four, hidden, patch);
      this.message.textContent = `PSNR on the hidden voxels of this crop: ${shown(reconstruction)} dB; ` +
        `the mean of the visible ones would have ${shown(visibleMean)} dB. Yellow frames: patches that the model did not see.` +
        (given ? ` It was given ${given}, which the mean was not.` : "");
      announce(`${hidden.length} patches hidden, PSNR ${shown(reconstruction)} decibel`);
    } catch (problem) {
      this.message.textContent = problem.message;
    }
  }
}
