// Where a volume is first looked at: empty tissue says nothing.

import { askJson } from "../../shared/api.js";

const LOOKED_AT = 200; // cells of an index

const sure = (cell) => Number(cell.p_cell ?? cell.score ?? 0);

/** The surest of some cells of an index that lie in the volume, else the bright place of its pyramid. */
export async function startOf(app, volume) {
  for (const index of app.indexes) {
    const all = app.info.indexes[index].rows ?? 0;
    const count = Math.min(LOOKED_AT, all);
    if (!count) continue;
    const rows = Array.from({ length: count }, (_, at) => Math.floor((at * all) / count));
    const { cells } = await askJson("cells", { json: { index, rows } });
    const here = cells.filter((each) => each.volume === volume);
    const most = Math.max(...here.map(sure));
    const best = here.filter((each) => sure(each) >= most - 0.01 * Math.abs(most));
    if (best.length) return best[Math.floor(best.length / 2)]; // rows go by z: not one at the border
  }
  const [z, y, x] = (await askJson("pyramid", { query: { volume } })).start_zyx;
  return { z, y, x };
}
