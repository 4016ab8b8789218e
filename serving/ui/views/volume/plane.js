// A plane of a volume on a canvas: tiles of the fitting level, cells over them, a scale bar; pan, zoom and z.

import { css, onScale } from "../../shared/colours.js";
import { announce, h } from "../../shared/dom.js";
import { Tiles } from "./tiles.js";

const LENGTHS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000];
const MOST_CIRCLES = 4000; // in view; beyond they are small squares

export class Plane {
  #frame = 0;
  #drag = null;

  /** `moved()` after a move, `clicked(place)` for a click, `failed(sentence)` where a tile does not come. */
  constructor({ moved, clicked, failed }) {
    Object.assign(this, { moved, clicked, depth: 10, threshold: -Infinity, cells: null, chosen: null, window: null });
    this.tiles = new Tiles((problem) => { if (problem) failed(problem.message); this.draw(); });
    this.canvas = h("canvas", {
      class: "points", tabIndex: 0, role: "application", "aria-roledescription": "plane of the volume", "aria-label": "Volume",
      "aria-describedby": "volume-help",
      on: {
        pointerdown: (event) => this.#down(event), pointermove: (event) => this.#move(event), pointerup: (event) => this.#up(event),
        pointercancel: () => { this.#drag = null; }, wheel: (event) => this.#wheel(event), keydown: (event) => this.#key(event),
      },
    });
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  /** Show a volume: as much of it around a bright place as fits, and no void beside it where that can be. */
  show(pyramid) {
    this.tiles.forget();
    this.pyramid = pyramid;
    [this.shape, this.voxel] = [pyramid.levels[0].shape_zyx, pyramid.levels[0].voxel_um];
    const [z, y, x] = pyramid.start_zyx;
    const wide = Math.max(this.shape[1] * this.voxel[1], this.shape[2] * this.voxel[2]);
    this.scale = Math.max((this.canvas.clientWidth || 800) / wide, 0.35 / this.voxel[2]); // pixels a µm
    const inside = (at, size, pixels, um) => {
      const half = pixels / 2 / this.scale / um;
      return Math.round(2 * half >= size ? (size - 1) / 2 : Math.min(size - half, Math.max(half, at)) - 0.5);
    };
    this.place = {
      z,
      y: inside(y + 0.5, this.shape[1], this.canvas.clientHeight || 600, this.voxel[1]),
      x: inside(x + 0.5, this.shape[2], this.canvas.clientWidth || 800, this.voxel[2]),
    };
    this.draw();
  }

  goTo(place, scale) {
    for (const [i, axis] of ["z", "y", "x"].entries()) {
      this.place[axis] = Math.min(this.shape[i] - 1, Math.max(0, place[axis] ?? this.place[axis]));
    }
    this.place.z = Math.round(this.place.z);
    if (scale) this.scale = Math.min(40 / this.voxel[2], Math.max(scale, this.#leastScale()));
    this.moved();
    this.draw();
  }

  zoom(factor, at = null) {
    const before = this.scale;
    this.scale = Math.min(40 / this.voxel[2], Math.max(before * factor, this.#leastScale()));
    const share = 1 - before / this.scale;
    if (at) this.goTo({ y: this.place.y + (at.y - this.place.y) * share, x: this.place.x + (at.x - this.place.x) * share });
    else this.goTo({});
  }

  /** The box in view, in voxels of level 0, as deep as the cells that are shown. */
  box() {
    const half = [this.depth / this.voxel[0], this.canvas.clientHeight / 2 / this.scale / this.voxel[1], this.canvas.clientWidth / 2 / this.scale / this.voxel[2]];
    const centre = [this.place.z, this.place.y, this.place.x];
    return [
      ...centre.map((at, i) => Math.max(0, Math.floor(at - half[i]))),
      ...centre.map((at, i) => Math.min(this.shape[i], Math.ceil(at + half[i]) + 1)),
    ];
  }

  draw() {
    if (!this.#frame) this.#frame = requestAnimationFrame(() => { this.#frame = 0; this.#paint(); });
  }

  /** No further out than 60 tiles of the coarsest level need. */
  #leastScale() {
    const coarse = this.pyramid.levels.at(-1);
    const side = Math.max(coarse.shape_zyx[1] * coarse.voxel_um[1], coarse.shape_zyx[2] * coarse.voxel_um[2]);
    return Math.max(this.canvas.clientWidth / side / 3, this.canvas.clientWidth / (7 * this.pyramid.side * coarse.voxel_um[2]));
  }

  #paint() {
    const { canvas } = this;
    const ratio = devicePixelRatio || 1;
    const [wide, high] = [canvas.clientWidth, canvas.clientHeight];
    if (!this.pyramid || !wide) return;
    if (canvas.width !== Math.round(wide * ratio) || canvas.height !== Math.round(high * ratio)) {
      [canvas.width, canvas.height] = [Math.round(wide * ratio), Math.round(high * ratio)];
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.fillStyle = "#1b222a";
    pen.fillRect(0, 0, wide, high);
    pen.imageSmoothingEnabled = this.scale * this.voxel[2] < 2;
    const best = this.pyramid.levels.findLastIndex((level) => level.voxel_um[2] * this.scale <= 1.01);
    this.tiles.begin();
    for (let level = this.pyramid.levels.length - 1; level >= Math.max(0, best); level--) this.#paintLevel(pen, level, wide, high, level === Math.max(0, best));
    this.tiles.fetch();
    this.#paintCells(pen, wide, high);
    this.#paintScale(pen, high);
    canvas.setAttribute("aria-label", `Plane z ${this.place.z} of ${this.pyramid.volume} around y ${Math.round(this.place.y)}, x ${Math.round(this.place.x)}`);
  }

  #paintLevel(pen, number, wide, high, wanted) {
    const { shape_zyx: shape, voxel_um: voxel } = this.pyramid.levels[number];
    const { side, volume } = this.pyramid;
    const z = Math.min(shape[0] - 1, Math.floor(((this.place.z + 0.5) * this.voxel[0]) / voxel[0]));
    const [left, top] = [wide / 2 - (this.place.x + 0.5) * this.voxel[2] * this.scale, high / 2 - (this.place.y + 0.5) * this.voxel[1] * this.scale];
    const [stepX, stepY] = [side * voxel[2] * this.scale, side * voxel[1] * this.scale];
    const range = (start, step, length, count) => [Math.max(0, Math.floor(-start / step)), Math.min(Math.ceil(count / side) - 1, Math.floor((length - start) / step))];
    const [columns, rows] = [range(left, stepX, wide, shape[2]), range(top, stepY, high, shape[1])];
    if ((columns[1] - columns[0] + 1) * (rows[1] - rows[0] + 1) > 150) return;
    for (let row = rows[0]; row <= rows[1]; row++) {
      for (let column = columns[0]; column <= columns[1]; column++) {
        const picture = this.tiles.get({ volume, level: number, z, row, column, window: this.window?.join(",") }, wanted);
        if (picture) {
          pen.drawImage(picture, left + column * stepX, top + row * stepY, picture.width * voxel[2] * this.scale, picture.height * voxel[1] * this.scale);
        }
      }
    }
  }

  #at(row, wide, high) {
    return [
      wide / 2 + (this.cells.x[row] - this.place.x) * this.voxel[2] * this.scale,
      high / 2 + (this.cells.y[row] - this.place.y) * this.voxel[1] * this.scale,
    ];
  }

  #paintCells(pen, wide, high) {
    if (!this.cells) return;
    const deep = this.depth / this.voxel[0];
    const inside = [];
    for (const row of this.cells.between(this.place.z - deep, this.place.z + deep)) {
      if (!this.cells.isKept(row, this.threshold)) continue;
      const [x, y] = this.#at(row, wide, high);
      if (x > -9 && y > -9 && x < wide + 9 && y < high + 9) inside.push([row, x, y]);
    }
    const radius = Math.min(9, Math.max(4, 5 * this.scale));
    for (const [row, x, y] of inside) {
      const colour = css(onScale(this.cells.share(row), "dark"));
      if (inside.length > MOST_CIRCLES) {
        pen.fillStyle = colour;
        pen.fillRect(x - 1.5, y - 1.5, 3, 3);
        continue;
      }
      pen.beginPath();
      pen.arc(x, y, radius, 0, 7);
      pen.lineWidth = 4;
      pen.strokeStyle = "rgb(0 0 0 / .55)";
      pen.stroke();
      pen.lineWidth = 2.2;
      pen.strokeStyle = row === this.chosen ? "#ffd60a" : colour;
      pen.stroke();
    }
    this.shown = inside.length;
  }

  #paintScale(pen, high) {
    const length = LENGTHS.findLast((each) => each * this.scale < 160) ?? LENGTHS[0];
    pen.fillStyle = "rgb(0 0 0 / .5)";
    pen.fillRect(10, high - 40, length * this.scale + 16, 32);
    pen.fillStyle = "#fff";
    pen.fillRect(18, high - 18, length * this.scale, 4);
    pen.font = "13px system-ui, sans-serif";
    pen.fillText(length < 1000 ? `${length} µm` : `${length / 1000} mm`, 18, high - 23);
  }

  #place(event) {
    const box = this.canvas.getBoundingClientRect();
    return {
      z: this.place.z,
      y: this.place.y + (event.clientY - box.top - box.height / 2) / this.scale / this.voxel[1],
      x: this.place.x + (event.clientX - box.left - box.width / 2) / this.scale / this.voxel[2],
    };
  }

  #down(event) {
    if (!this.pyramid || event.button) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.#drag = { x: event.clientX, y: event.clientY, start: { ...this.place }, far: false };
  }

