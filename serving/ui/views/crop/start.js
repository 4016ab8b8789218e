// Where a volume is first looked at: empty tissue says nothing.

import { askJson } from "../../shared/api.js";

const LOOKED_AT = 200; // cells of an index

/** A cell of an index that lies in the volume, else the bright place of its pyramid. */
export async function startOf(app, volume) {
  for (const index of app.indexes) {
    const rows = Array.from({ length: Math.min(LOOKED_AT, app.info.indexes[index].rows ?? 0) }, (_, row) => row);
    if (!rows.length) continue;
    const { cells } = await askJson("cells", { json: { index, rows } });
    const cell = cells.find((each) => each.volume === volume);
    if (cell) return cell;
  }
  const [z, y, x] = (await askJson("pyramid", { query: { volume } })).start_zyx;
  return { z, y, x };
}
