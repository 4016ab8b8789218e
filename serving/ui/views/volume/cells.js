// The cells of a file over a volume: positions, the value that colours them, and counts at a threshold.

/** Which column colours: the first that there is. P(cell) gives counts an interval, scores do not. */
const VALUES = ["p_cell", "score", "label"];

/** Cells of a table as text: z, y, x and a value each; throws an Error with a sentence for what is no table of cells. */
export function readCells(text) {
  const lines = text.split(/\r?\n/).filter((line) => line.trim() && !line.startsWith("#"));
  const mark = ["\t", ";", ","].find((each) => lines[0]?.includes(each)) ?? ",";
  const names = split(lines[0] ?? "", mark).map((name) => name.trim().toLowerCase());
  const at = Object.fromEntries(["z", "y", "x"].map((axis) => [axis, names.indexOf(axis)]));
  if (Object.values(at).some((place) => place < 0)) throw new Error("the file has no columns z, y and x in its first line");
  const value = VALUES.find((name) => names.includes(name)) ?? null;
  const count = lines.length - 1;
  const columns = { z: new Float32Array(count), y: new Float32Array(count), x: new Float32Array(count), value: new Float32Array(count).fill(NaN) };
  const place = value ? names.indexOf(value) : -1;
  for (let row = 0; row < count; row++) {
    const parts = split(lines[row + 1], mark);
    for (const axis of ["z", "y", "x"]) {
      const number = Number(parts[at[axis]]);
      if (!Number.isFinite(number) || parts[at[axis]]?.trim() === "") throw new Error(`row ${row + 1} has no number as ${axis}`);
      columns[axis][row] = number;
    }
    if (place >= 0 && parts[place]?.trim()) columns.value[row] = Number(parts[place]);
  }
  return new Cells(columns, value, text);
}

function split(line, mark) {
  if (!line.includes('"')) return line.split(mark);
  const parts = [];
  let [part, quoted] = ["", false];
  for (const letter of line) {
    if (letter === '"') quoted = !quoted;
    else if (letter === mark && !quoted) { parts.push(part); part = ""; } else part += letter;
  }
  return [...parts, part];
}

export class Cells {
  #byZ;
  #sorted;
  #sums;

  constructor({ z, y, x, value }, name, csv) {
    Object.assign(this, { z, y, x, value, name, csv });
    this.#byZ = Uint32Array.from(z.keys()).sort((a, b) => z[a] - z[b]);
    this.#sorted = value.filter(Number.isFinite).sort();
    [this.low, this.high] = this.isProbability ? [0, 1] : [this.#sorted[0] ?? 0, this.#sorted.at(-1) ?? 1];
    // Sums over the values from each on, so that a threshold's count needs no pass over all cells.
    const n = this.#sorted.length;
    this.#sums = { cells: new Float64Array(n + 1), variance: new Float64Array(n + 1) };
    for (let i = n - 1; i >= 0; i--) {
      const p = this.#sorted[i];
      this.#sums.cells[i] = this.#sums.cells[i + 1] + p;
      this.#sums.variance[i] = this.#sums.variance[i + 1] + p * (1 - p);
    }
  }

  get count() { return this.z.length; }

  get isProbability() { return this.name === "p_cell"; }

  /** A value between 0 and 1 for the colour, 0.5 where there is none. */
  share(row) {
    const value = this.value[row];
    return Number.isFinite(value) && this.high > this.low ? (value - this.low) / (this.high - this.low) : 0.5;
  }

  /** The rows of the table that a threshold keeps, with its first line. */
  kept(threshold) {
    const lines = this.csv.split(/\r?\n/).filter((line) => line.trim() && !line.startsWith("#"));
    return [lines[0], ...lines.slice(1).filter((_, row) => this.isKept(row, threshold)), ""].join("\n");
  }

  isKept(row, threshold) { return !(this.value[row] < threshold); }

  /** Rows whose z lies in [low, high]. */
  between(low, high) {
    const first = (z) => {
      let [a, b] = [0, this.#byZ.length];
      while (a < b) {
        const middle = (a + b) >> 1;
        if (this.z[this.#byZ[middle]] < z) a = middle + 1;
        else b = middle;
      }
      return a;
    };
    return this.#byZ.subarray(first(low), first(high + 1e-6));
  }

  /** How many a threshold keeps; of probabilities also the true cells expected among them and a 90 % interval. */
  at(threshold) {
    const n = this.#sorted.length;
    let [a, b] = [0, n];
    while (a < b) {
      const middle = (a + b) >> 1;
      if (this.#sorted[middle] < threshold) a = middle + 1;
      else b = middle;
    }
    const kept = n - a + (this.count - n);
    if (!this.isProbability) return { kept };
    const expected = this.#sums.cells[a];
    const half = 1.645 * Math.sqrt(this.#sums.variance[a]);
    return { kept, expected, low: Math.max(0, expected - half), high: Math.min(kept, expected + half) };
  }

  /** The kept row nearest to a place in µm within a distance, or null. */
  nearest(place, voxel, within, threshold) {
    let [best, least] = [null, within ** 2];
    for (const row of this.between(place.z - within / voxel[0], place.z + within / voxel[0])) {
      if (!this.isKept(row, threshold)) continue;
      const far = ((this.z[row] - place.z) * voxel[0]) ** 2 + ((this.y[row] - place.y) * voxel[1]) ** 2 + ((this.x[row] - place.x) * voxel[2]) ** 2;
      if (far <= least) [best, least] = [row, far];
    }
    return best;
  }
}
