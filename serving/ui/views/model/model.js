// What is served, in tables: the model and its card, volumes, indexes, limits.

import { byId, facts, h, shown } from "../../shared/dom.js";
import { markdown } from "./markdown.js";

export class ModelView {
  constructor(app) {
    this.app = app;
  }

  show() {
    const { info, model } = this.app;
    byId("model-title").textContent = `Model ${model.name}`;
    byId("model-cards").replaceChildren(
      card("Encoder", facts({
        Name: model.name,
        sha256: h("code", { class: "hash", text: model.sha256 }),
        "Crop, voxels": by(model.crop_zyx),
        "Patch, voxels": by(model.architecture.patch_zyx),
        "Voxel size, µm": by(model.voxel_um),
        "Crop, µm": by(model.crop_zyx.map((size, i) => size * model.voxel_um[i])),
        Window: rule(model.window_rule),
        Pooling: model.pool,
        Dimensions: model.dimension,
        Network: `${model.architecture.depth ?? model.layers} blocks of ${model.architecture.dim ?? model.dimension}, ${model.architecture.heads ?? "?"} heads`,
        "Hidden in training": `${Math.round(100 * model.mask_ratio)} % of the patches`,
        Reconstructs: model.reconstructs ? "yes" : "no: it was saved without its decoder",
      })),
      card("Service", facts({ Version: info.version, Device: info.device, Precision: info.precision, Backend: info.backend })),
      model.card ? card("Card", h("div", { class: "text" }, markdown(model.card)), "wide") : "",
      card("Volumes", table(["name", "shape (z × y × x)", "voxel, µm", "window", "marker"],
        Object.entries(info.volumes).map(([name, about]) => [name, by(about.shape_zyx), by(about.voxel_um), about.window.map(shown).join(" to "), about.marker ?? "–"]),
        "No volume is registered."), "wide"),
      card("Indexes", table(["name", "cells", "structure", "metric", "pooling", "recall@10", "encoder"],
        Object.entries(info.indexes).map(([name, about]) => [name, shown(about.rows), about.structure, about.metric, about.pool,
          about.recall?.value === undefined ? "–" : shown(about.recall.value), short(about.encoder)]),
        "No index is served."), "wide"),
      card("Refiners", table(["name", "encoder", "detector", "pooling", "threshold", "correction", "sha256"],
        Object.entries(info.refiners ?? {}).map(([name, about]) => [name, short(about.encoder), short(about.detector), about.pool ?? "–",
          shown(about.threshold), about.correction, short(about.sha256)]),
        "No refiner is served."), "wide"),
      card("Limits", facts(Object.fromEntries(Object.entries(info.limits).map(([name, value]) => [name, value === null ? "none" : shown(value)]))), "wide"));
  }
}

const short = (sha256) => (sha256 ? h("code", { text: sha256.slice(0, 12), title: sha256 }) : "–");
const by = (sizes) => sizes.map(shown).join(" × ");

function rule({ kind, low, high }) {
  return kind === "percentiles" ? `percentiles ${low} and ${high} of the whole volume` : `${low} to ${high} times the median`;
}

function card(title, content, kind = "") {
  const id = `model-${title.toLowerCase()}`;
  return h("section", { class: `card ${kind}`, "aria-labelledby": id }, h("h2", { id, text: title }), content);
}

function table(heads, rows, without) {
  if (!rows.length) return h("p", { class: "hint", text: without });
  return h("div", { class: "scroll", role: "region", tabIndex: 0, "aria-label": "Table" },
    h("table", { class: "wide-table" },
      h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col", text: head })))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((value, i) => (i ? h("td", {}, value) : h("th", { scope: "row" }, value))))))));
}
