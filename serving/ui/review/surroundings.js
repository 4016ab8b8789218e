// The surroundings of a candidate: one plane, other candidates, and cells that were missed.

import { askArray, askJson, Latest } from "../shared/api.js";
import { announce, byId, settled, shown } from "../shared/dom.js";

// Told apart by dashes too, for those who do not see green and red as two colours.
const DASHES = { 0: [4, 3], "-1": [1.5, 3] };
const COLOURS = { 1: "#35c46a", 0: "#ff6b5e", "-1": "#ffb454" };

export class Around {
  #latest = new Latest();
  #points = { candidates: [], missed: [] };
  #plane = null;

  constructor(about, contrast, failed, identity) {
    Object.assign(this, { about, contrast, failed, identity, open: false });
    this.canvas = byId("around-canvas");
    this.slider = byId("around-z");
    this.slider.max = about.shape_zyx[0] - 1;
    this.slider.min = 0;
    byId("around-open").addEventListener("click", () => this.toggle(true));
    byId("around-close").addEventListener("click", () => this.toggle(false));
    byId("around-add").addEventListener("click", () => this.addAtCross());
    const read = settled(() => this.#read(), 60);
    this.slider.addEventListener("input", () => { this.place[0] = Number(this.slider.value); this.#say(); read(); });
    this.canvas.addEventListener("click", (event) => {
      const box = this.canvas.getBoundingClientRect();
      const across = ((event.clientX - box.left) / box.width) * about.plane;
      const down = ((event.clientY - box.top) / box.height) * about.plane;
      this.cross = [Math.floor(down), Math.floor(across)];
      this.addAtCross();
    });
    this.canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  toggle(open = !this.open) {
    this.open = open;
    byId("around").hidden = !open;
    byId("around-closed").hidden = open;
    if (open && this.centre) this.show(this.centre, this.box);
    announce(open ? "surroundings shown" : "surroundings hidden");
  }

  /** Show a candidate's surroundings, where they are open. */
  show(zyx, box = null) {
    this.centre = zyx;
    this.box = box;
    [this.slider.min, this.slider.max] = box ? [box[0], box[3] - 1] : [0, this.about.shape_zyx[0] - 1];
    if (!this.open) return;
    this.place = [...zyx];
    this.slider.value = Math.round(zyx[0]);
    this.cross = [this.about.plane >> 1, this.about.plane >> 1];
    this.#say();
    this.#read();
  }

  redraw() {
    if (this.open) this.#draw();
  }

  #say() {
    byId("around-z-shown").textContent = shown(Math.round(this.place[0]));
    this.canvas.setAttribute("aria-label", `Plane ${Math.round(this.place[0])} around the candidate; ${this.#points.candidates.length} candidates and ${this.#points.missed.length} missed cells near it`);
  }

  async #read() {
    const [z, y, x] = this.place;
    const query = { z: Math.round(z), y: Math.round(y), x: Math.round(x) };
    try {
      await this.#latest.run(async (signal) => {
        const [plane, points] = await Promise.all([askArray("review/plane", { query, signal }), askJson("review/near", { query, signal })]);
        [this.#plane, this.#points] = [plane, points];
        this.#say();
        this.#draw();
      });
    } catch (problem) {
      this.failed(problem);
    }
  }

  /** Pixel of a voxel of the plane. */
  #at(zyx) {
    const { plane } = this.about;
    const zoom = this.canvas.width / plane;
    return [zyx[2] - Math.round(this.place[2]), zyx[1] - Math.round(this.place[1])].map((from) => (from + (plane >> 1) + 0.5) * zoom);
  }

