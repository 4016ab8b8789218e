// Cells like some and unlike others, or nearest to some: examples, conditions, hits.

import { askJson, Latest } from "../../shared/api.js";
import { announce, button, byId, download, field, h, notice, plural, select } from "../../shared/dom.js";
import { asCsv, examples, gallery, nameOf, picture } from "./gallery.js";

const KINDS = { like: "Like these", unlike: "Unlike those" };

export class SearchView {
  #latest = new Latest();

  constructor(app) {
    this.app = app;
    this.index = Object.keys(app.info.indexes)[0];
    if (!this.index) return;
    this.#form();
    examples.addEventListener("change", () => this.#trays());
  }

  /** `ids` in the address are cells whose nearest others are wanted. */
  show(query) {
    if (!this.index) {
      notice(byId("hits"), "No index is served: start the service with --index NAME=cells.index.");
      byId("search-form").hidden = true;
      return;
    }
    if (query.get("index") in this.app.info.indexes) this.index = this.indexes.value = query.get("index");
    this.#trays();
    if (query.has("ids")) this.#run({ ids: query.getAll("ids") });
    else if (!byId("hits").hasChildNodes()) this.#empty();
  }

  #empty() {
    byId("hits").replaceChildren(h("p", { class: "hint", text: "Choose at least one example, then search." }));
  }

  #form() {
    const names = Object.keys(this.app.info.indexes);
    this.indexes = select(names, this.index, (name) => { this.index = name; this.#trays(); this.#empty(); });
    this.id = h("input", { type: "text", class: "short", placeholder: "17 or BRAIN:17" });
    this.count = h("input", { type: "number", min: 1, max: 240, value: 48, required: true, class: "short" });
    this.where = h("input", { type: "text", placeholder: "marker=NeuN  score>=0.5", spellcheck: false });
    const form = byId("search-form");
    form.replaceChildren(
      names.length > 1 ? field("Index", this.indexes) : "",
      h("div", { class: "field" }, h("label", { for: "example-id", text: "Example by id" }),
        h("div", { class: "row tight" }, this.id, button("As example", () => this.#byId("like")), button("As counter-example", () => this.#byId("unlike")))),
      field("How many", this.count),
      h("label", { class: "field grow" }, h("span", { text: "Conditions, apart by blanks" }), this.where),
      h("button", { type: "submit", class: "main", text: "Search" }));
    this.id.id = "example-id";
    form.addEventListener("submit", (event) => { event.preventDefault(); this.#search(); });
  }

  #trays() {
    const held = examples.of(this.index);
    byId("trays").replaceChildren(...Object.entries(KINDS).map(([kind, title]) => {
      const cells = [...held[kind].values()];
      return h("section", { class: `card tray ${kind}`, "aria-label": title },
        h("h2", { text: `${title} (${cells.length})` }),
        cells.length ? h("ul", { class: "gallery small" }, cells.map((cell) => h("li", { class: "cell" }, picture(cell),
          h("span", { class: "caption", text: cell.brain ? `${cell.brain} · ${cell.id}` : cell.id }),
          button("×", () => examples.put(this.index, [cell], null), { "aria-label": `Remove ${nameOf(cell)}`, class: "choice" }))))
          : h("p", { class: "hint", text: kind === "like" ? "None yet." : "None: that is fine." }),
        cells.length > 1 && button("Remove all", () => examples.put(this.index, cells, null)));
    }));
  }

  /** A cell that the person names becomes an example: it is found as its own description. */
  async #byId(kind) {
    const id = this.id.value.trim();
    if (!id) return;
    try {
      const { cells } = await askJson("cells", { json: { index: this.index, ids: [id], thumbnails: true } });
      examples.put(this.index, cells, kind);
      this.id.value = "";
    } catch (problem) {
      notice(byId("hits"), problem.message, "problem");
    }
  }

  #search() {
    const held = examples.of(this.index);
    const [like, unlike] = ["like", "unlike"].map((kind) => [...held[kind].keys()].map((row) => `#${row}`));
    if (!like.length) return notice(byId("hits"), "Choose at least one example with + under a picture, or by its id.", "problem");
    return this.#run({ like, unlike });
  }

  async #run(asked) {
    const root = byId("hits");
    notice(root, "Searching …");
    const where = this.where.value.split(/\s+/).filter(Boolean);
    try {
      const found = await this.#latest.run((signal) => askJson("search", { signal, json: {
        ...asked, index: this.index, k: Math.min(240, Number(this.count.value) || 48), where, thumbnails: true } }));
      if (!found) return;
      const sentence = asked.ids ? `${plural(found.hits.length, "cell")} nearest to ${asked.ids.join(", ")}`
        : `${plural(found.hits.length, "cell")} like ${plural(asked.like.length, "example")}` +
          (asked.unlike.length ? ` and unlike ${plural(asked.unlike.length, "counter-example")}` : "");
      const open = (cell) => cell.volume && this.app.go("crop", { volume: cell.volume, z: cell.z, y: cell.y, x: cell.x });
      root.replaceChildren(
        h("div", { class: "row" }, h("p", { class: "grow", text: `${sentence}.` }),
          button("CSV", () => download(asCsv(found.hits), `${this.index}_found.csv`), { "aria-label": "Download the cells found as CSV" })),
        gallery(this.index, found.hits, open, "Cells found"));
      announce(sentence);
    } catch (problem) {
      notice(root, problem.message, "problem");
    }
  }
}
