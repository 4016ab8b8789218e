// The review: one candidate after the other, each answer saved before the next is shown.

import { askArray, askJson, holdKey } from "../shared/api.js";
import { Around } from "./surroundings.js";
import { announce, byId, facts, plural, shown } from "../shared/dom.js";
import { Grid } from "./grid.js";
import { Contrast, planes, projections } from "./pictures.js";

const WORDS = { 1: "cell", 0: "not a cell", "-1": "unsure" };
const AHEAD = 8; // crops that are read before they are needed

const crops = new Map();
const DARK = 100;  // of 255: the brightest voxels of a crop that is hard to see
let about, contrast, around, grid, queue = [], busy = false, gridMode = false;

/** An id of an answer, so that one sent twice counts once. */
const identity = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");

function failed(problem) {
  const banner = byId("problem");
  const lost = problem.status === 401 ? "This link is no longer valid: open the one that canvas-fm review printed last."
    : problem.status === 0 ? "The review has ended or cannot be reached. All answers before this one are saved; start canvas-fm review again and open its new link." : problem.message;
  banner.textContent = lost;
  banner.hidden = false;
  console.warn(problem.message);
}

const well = () => { byId("problem").hidden = true; };

function cropOf(row) {
  if (!crops.has(row)) {
    const found = askArray("review/crops", { query: { rows: row } }).then(({ data, shape }) => ({ data, shape: shape.slice(1) }));
    found.catch(() => crops.delete(row));
    crops.set(row, found);
    if (crops.size > 64) crops.delete(crops.keys().next().value);
  }
  return crops.get(row);
}

async function show() {
  const [first] = queue;
  const done = !first;
  byId("one-dark").hidden = true;
  for (const id of ["other", "unsure", "cell"]) byId(id).disabled = done;
  if (done) {
    byId("one-title").textContent = "All candidates are answered";
    byId("one-place").textContent = `The labels are in ${about.out}.`;
    for (const id of ["projections", "planes"]) byId(id).replaceChildren();
    return;
  }
  const box = first.box;
  byId("one-title").textContent = box ? "Which cells in this box were missed?" : "Is this a cell?";
  for (const id of ["other", "unsure", "cell"]) byId(id).hidden = Boolean(box);
  byId("searched").hidden = !box;
  byId("planes-title").hidden = Boolean(box);
  if (box) {
    byId("one-place").textContent = `Planes ${box[0]} to ${box[3] - 1}: look through all of them in the surroundings, and click each cell inside the frame that has no ring.`;
    for (const id of ["projections", "planes"]) byId(id).replaceChildren();
    if (!around.open) around.toggle(true);
    around.show(first.zyx, box);
    document.body.dataset.row = first.row;
    return;
  }
  byId("one-place").textContent = `z ${shown(first.zyx[0])}, y ${shown(first.zyx[1])}, x ${shown(first.zyx[2])} in voxels`;
  for (const { row } of queue.slice(0, AHEAD)) cropOf(row).catch(() => {});
  try {
    const crop = await cropOf(first.row);
    if (queue[0] !== first) return;
    draw(crop);
    around.show(first.zyx);
    document.body.dataset.row = first.row;
  } catch (problem) {
    failed(problem);
  }
}

function draw(crop) {
  const bright = Float32Array.from(crop.data, contrast.grey(crop.data)).sort()[Math.floor(0.998 * (crop.data.length - 1))];
  byId("one-dark").hidden = bright > DARK;
  const room = byId("one").clientWidth;
  byId("projections").replaceChildren(...projections(crop, contrast, about.voxel_um, room < 500 ? (room - 48) / 2 : Math.min(300, (room - 70) / 3)));
  byId("planes").replaceChildren(...planes(crop, contrast));
}

function take(found) {
  queue = found.queue;
  progress(found.progress);
  well();
}

async function answer(label) {
  if (busy || !queue.length || gridMode || (queue[0].box && label !== 1)) return;
  busy = true;
  const button = byId({ 1: "cell", 0: "other", "-1": "unsure" }[label]);
  button.classList.add("flash");
  try {
    take(await askJson("review/answers", { query: { order: byId("order").value }, json: { id: identity(), rows: [queue[0].row], label } }));
    announce(`${WORDS[label]}, saved`);
    await show();
  } catch (problem) {
    failed(problem);
  } finally {
    button.classList.remove("flash");
    busy = false;
  }
}

async function back() {
  if (busy) return;
  busy = true;
  try {
    const found = await askJson("review/back", { query: { order: byId("order").value }, json: { id: identity() } });
    take(found);
    announce(found.undone.length ? `${plural(found.undone.length, "answer")} taken back` : "there is nothing to take back");
    await (gridMode ? grid.load() : show());
  } catch (problem) {
    failed(problem);
  } finally {
    busy = false;
  }
}

