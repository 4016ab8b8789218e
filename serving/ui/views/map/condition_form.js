// Selecting cells by a column's value: the way to a selection that needs no pointer.

import { h, select } from "../../shared/dom.js";

const SIGNS = { "=": (a, b) => a === b, "≠": (a, b) => a !== b, "≥": (a, b) => a >= b, "≤": (a, b) => a <= b };

/** Fill the form; `values(name)` gives a column, `chosen(indices)` takes the cells that fulfil the condition. */
export function conditionForm(form, columns, values, chosen) {
  const sign = h("span", {});
  const value = h("span", {});
  let [signs, wanted] = [null, null];
  const offer = (name) => {
    const { kind, words } = columns[name];
    signs = select(kind === "text" ? ["=", "≠"] : ["≥", "≤", "=", "≠"], null, () => {});
    wanted = kind === "text"
      ? select(words.map((word, code) => [String(code), word]), null, () => {})
      : h("input", { type: "number", step: "any", required: true, class: "short" });
    sign.replaceChildren(h("label", { class: "field" }, h("span", { class: "unseen", text: "Sign" }), signs));
    value.replaceChildren(h("label", { class: "field" }, h("span", { class: "unseen", text: "Value" }), wanted));
  };
  const names = Object.keys(columns);
  const column = select(names, names.includes("marker") ? "marker" : names[0], offer);
  offer(column.value);
  form.replaceChildren(h("label", { class: "field" }, h("span", { class: "unseen", text: "Column" }), column), sign, value, h("button", { type: "submit", text: "Select" }));
  form.onsubmit = async (event) => {
    event.preventDefault();
    const data = await values(column.value);
    const number = Number(wanted.value);
    const holds = SIGNS[signs.value];
    // A number that was stored as float32 is met by its decimal digits; what has no value fulfils nothing.
    const exact = data instanceof Float32Array ? Math.fround(number) : number;
    const found = [];
    const there = columns[column.value].kind === "text" ? (each) => each !== -1 : (each) => !Number.isNaN(each);
    data.forEach((each, i) => {
      if (there(each) && holds(each, exact)) found.push(i);
    });
    chosen(Uint32Array.from(found));
  };
}
