// The map as a picture to handle: pan, zoom, hover, click, lasso, by pointer and by keys.

import { h } from "../../shared/dom.js";
import { SpatialGrid } from "./spatial_grid.js";
import { cross, outline, ring } from "./draw_markers.js";
import { renderer } from "./scatter.js";

const REACH = 9; // pixels from a point within which it is meant

/**
 * Events: `hover` (detail: index or -1), `open` (index), `select` ({indices, how}), `say` (a sentence).
 * `points(xy)` gives the places, `paint(rgba, front, visible)` their looks.
 */
export class Plot extends EventTarget {
  #pointers = new Map();
  #lasso = null; // corners in data coordinates while one is drawn
  #cursor = null; // the cross-hairs of the keyboard, in pixels
  #wanted = false;
  #hovered = -1;

  constructor(box, describedBy) {
    super();
    this.box = box;
    this.canvas = h("canvas", {
      class: "points", tabIndex: 0, role: "application", "aria-roledescription": "scatter plot",
      "aria-label": "Map of the embeddings", "aria-describedby": describedBy,
    });
    this.over = h("canvas", { class: "over", "aria-hidden": "true" });
    this.tip = h("div", { class: "tip", hidden: true, "aria-hidden": "true" });
    box.replaceChildren(this.canvas, this.over, this.tip);
    this.draws = renderer(this.canvas);
    this.canvas.dataset.renderer = this.draws.name;
    this.tool = "pan";
    this.size = 1;
    this.view = { cx: 0, cy: 0, scale: 1 };
    this.visible = () => true;
    new ResizeObserver(() => this.#resized()).observe(box);
    this.#listen();
  }

  points(xy) {
    this.xy = xy;
    this.grid = new SpatialGrid(xy);
    this.draws.points(xy);
    this.#hovered = -1;
    this.#lasso = this.#cursor = null;
    this.canvas.dataset.cells = xy.length / 2;
    this.fit();
  }

  paint(rgba, front, visible) {
    this.draws.colours(rgba, front);
    this.visible = visible;
    this.redraw();
  }

  /** The whole map in view. */
  fit() {
    const { left, right, bottom, top } = this.grid.bounds;
    const { width, height } = this.#room();
    this.view = {
      cx: (left + right) / 2, cy: (bottom + top) / 2,
      scale: 0.94 * Math.min(width / (right - left || 1), height / (top - bottom || 1)),
    };
    this.fitted = this.view.scale;
    this.redraw();
  }

  zoom(factor, x = this.#room().width / 2, y = this.#room().height / 2) {
    const [dataX, dataY] = this.toData(x, y);
    const scale = Math.min(this.fitted * 2000, Math.max(this.fitted / 4, this.view.scale * factor));
    const { width, height } = this.#room();
    this.view = { scale, cx: dataX - (x - width / 2) / scale, cy: dataY + (y - height / 2) / scale };
    this.redraw();
  }

  pan(dx, dy) {
    this.view.cx -= dx / this.view.scale;
    this.view.cy += dy / this.view.scale;
    this.redraw();
  }

  /** Turn to another tool, `pan` or `lasso`. */
  take(tool) {
    this.tool = tool;
    this.#lasso = null;
    this.canvas.classList.toggle("drawing", tool === "lasso");
    this.redraw();
  }

  toData(x, y) {
    const { width, height } = this.#room();
    return [this.view.cx + (x - width / 2) / this.view.scale, this.view.cy - (y - height / 2) / this.view.scale];
  }

  toPixels(dataX, dataY) {
    const { width, height } = this.#room();
    return [(dataX - this.view.cx) * this.view.scale + width / 2, height / 2 - (dataY - this.view.cy) * this.view.scale];
  }

  /** Draw with the next frame, however often it is asked for until then. */
  redraw() {
    if (this.#wanted || !this.grid) return;
    this.#wanted = true;
    requestAnimationFrame(() => {
      this.#wanted = false;
      this.#draw();
    });
  }

  get radius() {
    const count = this.xy.length / 2;
    const usual = count > 50_000 ? 1.3 : count > 10_000 ? 1.8 : count > 2000 ? 2.6 : 3.6;
    return Math.min(9, this.size * usual * Math.max(1, (this.view.scale / this.fitted) ** 0.35));
  }

  #room() {
    const { width, height } = this.canvas.getBoundingClientRect(); // with fractions, unlike clientWidth
    return { width: width || 1, height: height || 1 };
  }

  #resized() {
    const { width, height } = this.#room();
    this.ratio = Math.min(2, devicePixelRatio || 1);
    for (const canvas of [this.canvas, this.over]) {
      canvas.width = Math.round(width * this.ratio);
      canvas.height = Math.round(height * this.ratio);
    }
    if (this.grid && this.view.scale === this.fitted) this.fit();
    else this.redraw();
  }

