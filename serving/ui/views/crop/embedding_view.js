// An embedding as numbers and as a row of bars.

import { h, shown } from "../../shared/dom.js";

/** What can be said of a vector in a few lines. */
export function summary(vector, model) {
  const mean = vector.reduce((a, b) => a + b, 0) / vector.length;
  const spread = Math.sqrt(vector.reduce((a, b) => a + (b - mean) ** 2, 0) / vector.length);
  const length = Math.sqrt(vector.reduce((a, b) => a + b * b, 0));
  return {
    Dimensions: `${vector.length}, pooled by ${model.pool}`,
    Length: shown(length),
    "Mean and spread": `${shown(mean)} ± ${shown(spread)}`,
    "First numbers": [...vector.slice(0, 6)].map((value) => value.toFixed(3)).join(", ") + " …",
  };
}

/** A bar for each number, up or down from the middle; the largest reaches the border. */
export function barcode(vector) {
  const width = 4 * vector.length;
  const most = vector.reduce((a, b) => Math.max(a, Math.abs(b)), 0) || 1;
  let path = "";
  vector.forEach((value, i) => { path += `M${4 * i + 2} 40v${(-38 * value / most).toFixed(1)}`; });
  return h("svg", { class: "barcode", viewBox: `0 0 ${width} 80`, preserveAspectRatio: "none", role: "img",
    "aria-label": `The ${vector.length} numbers of the embedding as bars` }, h("path", { d: path }));
}
