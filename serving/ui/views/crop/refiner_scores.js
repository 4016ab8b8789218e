// P(cell) by the refiners that the service has.

import { askJson } from "../../shared/api.js";
import { facts, shown } from "../../shared/dom.js";

/**
 * What each refiner says, as a list to show, or null where none can: of a `place` {volume, z, y, x} any refiner,
 * of a crop alone those that need nothing but the chosen encoder.
 */
export async function refinerScores(app, npy, place, signal) {
  const scores = {};
  for (const [name, about] of Object.entries(app.info.refiners ?? {})) {
    if (about.correction !== "none") {
      scores[`P(cell) by ${name}`] = "needs all candidates of a brain together";
      continue;
    }
    if (!place && (about.detector || about.encoder !== app.model.sha256)) continue;
    const body = place
      ? { json: { refiner: name, volume: place.volume, points_zyx: [[place.z, place.y, place.x]] } }
      : { npy, query: { refiner: name } };
    try {
      const reply = await askJson("refine", { ...body, signal });
      const kind = reply.is_cell[0] ? "a cell" : "not a cell";
      scores[`P(cell) by ${name}`] = `${shown(reply.p_cell[0])}: ${kind} at its threshold of ${shown(reply.threshold)}`;
    } catch (problem) {
      if (problem.name === "AbortError") throw problem;
      scores[`P(cell) by ${name}`] = problem.message;
    }
  }
  return Object.keys(scores).length ? facts(scores) : null;
}