  #draw() {
    if (!this.#plane) return;
    const size = this.about.plane;
    const { data } = this.#plane;
    const grey = this.contrast.grey(data);
    const image = new ImageData(size, size);
    for (let i = 0; i < size * size; i++) {
      const value = grey(data[i]);
      image.data.set([value, value, value, 255], 4 * i);
    }
    const small = new OffscreenCanvas(size, size);
    small.getContext("2d").putImageData(image, 0, 0);
    const pen = this.canvas.getContext("2d");
    pen.imageSmoothingEnabled = false;
    pen.drawImage(small, 0, 0, this.canvas.width, this.canvas.height);
    pen.lineWidth = 1.6;
    for (const { zyx, label } of this.#points.candidates) {
      const here = !this.box && zyx.every((value, axis) => value === this.centre[axis]);
      this.#ring(pen, zyx, here ? "#ffd60a" : COLOURS[label] ?? "#9fb4c8", here, here ? [] : DASHES[label] ?? []);
    }
    for (const { zyx } of this.#points.missed) {
      const [x, y] = this.#at(zyx);
      pen.strokeStyle = "#e46bff";
      if (Math.abs(zyx[0] - this.place[0]) <= 2) pen.strokeRect(x - 6, y - 6, 12, 12);
    }
    const zoom = this.canvas.width / size;
    if (this.box) {
      const [left, top] = this.#at([0, this.box[1] - 0.5, this.box[2] - 0.5]);
      pen.strokeStyle = "#ffd60a";
      pen.strokeRect(left, top, (this.box[5] - this.box[2]) * zoom, (this.box[4] - this.box[1]) * zoom);
    }
    const [x, y] = [(this.cross[1] + 0.5) * zoom, (this.cross[0] + 0.5) * zoom];
    pen.strokeStyle = "rgb(255 255 255 / .7)";
    pen.beginPath();
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      pen.moveTo(x + 9 * dx, y + 9 * dy);
      pen.lineTo(x + 15 * dx, y + 15 * dy);
    }
    pen.stroke();
    this.#scaleBar(pen);
  }

  #ring(pen, zyx, colour, here, dashes) {
    const off = Math.abs(zyx[0] - this.place[0]);
    if (off > 4) return;
    const [x, y] = this.#at(zyx);
    pen.globalAlpha = here ? 1 : 1 - off / 6;
    pen.strokeStyle = colour;
    pen.setLineDash(dashes);
    pen.beginPath();
    pen.arc(x, y, here ? 11 : 8, 0, 7);
    pen.stroke();
    pen.setLineDash([]);
    pen.globalAlpha = 1;
  }

  #scaleBar(pen) {
    const pixels = (50 / this.about.voxel_um[2]) * (this.canvas.width / this.about.plane);
    pen.fillStyle = "#fff";
    pen.fillRect(10, this.canvas.height - 14, pixels, 3);
    pen.font = "12px system-ui, sans-serif";
    pen.fillText("50 µm", 10, this.canvas.height - 20);
  }

  #key(event) {
    const steps = { ArrowUp: [-2, 0], ArrowDown: [2, 0], ArrowLeft: [0, -2], ArrowRight: [0, 2] };
    if (event.key in steps) {
      const last = this.about.plane - 1;
      this.cross = this.cross.map((at, axis) => Math.min(last, Math.max(0, at + steps[event.key][axis])));
      this.#draw();
    } else if (event.key === "PageUp" || event.key === "PageDown") {
      this.slider.value = Number(this.slider.value) + (event.key === "PageUp" ? 1 : -1);
      this.slider.dispatchEvent(new Event("input"));
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** Record a missed cell at the cross, or remove the one that is there. */
  async addAtCross() {
    if (!this.open) return announce("show the surroundings first");
    const half = this.about.plane >> 1;
    const zyx = [Math.round(this.place[0]), Math.round(this.place[1]) + this.cross[0] - half, Math.round(this.place[2]) + this.cross[1] - half];
    const near = this.#points.missed.find((cell) => Math.abs(cell.zyx[0] - zyx[0]) <= 2 && Math.hypot(cell.zyx[1] - zyx[1], cell.zyx[2] - zyx[2]) <= 4);
    try {
      await askJson("review/missed", { json: near ? { id: this.identity(), remove: near.id } : { id: this.identity(), zyx } });
      announce(near ? "missed cell removed" : "missed cell added and saved");
      await this.#read();
    } catch (problem) {
      this.failed(problem);
    }
  }
}
