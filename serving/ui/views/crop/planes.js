// Crops as pictures: all planes side by side, and the paper's four rows with dotted borders around what was hidden.

import { h } from "../../shared/dom.js";

const ZOOM = 4; // pixels of the picture for a voxel, so that borders are finer than voxels
const GAP = 1; // voxels between two planes
const BORDER = "#ffd60a";

/** A grey picture of one plane: `data` in [0, 1], from `offset` on. */
function plane(data, offset, rows, columns) {
  const image = new ImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) {
    const grey = 255 * Math.min(1, Math.max(0, data[offset + i]));
    image.data.set([grey, grey, grey, 255], 4 * i);
  }
  return image;
}

/** Values from their 1st to their 99.8th percentile as 0 to 1: the contrast of this crop alone. */
export function stretched(data) {
  const sorted = Float32Array.from(data).sort();
  const [low, high] = [sorted[Math.floor(0.01 * (sorted.length - 1))], sorted[Math.floor(0.998 * (sorted.length - 1))]];
  return high > low ? data.map((value) => (value - low) / (high - low)) : data;
}

/** A canvas of all planes of a crop, the first on the left; `hidden[voxel]` is framed where it is given. */
export function strip({ data, shape }, label, frames = [], { own = false } = {}) {
  if (own) data = stretched(data);
  const [planes, rows, columns] = shape.slice(-3);
  const canvas = h("canvas", {
    class: "voxels strip", role: "img", "aria-label": label,
    width: ZOOM * (planes * (columns + GAP) - GAP), height: ZOOM * rows,
  });
  const context = canvas.getContext("2d");
  const small = new OffscreenCanvas(columns, rows);
  const pen = small.getContext("2d");
  context.imageSmoothingEnabled = false;
  for (let z = 0; z < planes; z++) {
    pen.putImageData(plane(data, z * rows * columns, rows, columns), 0, 0);
    context.drawImage(small, ZOOM * z * (columns + GAP), 0, ZOOM * columns, ZOOM * rows);
  }
  context.strokeStyle = BORDER;
  context.lineWidth = 1.5;
  context.setLineDash([3, 3]);
  for (const { z, y, x, high, wide } of frames) {
    context.strokeRect(ZOOM * (z * (columns + GAP) + x) + 1, ZOOM * y + 1, ZOOM * wide - 2, ZOOM * high - 2);
  }
  return canvas;
}

/** A scale bar for the planes of a strip: the longest round length that fits into one of them. */
export function scaleBar(voxelUm, columns) {
  const perUm = ZOOM / voxelUm;
  const length = [1, 2, 5, 10, 20, 50, 100, 200, 500].findLast((each) => each * perUm <= ZOOM * columns) ?? 1;
  const canvas = h("canvas", { class: "scale", role: "img", "aria-label": `scale bar: ${length} µm`, width: Math.ceil(length * perUm), height: 22 });
  const pen = canvas.getContext("2d");
  pen.fillStyle = getComputedStyle(document.body).color;
  pen.fillRect(0, 18, canvas.width, 3);
  pen.font = "13px system-ui, sans-serif";
  pen.fillText(`${length} µm`, 0, 13);
  return canvas;
}

/** Where patches were hidden: of `rows` (4, z, y, x) the second is 0 there, the third differs from the fourth elsewhere. */
export function hiddenPatches({ data, shape }, patch) {
  const size = shape.slice(-3);
  const grid = size.map((length, axis) => length / patch[axis]);
  const count = size[0] * size[1] * size[2];
  const hidden = [];
  for (let index = 0; index < grid[0] * grid[1] * grid[2]; index++) {
    const place = [Math.floor(index / (grid[1] * grid[2])), Math.floor(index / grid[2]) % grid[1], index % grid[2]];
    const [z, y, x] = place.map((at, axis) => at * patch[axis]);
    let seen = true;
    each(size, patch, z, y, x, (voxel) => {
      if (data[count + voxel] !== data[voxel]) seen = false;
    });
    // A patch that is black throughout looks the same hidden or not: it was seen where the merged row repeats it.
    if (seen) each(size, patch, z, y, x, (voxel) => {
      if (data[3 * count + voxel] !== data[voxel]) seen = false;
    });
    if (!seen) hidden.push([z, y, x]);
  }
  return hidden;
}

function each(size, patch, z, y, x, visit) {
  for (let dz = 0; dz < patch[0]; dz++) {
    for (let dy = 0; dy < patch[1]; dy++) {
      const start = ((z + dz) * size[1] + y + dy) * size[2] + x;
      for (let dx = 0; dx < patch[2]; dx++) visit(start + dx);
    }
  }
}

/** A frame around each hidden patch in each plane that it reaches through. */
export function framesOf(hidden, patch) {
  return hidden.flatMap(([z, y, x]) =>
    Array.from({ length: patch[0] }, (_, dz) => ({ z: z + dz, y, x, high: patch[1], wide: patch[2] })));
}

/** PSNR in dB on the hidden voxels, of the reconstruction and of the mean of the visible ones said everywhere. */
export function psnr({ data, shape }, hidden, patch) {
  const size = shape.slice(-3);
  const count = size[0] * size[1] * size[2];
  const masked = new Uint8Array(count);
  for (const [z, y, x] of hidden) each(size, patch, z, y, x, (voxel) => { masked[voxel] = 1; });
  let [mean, visible] = [0, 0];
  for (let i = 0; i < count; i++) if (!masked[i]) { mean += data[i]; visible++; }
  mean /= visible || 1;
  let [ours, trivial] = [0, 0];
  for (let i = 0; i < count; i++) {
    if (!masked[i]) continue;
    ours += (data[2 * count + i] - data[i]) ** 2;
    trivial += (mean - data[i]) ** 2;
  }
  const decibel = (sum) => -10 * Math.log10(sum / (count - visible));
  return { reconstruction: decibel(ours), visibleMean: decibel(trivial) };
}

/** One of several crops of a file, as {data, shape: [z, y, x]}. */
export function cropOf({ data, shape }, number) {
  const size = shape.slice(-3);
  const length = size[0] * size[1] * size[2];
  return { data: data.slice(number * length, (number + 1) * length), shape: size };
}

/** A picture that may be wider than the page, in a region that scrolls and can be reached by the keyboard. */
export function scrolling(label, ...children) {
  return h("div", { class: "scroll", role: "region", tabIndex: 0, "aria-label": label }, children);
}
