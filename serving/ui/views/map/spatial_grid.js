// Points in the plane, sorted into squares: the nearest to a place, and those inside an outline, without looking at all.

export class SpatialGrid {
  /** `xy` holds x, y of each point, one after the other. */
  constructor(xy) {
    const count = xy.length / 2;
    let [left, right, bottom, top] = [Infinity, -Infinity, Infinity, -Infinity];
    for (let i = 0; i < count; i++) {
      left = Math.min(left, xy[2 * i]);
      right = Math.max(right, xy[2 * i]);
      bottom = Math.min(bottom, xy[2 * i + 1]);
      top = Math.max(top, xy[2 * i + 1]);
    }
    if (!count) [left, right, bottom, top] = [0, 1, 0, 1];
    this.xy = xy;
    this.bounds = { left, right, bottom, top };
    this.side = Math.max(1, Math.min(1024, Math.ceil(Math.sqrt(count / 2))));
    this.wide = (right - left || 1) / this.side;
    this.high = (top - bottom || 1) / this.side;
    this.starts = new Uint32Array(this.side * this.side + 1);
    for (let i = 0; i < count; i++) this.starts[this.#cell(i) + 1]++;
    for (let c = 0; c < this.side * this.side; c++) this.starts[c + 1] += this.starts[c];
    this.members = new Uint32Array(count);
    const next = this.starts.slice(0, -1);
    for (let i = 0; i < count; i++) this.members[next[this.#cell(i)]++] = i;
  }

  #column = (x) => Math.min(this.side - 1, Math.max(0, Math.floor((x - this.bounds.left) / this.wide)));
  #row = (y) => Math.min(this.side - 1, Math.max(0, Math.floor((y - this.bounds.bottom) / this.high)));
  #cell = (i) => this.#row(this.xy[2 * i + 1]) * this.side + this.#column(this.xy[2 * i]);

  /** The point nearest to (x, y) within `radius` for which `counts(i)` holds, or -1. */
  nearest(x, y, radius, counts = () => true) {
    let best = -1;
    let least = radius * radius;
    this.#within(x - radius, x + radius, y - radius, y + radius, (i) => {
      const distance = (this.xy[2 * i] - x) ** 2 + (this.xy[2 * i + 1] - y) ** 2;
      if (distance <= least && counts(i)) [best, least] = [i, distance];
    });
    return best;
  }

  /** The points inside an outline [[x, y], …] by the even-odd rule, for which `counts(i)` holds, in their order. */
  inside(outline, counts = () => true) {
    const xs = outline.map(([x]) => x);
    const ys = outline.map(([, y]) => y);
    const found = [];
    this.#within(Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys), (i) => {
      if (counts(i) && isInside(this.xy[2 * i], this.xy[2 * i + 1], outline)) found.push(i);
    });
    return Uint32Array.from(found).sort();
  }

  #within(left, right, bottom, top, visit) {
    const { bounds } = this;
    if (right < bounds.left || left > bounds.right || top < bounds.bottom || bottom > bounds.top) return;
    const [first, last] = [this.#column(left), this.#column(right)];
    for (let row = this.#row(bottom); row <= this.#row(top); row++) {
      const begin = this.starts[row * this.side + first];
      const end = this.starts[row * this.side + last + 1];
      for (let place = begin; place < end; place++) visit(this.members[place]);
    }
  }
}

/** Whether a place lies inside an outline: a ray from it to the right crosses the border an odd number of times. */
function isInside(x, y, outline) {
  let odd = false;
  for (let a = 0, b = outline.length - 1; a < outline.length; b = a++) {
    const [ax, ay] = outline[a];
    const [bx, by] = outline[b];
    if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) odd = !odd;
  }
  return odd;
}