  #move(event) {
    if (!this.#drag) return;
    const [dx, dy] = [event.clientX - this.#drag.x, event.clientY - this.#drag.y];
    this.#drag.far ||= Math.hypot(dx, dy) > 4;
    if (this.#drag.far) {
      this.goTo({ y: this.#drag.start.y - dy / this.scale / this.voxel[1], x: this.#drag.start.x - dx / this.scale / this.voxel[2] });
    }
  }

  #up(event) {
    const drag = this.#drag;
    this.#drag = null;
    if (drag && !drag.far) this.clicked(this.#place(event));
  }

  #wheel(event) {
    if (!this.pyramid) return;
    event.preventDefault();
    if (event.shiftKey) this.goTo({ z: this.place.z + Math.sign(event.deltaY || event.deltaX) });
    else this.zoom(Math.exp(-event.deltaY / 400), this.#place(event));
  }

  #key(event) {
    if (!this.pyramid || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = (event.shiftKey ? 10 : 80) / this.scale;
    const [down, right] = [step / this.voxel[1], step / this.voxel[2]];
    const act = {
      ArrowUp: () => this.goTo({ y: this.place.y - down }), ArrowDown: () => this.goTo({ y: this.place.y + down }),
      ArrowLeft: () => this.goTo({ x: this.place.x - right }), ArrowRight: () => this.goTo({ x: this.place.x + right }),
      PageUp: () => this.goTo({ z: this.place.z - 1 }), PageDown: () => this.goTo({ z: this.place.z + 1 }),
      "+": () => this.zoom(1.5), "=": () => this.zoom(1.5), "-": () => this.zoom(1 / 1.5), Enter: () => this.clicked({ ...this.place }),
    }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
    announce(`z ${this.place.z}, y ${Math.round(this.place.y)}, x ${Math.round(this.place.x)}`);
  }
}