function progress(of) {
  const bar = document.createElement("progress");
  Object.assign(bar, { max: of.candidates, value: of.answered });
  bar.setAttribute("aria-label", "Candidates answered");
  const [cells, none, unsure] = ["1", "0", "-1"].map((label) => of.mine_by_label[label]);
  const pairs = of.agreement.pairs.filter(({ rows }) => rows).map(({ annotators, rows, agree, kappa }) =>
    `${annotators.join(" and ")}: ${shown(100 * agree)} % of ${plural(rows, "candidate")}${kappa === null ? "" : `, κ ${kappa.toFixed(2)}`}`);
  byId("progress").replaceChildren(bar, facts({
    Answered: `${shown(of.answered)} of ${shown(of.candidates)}`,
    "By you": `${plural(cells, "cell")}, ${shown(none)} none, ${shown(unsure)} unsure`,
    "In random order": shown(of.random),
    "Missed cells added": of.missed || undefined,
    "Cells among the candidates": of.count ? `${shown(Math.round(of.count[0]))} (${shown(Math.round(of.count[1]))} to ${shown(Math.round(of.count[2]))})` : "after ten random answers",
    Agreement: pairs.length ? pairs.join("; ") : undefined,
    "Fleiss' κ": of.agreement.fleiss?.kappa?.toFixed(2),
  }));
  byId("stop").textContent = of.stop;
  for (const id of ["learned", "detector"]) {
    byId(id).textContent = of[id] ? `${capital(of[id].sentence)}.${of[id].curve ? ` ${capital(of[id].curve)}.` : ""}` : "";
  }
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function redraw() {
  byId("black-shown").textContent = contrast.black.toFixed(2);
  byId("white-shown").textContent = contrast.white.toFixed(2);
  for (const id of ["black", "white"]) byId(id).disabled = contrast.fit;
  try {
    localStorage.setItem("canvas-fm review contrast", JSON.stringify([contrast.black, contrast.white, contrast.fit]));
  } catch { /* a browser that keeps nothing */ }
  if (gridMode) grid.draw();
  else if (queue.length && !queue[0].box) cropOf(queue[0].row).then(draw, failed);
  around.redraw();
}

/** White where the brightest voxels of the first candidates are: the volume's own window is often too dark. */
async function firstLook() {
  const first = await Promise.all(queue.filter(({ box }) => !box).slice(0, AHEAD).map(({ row }) => cropOf(row)));
  const sorted = Float32Array.from(first.flatMap(({ data }) => Array.from(data))).sort();
  const bright = (sorted[Math.floor(0.995 * (sorted.length - 1))] - contrast.low) / (contrast.high - contrast.low || 1);
  contrast.white = Math.min(4, Math.max(0.1, Math.round(20 * bright) / 20 || 1));
}

function level(name, value) {
  const input = byId(name);
  input.value = value;
  contrast[name] = Number(input.value);
  if (contrast.white <= contrast.black) contrast.white = contrast.black + 0.05;
  byId("white").value = contrast.white;
  redraw();
}

function mode(asGrid) {
  gridMode = asGrid;
  for (const [id, on] of [["one", !asGrid], ["answers", !asGrid], ["grid", asGrid], ["grid-answers", asGrid]]) byId(id).hidden = !on;
  byId("mode-one").setAttribute("aria-pressed", String(!asGrid));
  byId("mode-grid").setAttribute("aria-pressed", String(asGrid));
  if (asGrid) grid.load();
  else refresh();
}

async function refresh() {
  try {
    take(await askJson("review/queue", { query: { order: byId("order").value } }));
    await show();
  } catch (problem) {
    failed(problem);
  }
}

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select, input[type=text]")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const actions = {
    c: () => !queue[0]?.box && answer(1), 1: () => !queue[0]?.box && answer(1), n: () => answer(0), 0: () => answer(0), u: () => answer(-1), b: back, Backspace: back,
    d: () => queue[0]?.box && answer(1),
    s: () => around.toggle(), m: () => around.addAtCross(), g: () => mode(!gridMode), Enter: gridMode && !event.target.closest("button, a") && (() => grid.record()),
    a: () => { byId("fit").checked = contrast.fit = !contrast.fit; redraw(); },
    "[": () => level("white", contrast.white / 1.15), "]": () => level("white", contrast.white * 1.15),
  };
  if (!actions[key] || (event.repeat && key !== "[" && key !== "]")) return;
  event.preventDefault();
  actions[key]();
}

async function begin() {
  const key = new URLSearchParams(location.hash.slice(1)).get("key");
  if (key) {
    holdKey(key);
    history.replaceState(null, "", location.pathname); // so that the link is not kept in the history
  }
  about = await askJson("review/");
  contrast = new Contrast(about.window);
  around = new Around(about, contrast, failed, identity);
  grid = new Grid(contrast, failed, identity, (found) => { progress(found.progress); well(); });
  byId("where").textContent = `${about.volume}${about.marker && about.marker !== about.volume ? `, ${about.marker}` : ""} · ${about.annotator}`;
  const names = { uncertain: "uncertain first", random: "random", disagreement: "disagreement first", diverse: "spread out" };
  byId("order").replaceChildren(...about.orders.map((order) => new Option(names[order], order, false, order === about.order)));
  byId("order").addEventListener("change", refresh);
  for (const [id, run] of [["cell", () => answer(1)], ["other", () => answer(0)], ["unsure", () => answer(-1)], ["searched", () => answer(1)], ["back", back], ["grid-back", back]]) {
    byId(id).addEventListener("click", run);
  }
  byId("mode-one").addEventListener("click", () => mode(false));
  byId("mode-grid").addEventListener("click", () => mode(true));
  for (const id of ["black", "white"]) byId(id).addEventListener("input", () => level(id, byId(id).value));
  byId("fit").addEventListener("change", () => { contrast.fit = byId("fit").checked; redraw(); });
  document.addEventListener("keydown", keys);
  take(about);
  let kept = null;
  try {
    kept = JSON.parse(localStorage.getItem("canvas-fm review contrast"));
  } catch { /* a browser that keeps nothing */ }
  if (kept) [contrast.black, contrast.white, contrast.fit] = kept;
  else await firstLook();
  byId("black").value = contrast.black;
  byId("white").value = contrast.white;
  byId("fit").checked = contrast.fit;
  redraw();
  await show();
}

begin().catch(failed);
