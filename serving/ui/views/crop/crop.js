// One crop, of a volume or of a file: its planes, embedding, reconstruction and nearest cells.

import { askArray, askJson, Latest } from "../../shared/api.js";
import { announce, button, byId, download, facts, field, h, notice, select, shown } from "../../shared/dom.js";
import { gallery } from "../search/gallery.js";
import { refinerScores } from "./refiner_scores.js";
import { dump, parse } from "../../shared/npy.js";
import { startOf } from "./start.js";
import { Surroundings } from "./surroundings.js";
import { cropOf, scaleBar, scrolling, strip } from "./planes.js";
import { Reconstruction } from "./reconstruction.js";
import { barcode, summary } from "./embedding_view.js";

export class CropView {
  #latest = new Latest();
  #crop = null;
  own = true; // the contrast of the crop alone; the model sees the volume's window

  constructor(app) {
    this.app = app;
    this.reconstruction = new Reconstruction(byId("reconstruction"), app);
    this.surroundings = new Surroundings((place) => this.#moveTo(place));
    this.#controls();
  }

  /** `volume`, `z`, `y`, `x` in the address name a place. */
  show(query) {
    if (query.has("volume")) {
      this.volume.value = query.get("volume");
      for (const axis of ["z", "y", "x"]) this.inputs[axis].value = query.get(axis) ?? "";
      this.#read();
    } else if (!this.#crop && this.volume.value) {
      this.#begin().then(() => this.#read());
    } else if (!this.#crop) {
      for (const id of ["strip", "reconstruction", "embedding", "near"]) notice(byId(id), "Choose a .npy file to begin.");
    }
  }

  /** Another model was chosen: its crops may be of another size. */
  forget() {
    this.#crop = null;
  }

  #controls() {
    const volumes = Object.keys(this.app.info.volumes);
    this.volume = select(volumes, volumes[0], () => this.#begin().then(() => this.#go()), { required: true });
    this.inputs = Object.fromEntries(["z", "y", "x"].map((axis) =>
      [axis, h("input", { type: "number", step: "any", min: 0, class: "short", required: true })]));
    this.file = h("input", { type: "file", accept: ".npy", on: { change: () => this.#upload() } });
    this.which = h("input", { type: "number", min: 0, value: 0, class: "short", on: { change: () => this.#fromFile() } });
    this.window = ["low", "high"].map((end) =>
      h("input", { type: "number", step: "any", class: "short", "aria-label": `Window, ${end}`, on: { change: () => this.#fromFile() } }));
    this.message = h("p", { role: "status", class: "hint" });
    this.ofFile = h("div", { class: "row", hidden: true },
      field("Crop number", this.which),
      h("div", { class: "field" }, h("span", { text: "Window (low, high)" }), h("div", { class: "row tight" }, this.window)));
    const point = h("form", { on: { submit: (event) => { event.preventDefault(); this.#go(); } } },
      field("Volume", this.volume),
      h("div", { class: "row tight" }, ["z", "y", "x"].map((axis) => field(axis, this.inputs[axis]))),
      h("div", { class: "row tight" }, h("button", { type: "submit", class: "main", text: "Show" }),
        button("Somewhere else", () => { this.#anywhere(); this.#go(); })),
      this.surroundings.canvas, this.surroundings.help);
    byId("crop-source").replaceChildren(
      h("h2", { text: "Where from" }),
      volumes.length ? point : h("p", { class: "hint", text: "No volume is registered: start with --volume NAME=PATH." }),
      h("h3", { text: volumes.length ? "Or a file of yours" : "A file of yours" }),
      field("Crops as .npy", this.file, `float32 in [0, 1], or uint16 with its window; ${this.app.model.crop_zyx.join(" × ")} voxels (z × y × x)`),
      this.ofFile, this.message);
  }

  get #about() {
    return this.app.info.volumes[this.volume.value];
  }

  /** Begin at a cell of an index of this volume, else at a bright place, else in the middle. */
  async #begin() {
    const place = await startOf(this.app, this.volume.value).catch(() => null);
    this.#about?.shape_zyx.forEach((size, i) => { this.inputs["zyx"[i]].value = place ? Math.round(place["zyx"[i]]) : Math.floor(size / 2); });
  }

  #anywhere() {
    this.#about.shape_zyx.forEach((size, i) => { this.inputs["zyx"[i]].value = Math.floor(Math.random() * size); });
  }

  #place() {
    return Object.fromEntries(["z", "y", "x"].map((axis) => [axis, Number(this.inputs[axis].value)]));
  }

  #moveTo(place) {
    for (const axis of ["z", "y", "x"]) this.inputs[axis].value = place[axis];
    this.#go();
  }

  #go() {
    const before = location.hash;
    const query = new URLSearchParams({ volume: this.volume.value, ...this.#place() });
    history.replaceState(null, "", `#crop?${query}`);
    if (before !== location.hash || !this.#crop) this.#read();
  }

  async #read() {
    const [volume, place, model] = [this.volume.value, this.#place(), this.app.model];
    this.message.textContent = "";
    try {
      const read = await this.#latest.run(async (signal) => ({
        crop: await askArray("crop", { query: { volume, ...place, model: model.name }, signal }), signal }));
      if (!read) return;
      const about = this.#about;
      const box = model.crop_zyx.map((size, i) => size * (about && Math.abs(model.voxel_um[i] / about.voxel_um[i] - 1) > 0.05
        ? model.voxel_um[i] / about.voxel_um[i] : 1));
      if (about) this.surroundings.show(volume, about, place, box, model.name).catch((problem) => { this.message.textContent = problem.message; });
      await this.#present(read.crop, read.signal, {
        Volume: volume,
        "Centre, voxels": `z ${shown(place.z)}, y ${shown(place.y)}, x ${shown(place.x)}`,
        "Centre, µm": about && ["z", "y", "x"].map((axis, i) => `${axis} ${shown(place[axis] * about.voxel_um[i])}`).join(", "),
        Marker: about?.marker ?? undefined,
      }, { volume, ...place });
    } catch (problem) {
      this.message.textContent = problem.message;
      announce(problem.message);
    }
  }

  #strip(crop, label) {
    return strip(crop, label, [], { own: this.own });
  }

  async #upload() {
    const [file] = this.file.files;
    if (!file) return;
    try {
      this.held = { ...parse(await file.arrayBuffer()), name: file.name };
      this.which.value = 0;
      await this.#fromFile();
    } catch (problem) {
      this.held = null;
      this.message.textContent = problem.message;
      announce(problem.message);
    }
  }

  async #fromFile() {
    const { held, app: { model } } = this;
    if (!held) return;
    const size = held.shape.slice(-3);
    const many = held.shape.slice(0, -3).reduce((a, b) => a * b, 1);
    if (size.join() !== model.crop_zyx.join()) {
      throw new Error(`${held.name} has shape ${held.shape.join(" × ")}; ${model.name} takes crops of ${model.crop_zyx.join(" × ")} (z × y × x)`);
    }
    const number = Math.min(many - 1, Math.max(0, Math.round(this.which.value)));
    this.which.max = many - 1;
    const [low, high] = this.window.map((input) => (input.value === "" ? NaN : Number(input.value)));
    const raw = !held.type.includes("f");
    this.ofFile.hidden = !raw && many === 1;
    this.window[0].closest(".field").hidden = !raw;
    this.message.textContent = "";
    if (raw && !(low < high)) {
      this.message.textContent = `${held.name} holds ${held.type.includes("u") ? "raw integers" : "integers"}: give the window of its volume, low and high.`;
      return announce(this.message.textContent);
    }
    const crop = cropOf(held, number);
    const scale = raw ? (value) => Math.min(1, Math.max(0, (value - low) / (high - low))) : (value) => value;
    crop.data = Float32Array.from(crop.data, scale);
    const about = { File: held.name, Crop: many > 1 ? `${number} of ${many}, counted from 0` : undefined };
    await this.#latest.run((signal) => this.#present(crop, signal, about)).catch((problem) => {
      this.message.textContent = problem.message;
      announce(problem.message);
    });
  }

  /** Everything that is told of a crop; what fails says so in its own place. */
  async #present(crop, signal, about, place = null) {
    this.#crop = crop;
    const { model } = this.app;
    const [planes, rows, columns] = crop.shape;
    const [least, most] = crop.data.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
    byId("strip").replaceChildren(
      scrolling("All planes of the crop", this.#strip(crop, `Crop of ${planes} planes of ${rows} × ${columns} voxels, side by side`),
        scaleBar(this.app.model.voxel_um[2], columns)),
      h("label", { class: "inline" }, h("input", { type: "checkbox", checked: this.own, on: { change: ({ target }) => {
        this.own = target.checked;
        byId("strip").querySelector("canvas.strip").replaceWith(this.#strip(crop, "Crop, planes side by side"));
      } } }), h("span", { text: "Contrast of this crop alone" })),
      facts({ ...about, "Values after the window": `${shown(least)} to ${shown(most)}` }),
      h("div", { class: "row" }, button("Download as .npy", () =>
        download(new Blob([dump(crop.data, [1, ...crop.shape])]), "crop.npy"))));
    this.reconstruction.show(crop);
    const embedding = byId("embedding");
    const near = byId("near");
    const npy = dump(crop.data, [1, ...crop.shape]);
    try {
      const vector = await askArray("embed", { npy, query: { model: model.name }, signal });
      embedding.replaceChildren(barcode(vector.data), facts(summary(vector.data, model)));
      const scores = await refinerScores(this.app, npy, place, signal);
      if (scores) embedding.querySelector("dl").prepend(...scores.children);
    } catch (problem) {
      if (problem.name === "AbortError") throw problem;
      notice(embedding, problem.message, "problem");
      return notice(near, "There is no embedding to search by.");
    }
    await this.#neighbours(near, npy, signal, embedding);
    announce("crop shown");
  }

  async #neighbours(near, npy, signal, embedding) {
    const { indexes } = this.app;
    if (!indexes.length) return notice(near, "No index of this model is served: start with --index NAME=cells.index.");
    const chosen = indexes.includes(this.index) ? this.index : indexes[0];
    try {
      const found = await askJson("search", { npy, signal, query: { index: chosen, k: 12, thumbnails: true } });
      const open = (cell) => cell.volume && this.app.go("crop", { volume: cell.volume, z: cell.z, y: cell.y, x: cell.x });
      near.replaceChildren(
        indexes.length > 1 ? field("Index", select(indexes, chosen, (name) => {
          this.index = name;
          this.#neighbours(near, npy, signal, null);
        })) : "",
        gallery(chosen, found.hits, open, "Nearest cells"));
      if (found.novelty && embedding) {
        embedding.querySelector("dl")?.append(...facts({ [`Novelty beside ${chosen}`]: `${shown(found.novelty[0])}, where .5 is an ordinary cell and 1 like nothing seen` }).children);
      }
    } catch (problem) {
      if (problem.name === "AbortError") throw problem;
      notice(near, problem.message, "problem");
    }
  }
}
