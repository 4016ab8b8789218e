// A place in a volume: a picture of its surroundings that moves by click and by arrow keys.

import { askArray, Latest } from "../../shared/api.js";
import { announce, h } from "../../shared/dom.js";

const SIDE = 256; // voxels, in y and x

/** A square of one plane around a place; `move({z, y, x})` is called with a new place. */
export class Surroundings {
  #latest = new Latest();
  #shown = null;

  constructor(move) {
    this.move = move;
    this.canvas = h("canvas", {
      class: "voxels surroundings", width: SIDE * 2, height: SIDE * 2, tabIndex: 0, role: "application",
      "aria-roledescription": "plane of the volume", "aria-label": "Surroundings",
      "aria-describedby": "surroundings-help",
      on: { click: (event) => this.#clicked(event), keydown: (event) => this.#pressed(event) },
    });
    this.help = h("p", {
      class: "hint", id: "surroundings-help",
      text: "Click to move there. Keys: arrows move by 8 voxels (with Shift by 1), Page Up and Page Down through z.",
    });
  }

  /** Show a place of a volume: `box` is what the crop covers of it, in voxels. */
  async show(volume, about, place, box, model) {
    const crop = await this.#latest.run((signal) => askArray("crop", {
      query: { volume, ...place, size: `1,${SIDE},${SIDE}`, model }, signal,
    }));
    if (!crop) return;
    this.#shown = { about, place };
    const context = this.canvas.getContext("2d");
    const image = new ImageData(SIDE, SIDE);
    for (let i = 0; i < SIDE * SIDE; i++) {
      const grey = 255 * crop.data[i];
      image.data.set([grey, grey, grey, 255], 4 * i);
    }
    const small = new OffscreenCanvas(SIDE, SIDE);
    small.getContext("2d").putImageData(image, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, 2 * SIDE, 2 * SIDE);
    this.#border(context, about.shape_zyx, place);
    context.setLineDash([]);
    context.strokeStyle = "#ffd60a";
    context.lineWidth = 2;
    context.strokeRect(SIDE - box[2], SIDE - box[1], 2 * box[2], 2 * box[1]);
    this.#scale(context, about.voxel_um[2]);
    this.canvas.setAttribute("aria-label",
      `Plane z ${place.z} of ${volume} around y ${place.y}, x ${place.x}; the crop is framed`);
  }

  /** What lies outside the volume is marked, so that it is not taken for dark tissue. */
  #border(context, shape, place) {
    const [top, left] = [SIDE / 2 - Math.round(place.y), SIDE / 2 - Math.round(place.x)];
    context.fillStyle = "rgb(120 130 140 / .45)";
    context.beginPath();
    context.rect(0, 0, 2 * SIDE, 2 * SIDE);
    context.rect(2 * left, 2 * top, 2 * shape[2], 2 * shape[1]);
    context.fill("evenodd");
  }

  #scale(context, voxel) {
    const bar = (2 * 100) / voxel;
    context.fillStyle = "#fff";
    context.fillRect(2 * SIDE - 16 - bar, 2 * SIDE - 20, bar, 5);
    context.font = "20px system-ui, sans-serif";
    context.textAlign = "right";
    context.fillText("100 µm", 2 * SIDE - 16, 2 * SIDE - 28);
  }

  #clicked(event) {
    if (!this.#shown) return;
    const box = this.canvas.getBoundingClientRect();
    const { place } = this.#shown;
    this.#to({
      z: place.z,
      y: place.y + ((event.clientY - box.top) / box.height - 0.5) * SIDE,
      x: place.x + ((event.clientX - box.left) / box.width - 0.5) * SIDE,
    });
  }

  #pressed(event) {
    if (!this.#shown || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = event.shiftKey ? 1 : 8;
    const moves = {
      ArrowUp: [0, -step, 0], ArrowDown: [0, step, 0], ArrowLeft: [0, 0, -step], ArrowRight: [0, 0, step],
      PageUp: [-1, 0, 0], PageDown: [1, 0, 0],
    };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    const { place } = this.#shown;
    this.#to({ z: place.z + move[0], y: place.y + move[1], x: place.x + move[2] });
  }

  #to(place) {
    const shape = this.#shown.about.shape_zyx;
    const held = Object.fromEntries(["z", "y", "x"].map((axis, i) =>
      [axis, Math.min(shape[i] - 1, Math.max(0, Math.round(place[axis])))]));
    this.#shown.place = held;
    announce(`z ${held.z}, y ${held.y}, x ${held.x}`);
    this.move(held);
  }
}
