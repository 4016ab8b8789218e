// Detection and refinement in the background: from a volume to cells, and from cells to P(cell).

import { ask, askJson } from "../../shared/api.js";
import { button, h, plural } from "../../shared/dom.js";

const LOOK_MS = 700;

/** Buttons that start jobs of the service for the volume in view, and show their cells once they are done. */
export function jobButtons(view) {
  const { info } = view.app;
  const detectors = Object.keys(info.detectors ?? {});
  const refiners = Object.keys(info.refiners ?? {});
  const status = h("p", { class: "hint", role: "status" });
  const start = (label, body) => run(view, body, status, label).catch((problem) => { status.textContent = problem.message; });
  const buttons = [
    ...detectors.map((detector) => button(`Detect in view by ${detector}`, () =>
      start("Detection", { kind: "detect", volume: view.open, detector, roi: view.plane.box() }))),
    ...refiners.map((refiner) => button(`P(cell) by ${refiner}`, () => {
      if (!view.plane.cells) status.textContent = "There are no cells to refine: detect some, or choose a file.";
      else start("Refinement", { kind: "refine", volume: view.open, refiner, points_csv: view.plane.cells.csv });
    })),
  ];
  return h("div", { class: "stack tight", id: "volume-jobs" }, h("div", { class: "row tight" }, buttons), status);
}

async function run(view, body, status, label) {
  const { volume } = body;
  status.textContent = `${label} …`;
  let job = await askJson("jobs", { json: body });
  while (job.state === "queued" || job.state === "running") {
    const share = job.total ? ` ${Math.floor((100 * job.done) / job.total)} %` : "";
    status.textContent = `${label}: ${job.state}${share} …`;
    await new Promise((resolve) => { setTimeout(resolve, LOOK_MS); });
    job = await askJson(`jobs/${job.id}`);
  }
  if (job.state !== "done") throw new Error(`${label}: ${job.error ?? job.state}`);
  const text = await (await ask(`jobs/${job.id}/result`, { accept: "text/csv" })).text();
  if (view.open !== volume) return;
  view.take(text);
  status.textContent = `${label}: ${plural(view.plane.cells.count, "cell")}.`;
}
