// Cells of an index as small pictures, and the examples that are chosen among them for a search.

import { announce, button, h, shown } from "../../shared/dom.js";

/** What a cell is called: its id, and its brain. */
export const nameOf = (cell) => `cell ${cell.id}${cell.brain ? ` of ${cell.brain}` : ""}`;

/** Chosen examples, by index: {like: Map(row → cell), unlike: Map(row → cell)}. */
export class Examples extends EventTarget {
  #held = new Map();

  of(index) {
    if (!this.#held.has(index)) this.#held.set(index, { like: new Map(), unlike: new Map() });
    return this.#held.get(index);
  }

  /** A cell is among one of the two, or among none. */
  put(index, cells, kind) {
    const held = this.of(index);
    for (const cell of cells) {
      held.like.delete(cell.row);
      held.unlike.delete(cell.row);
      if (kind) held[kind].set(cell.row, cell);
    }
    const count = kind ? held[kind].size : 0;
    announce(kind ? `${count} ${kind === "like" ? "examples" : "counter-examples"}` : "removed from the examples");
    this.dispatchEvent(new Event("change"));
  }

  kindOf(index, row) {
    const held = this.of(index);
    return held.like.has(row) ? "like" : held.unlike.has(row) ? "unlike" : null;
  }
}

export const examples = new Examples();

/** The picture of a cell, or what stands for it. */
export function picture(cell) {
  if (cell.thumbnail) return h("img", { class: "voxels", alt: "", src: `data:image/png;base64,${cell.thumbnail}` });
  return h("span", { class: "no-picture", "aria-hidden": "true", text: cell.volume ? "…" : "no volume" });
}

/** A list of cells; `open(cell)` is what a click on a picture does. */
export function gallery(index, cells, open, label = "Cells") {
  return h("ul", { class: "gallery", "aria-label": label }, cells.map((cell) => card(index, cell, open)));
}

function card(index, cell, open) {
  const details = ["distance", "likeness", "p_cell", "score"]
    .filter((name) => cell[name] !== undefined && cell[name] !== null)
    .slice(0, 2);
  const item = h("li", { class: "cell" },
    h("button", {
      type: "button", class: "picture", on: { click: () => open(cell) },
      "aria-label": `Show ${nameOf(cell)}${cell.marker ? `, ${cell.marker}` : ""}`,
      title: `z ${shown(cell.z)}, y ${shown(cell.y)}, x ${shown(cell.x)}`,
    }, picture(cell)),
    h("div", { class: "caption" },
      h("b", { text: cell.brain ? `${cell.brain} · ${cell.id}` : String(cell.id) }),
      cell.marker && h("span", { text: cell.marker }),
      details.map((name) => h("span", {}, h("i", { text: `${name} ` }), shown(cell[name])))),
    h("div", { class: "choose", role: "group", "aria-label": `Use ${nameOf(cell)} as an example` },
      chooser(index, cell, "like", "+", "example"), chooser(index, cell, "unlike", "−", "counter-example")));
  return item;
}

function chooser(index, cell, kind, sign, word) {
  const element = button(sign, () => {
    const held = examples.kindOf(index, cell.row) === kind;
    examples.put(index, [cell], held ? null : kind);
  }, { class: `choice ${kind}`, title: `${word} for a search`, "aria-label": `${nameOf(cell)} as ${word}` });
  const show = () => element.setAttribute("aria-pressed", String(examples.kindOf(index, cell.row) === kind));
  show();
  const follow = () => (element.isConnected ? show() : examples.removeEventListener("change", follow));
  // After the element had its time to be put into the page.
  requestAnimationFrame(() => {
    show();
    examples.addEventListener("change", follow);
  });
  return element;
}

/** Cells as a table in a .csv file, made here: hits have distances, which the service's own table does not. */
export function asCsv(cells) {
  const left = new Set(["thumbnail", "volume", "query"]);
  const names = [...new Set(["z", "y", "x", ...cells.flatMap(Object.keys)])].filter((name) => !left.has(name));
  const quoted = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const lines = [names, ...cells.map((cell) => names.map((name) => cell[name]))];
  return new Blob([lines.map((line) => line.map(quoted).join(",")).join("\n") + "\n"], { type: "text/csv" });
}