  #draw() {
    const { cx, cy, scale } = this.view;
    this.draws.draw({ cx, cy, scale, radius: this.radius, ratio: this.ratio });
    Object.assign(this.canvas.dataset, { view: [cx, cy, scale].join(), frames: Number(this.canvas.dataset.frames ?? 0) + 1 });
    const pen = this.over.getContext("2d");
    pen.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    pen.clearRect(0, 0, this.over.width, this.over.height);
    const ink = getComputedStyle(this.box).color;
    const at = (i) => this.toPixels(this.xy[2 * i], this.xy[2 * i + 1]);
    if (this.#hovered >= 0) ring(pen, ink, at(this.#hovered), this.radius + 3, 2);
    if (this.marked >= 0) ring(pen, ink, at(this.marked), this.radius + 6, 2.5);
    if (this.#lasso) outline(pen, ink, this.#lasso.map((place) => this.toPixels(...place)), this.#cursor);
    if (this.#cursor) cross(pen, ink, this.#cursor);
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  #listen() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#moved(event));
    canvas.addEventListener("pointerup", (event) => this.#up(event));
    canvas.addEventListener("pointercancel", (event) => { this.#pointers.delete(event.pointerId); this.#lasso = null; this.redraw(); });
    canvas.addEventListener("pointerleave", () => this.#hover(-1));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), ...this.#place(event));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.#pressed(event));
    canvas.addEventListener("blur", () => { this.#cursor = null; this.redraw(); });
  }

  /** Where an event happened, in pixels of the map; the event's own offsets are rounded. */
  #place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  #down(event) {
    if (event.button) return;
    this.canvas.setPointerCapture(event.pointerId);
    const [x, y] = this.#place(event);
    this.#pointers.set(event.pointerId, { x, y, far: 0 });
    this.#cursor = null;
    const draws = this.#pointers.size === 1 && (this.tool === "lasso" || event.shiftKey);
    this.#lasso = draws ? [this.toData(x, y)] : null;
  }

  #moved(event) {
    const held = this.#pointers.get(event.pointerId);
    const [x, y] = this.#place(event);
    if (!held) return this.#hover(this.#at(x, y));
    const [dx, dy] = [x - held.x, y - held.y];
    if (this.#lasso) {
      // A frame brings one event for all that a quick hand did since the last one.
      const all = event.getCoalescedEvents?.() ?? [];
      for (const each of all.length ? all : [event]) this.#lasso.push(this.toData(...this.#place(each)));
      this.redraw();
    } else if (this.#pointers.size === 2) {
      const other = [...this.#pointers].find(([id]) => id !== event.pointerId)[1];
      const [before, after] = [Math.hypot(held.x - other.x, held.y - other.y), Math.hypot(x - other.x, y - other.y)];
      this.pan(dx / 2, dy / 2);
      this.zoom(after / (before || 1), (x + other.x) / 2, (y + other.y) / 2);
    } else if (held.far + Math.hypot(dx, dy) > 3 || held.far > 3) {
      this.pan(dx, dy);
    } else {
      return; // not yet a drag: a hand trembles
    }
    Object.assign(held, { x, y, far: held.far + Math.hypot(dx, dy) });
  }

  #up(event) {
    const held = this.#pointers.get(event.pointerId);
    this.#pointers.delete(event.pointerId);
    if (!held) return;
    const lasso = this.#lasso;
    this.#lasso = null;
    if (lasso && lasso.length > 2) return this.#close(lasso);
    this.redraw();
    const found = this.#at(...this.#place(event));
    if (held.far <= 3 && found >= 0) this.#tell("open", found);
  }

  #close(lasso) {
    this.#tell("select", { indices: this.grid.inside(lasso, this.visible), how: "lasso" });
    this.redraw();
  }

  #at(x, y, reach = Math.max(REACH, this.radius + 3)) {
    if (!this.grid) return -1;
    return this.grid.nearest(...this.toData(x, y), reach / this.view.scale, this.visible);
  }

  #hover(index) {
    if (index === this.#hovered) return;
    this.#hovered = index;
    this.#tell("hover", index);
    this.redraw();
  }

  /** Put the tip beside a point; null takes it away. */
  showTip(index, content) {
    this.tip.hidden = !content;
    if (!content) return;
    this.tip.replaceChildren(content);
    const [x, y] = this.toPixels(this.xy[2 * index], this.xy[2 * index + 1]);
    const { width, height } = this.#room();
    this.tip.style.left = `${Math.min(x + 14, width - this.tip.offsetWidth - 6)}px`;
    this.tip.style.top = `${Math.max(6, Math.min(y + 14, height - this.tip.offsetHeight - 6))}px`;
  }

  #pressed(event) {
    if (!this.grid || event.ctrlKey || event.metaKey || event.altKey) return;
    const { width, height } = this.#room();
    const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const arrow = arrows[event.key];
    this.#cursor ??= [width / 2, height / 2];
    const [x, y] = this.#cursor;
    const key = event.key.toLowerCase();
    if (arrow && event.shiftKey) this.pan(-60 * arrow[0], -60 * arrow[1]);
    else if (arrow) this.#steer(x + 12 * arrow[0], y + 12 * arrow[1]);
    else if (key === "+" || key === "=") this.zoom(1.4, x, y);
    else if (key === "-") this.zoom(1 / 1.4, x, y);
    else if (key === "0") this.fit();
    else if (key === "n") this.#jump();
    else if (key === "l") this.#corner();
    else if (key === "a") this.#all();
    else if (key === "enter" || key === " ") this.#enter();
    else if (key === "escape") this.#giveUp();
    else return;
    event.preventDefault();
    this.redraw();
  }

  /** The cross-hairs, and the map under them where they reach the border. */
  #steer(x, y) {
    const { width, height } = this.#room();
    const held = [Math.min(width - 20, Math.max(20, x)), Math.min(height - 20, Math.max(20, y))];
    this.pan(held[0] - x, held[1] - y);
    this.#cursor = held;
    const found = this.#at(...held, 16);
    this.#hover(found);
    this.#tell("cursor", found);
  }

  #jump() {
    const { width, height } = this.#room();
    const found = this.#at(...this.#cursor, Math.max(width, height));
    if (found < 0) return this.#tell("say", "no cell in view");
    this.#cursor = this.toPixels(this.xy[2 * found], this.xy[2 * found + 1]);
    this.#hover(found);
    this.#tell("cursor", found);
  }

  #corner() {
    this.#lasso ??= [];
    this.#lasso.push(this.toData(...this.#cursor));
    this.#tell("say", `lasso: corner ${this.#lasso.length}` + (this.#lasso.length > 2 ? ", Enter closes it" : ""));
  }

  #enter() {
    const lasso = this.#lasso;
    if (lasso && lasso.length > 2) {
      this.#lasso = null;
      return this.#close(lasso);
    }
    const found = this.#at(...this.#cursor, 16);
    if (found >= 0) this.#tell("open", found);
    else this.#tell("say", "no cell at the cross-hairs");
  }

  #all() {
    const { width, height } = this.#room();
    const corners = [[0, 0], [width, 0], [width, height], [0, height]].map(([x, y]) => this.toData(x, y));
    this.#tell("select", { indices: this.grid.inside(corners, this.visible), how: "view" });
  }

  #giveUp() {
    if (this.#lasso) this.#tell("say", "lasso given up");
    this.#lasso = this.#cursor = null;
    this.#hover(-1);
  }
}
