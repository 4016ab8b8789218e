// P(cell) by the refiners that the service has.

import { askJson } from "../shared/api.js";
import { facts, shown } from "../shared/dom.js";

/**
 * What each refiner says, as a list to show, or null where none can: of a `place` {volume, z, y, x} any refiner,
 * of a crop alone those that need nothing but the chosen encoder.
 */
export async function refinerScores(app, npy, place, signal) {
  const told = {};
  for (const [name, about] of Object.entries(app.info.refiners ?? {})) {
    if (about.correction !== "none") {
      told[`P(cell) by ${name}`] = "needs all candidates of a brain together";
      continue;
    }
    if (!place && (about.detector || about.encoder !== app.model.sha256)) continue;
    const body = place
      ? { json: { refiner: name, volume: place.volume, points_zyx: [[place.z, place.y, place.x]] } }
      : { npy, query: { refiner: name } };
    try {
      const said = await askJson("refine", { ...body, signal });
      const kind = said.is_cell[0] ? "a cell" : "not a cell";
      told[`P(cell) by ${name}`] = `${shown(said.p_cell[0])}: ${kind} at its threshold of ${shown(said.threshold)}`;
    } catch (problem) {
      if (problem.name === "AbortError") throw problem;
      told[`P(cell) by ${name}`] = problem.message;
    }
  }
  return Object.keys(told).length ? facts(told) : null;
}
