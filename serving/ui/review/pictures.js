// Crops as pictures: all planes and three projections, grey by black and white levels of the volume's window.

import { h } from "../shared/dom.js";

/** Levels in units of the window: 0 and 1 are its ends. */
export class Contrast {
  constructor(window) {
    [this.low, this.high] = window;
    this.black = 0;
    this.white = 1;
    this.fit = false;
  }

  /** A function from voxel to grey, for a crop. */
  grey(data) {
    const unit = this.high - this.low || 1;
    let [black, white] = [this.low + this.black * unit, this.low + this.white * unit];
    if (this.fit) {
      const sorted = Float32Array.from(data).sort();
      black = sorted[Math.floor(0.05 * (sorted.length - 1))];
      white = sorted[Math.floor(0.998 * (sorted.length - 1))];
    }
    const range = Math.max(white - black, 1e-9);
    return (value) => Math.min(255, Math.max(0, (255 * (value - black)) / range));
  }
}

/** A canvas of `columns` × `rows` values, `zoom` pixels wide and `tall` pixels high for each. */
export function picture(values, rows, columns, grey, label, zoom = 1, tall = zoom) {
  const canvas = h("canvas", { class: "picture-of", width: Math.round(columns * zoom), height: Math.round(rows * tall), role: "img", "aria-label": label });
  const image = new ImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) {
    const value = grey(values[i]);
    image.data.set([value, value, value, 255], 4 * i);
  }
  const small = new OffscreenCanvas(columns, rows);
  small.getContext("2d").putImageData(image, 0, 0);
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = false;
  pen.drawImage(small, 0, 0, canvas.width, canvas.height);
  return canvas;
}

/** Ticks at the edges that point at the middle, where the candidate is, without covering it. */
export function pointAtMiddle(canvas, row, rows, column, columns) {
  const pen = canvas.getContext("2d");
  const [x, y] = [((column + 0.5) / columns) * canvas.width, ((row + 0.5) / rows) * canvas.height];
  const length = Math.min(canvas.width, canvas.height) * 0.07;
  pen.strokeStyle = "#ffd60a";
  pen.lineWidth = Math.max(1.5, canvas.width / 140);
  for (const [fromX, fromY, toX, toY] of [[x, 0, x, length], [x, canvas.height, x, canvas.height - length], [0, y, length, y], [canvas.width, y, canvas.width - length, y]]) {
    pen.beginPath();
    pen.moveTo(fromX, fromY);
    pen.lineTo(toX, toY);
    pen.stroke();
  }
  return canvas;
}

/** The largest values along an axis of a crop (z, y, x): {values, rows, columns}. */
export function projection({ data, shape: [planes, rows, columns] }, axis) {
  const size = [[rows, columns], [planes, columns], [planes, rows]][axis];
  const values = new Float32Array(size[0] * size[1]).fill(-Infinity);
  for (let z = 0; z < planes; z++) {
    for (let y = 0; y < rows; y++) {
      for (let x = 0; x < columns; x++) {
        const at = [y * columns + x, z * columns + x, z * rows + y][axis];
        const value = data[(z * rows + y) * columns + x];
        if (value > values[at]) values[at] = value;
      }
    }
  }
  return { values, rows: size[0], columns: size[1] };
}

/** Three projections of a crop in their true proportions. */
export function projections(crop, contrast, voxelUm, wide = 280) {
  const [planes, rows, columns] = crop.shape;
  const grey = contrast.grey(crop.data);
  const zoom = wide / columns;
  const tall = (zoom * voxelUm[0]) / voxelUm[2];
  const middle = [planes >> 1, rows >> 1, columns >> 1];
  const um = `${Math.round(columns * voxelUm[2])} µm wide`;
  return [
    [`from above (x →, y ↓), ${um}`, 0, zoom, (zoom * voxelUm[1]) / voxelUm[2], middle[1], middle[2]],
    ["from the front (x →, z ↓)", 1, zoom, tall, middle[0], middle[2]],
    ["from the side (y →, z ↓)", 2, zoom, tall, middle[0], middle[1]],
  ].map(([name, axis, across, down, row, column]) => {
    const found = projection(crop, axis);
    const canvas = picture(found.values, found.rows, found.columns, grey, `Brightest voxels ${name}`, across, down);
    return h("figure", {}, pointAtMiddle(canvas, row, found.rows, column, found.columns), h("figcaption", { text: name }));
  });
}

/** Every plane of a crop, that of the candidate marked. */
export function planes(crop, contrast, zoom = 5) {
  const [count, rows, columns] = crop.shape;
  const grey = contrast.grey(crop.data);
  return Array.from({ length: count }, (_, z) => {
    const values = crop.data.subarray(z * rows * columns, (z + 1) * rows * columns);
    const step = z - (count >> 1);
    const name = step === 0 ? "its plane" : `${step > 0 ? "+" : "−"}${Math.abs(step)}`;
    return h("figure", { class: step === 0 ? "centre" : undefined },
      picture(values, rows, columns, grey, `Plane ${z + 1} of ${count}${step === 0 ? ", the candidate's own" : ""}`, zoom),
      h("figcaption", { text: name }));
  });
}
