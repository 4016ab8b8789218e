// Tiles of a plane: asked of the service, kept for a while, and drawn with coarser ones until they are there.

import { ask } from "../../shared/api.js";

const MOST = 240; // tiles of 256 KB
const AT_ONCE = 6;

export class Tiles {
  #held = new Map(); // by address, the last used at the end
  #waiting = [];
  #running = 0;

  constructor(arrived) {
    this.arrived = arrived;
  }

  forget() {
    for (const tile of this.#held.values()) tile.picture?.close();
    this.#held.clear();
    this.#waiting = [];
  }

  /** The picture of a tile, or null; it is asked for where `wanted`, and `arrived` is called once it is there. */
  get(query, wanted) {
    const key = JSON.stringify(query);
    const known = this.#held.get(key);
    if (known) {
      this.#held.delete(key);
      this.#held.set(key, known);
      return known.picture ?? null;
    }
    if (wanted && !this.#waiting.some((each) => each.key === key)) this.#waiting.push({ key, query });
    return null;
  }

  /** Begin a new picture: what is not asked for again is not fetched. */
  begin() { this.#waiting = []; }

  /** Fetch what is missing, the first asked first. */
  fetch() {
    while (this.#running < AT_ONCE && this.#waiting.length) this.#load(this.#waiting.shift());
  }

  async #load({ key, query }) {
    const tile = {};
    this.#held.set(key, tile);
    this.#running++;
    try {
      const blob = await (await ask("tile", { query, accept: "image/png" })).blob();
      tile.picture = await createImageBitmap(blob);
    } catch (problem) {
      this.#held.delete(key);
      this.arrived(problem);
      return;
    } finally {
      this.#running--;
    }
    while (this.#held.size > MOST) {
      const [oldest, value] = this.#held.entries().next().value;
      value.picture?.close();
      this.#held.delete(oldest);
    }
    this.arrived(null);
    this.fetch();
  }
}
