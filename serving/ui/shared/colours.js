// Colours that are told apart by the colour-blind too, on a light and on a dark page.
//
// The eight of a theme were searched for: any two differ by at least 0.1 in OKLab as people see them with and without
// protanopia, deuteranopia and tritanopia, and each stands out from the page by 3 to 1 or more. tests/ui compares.

export const CATEGORIES = {
  light: ["#0f96f0", "#870f5a", "#969600", "#004b96", "#e169a5", "#5a4b00", "#785ac3", "#a55a4b"],
  dark: ["#2d96f0", "#ffb43c", "#ff7887", "#5ad2e1", "#b44b0f", "#875ab4", "#a59600", "#007869"],
};
const OTHER = { light: "#7d8894", dark: "#75818d" };
// Viridis, without the end that would vanish on the page; much is what stands out.
const SCALES = {
  light: ["#45bf70", "#1f9e89", "#26828e", "#31688e", "#3e4989", "#482878", "#440154"],
  dark: ["#5a63b0", "#3f7fae", "#2f97a5", "#2cb08f", "#5cc863", "#aadc32", "#fde725"],
};
const dark = matchMedia("(prefers-color-scheme: dark)");

export const theme = () => (dark.matches ? "dark" : "light");
export const onTheme = (run) => dark.addEventListener("change", run);
export const MOST_CATEGORIES = CATEGORIES.light.length;

const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

/** [r, g, b] of the n-th category, grey for what is beyond. */
export const category = (n) => rgb(n >= 0 && n < MOST_CATEGORIES ? CATEGORIES[theme()][n] : OTHER[theme()]);

/** [r, g, b] of a number from 0 to 1; over a dark picture `on` is "dark" whatever the page's theme. */
export function onScale(share, on = theme()) {
  const anchors = SCALES[on].map(rgb);
  const place = Math.min(1, Math.max(0, share)) * (anchors.length - 1);
  const low = Math.min(Math.floor(place), anchors.length - 2);
  return anchors[low].map((value, i) => Math.round(value + (place - low) * (anchors[low + 1][i] - value)));
}

export const css = ([r, g, b]) => `rgb(${r} ${g} ${b})`;

/**
 * How a column is coloured: `{kind: "words", groups: [{name, count, colour}], of}` or
 * `{kind: "numbers", low, high, of}`; `of[i]` is the place of cell i among the groups, or its number.
 */
export function colouring(values, words) {
  return words ? byWords(values, words) : byNumbers(values);
}

function byWords(codes, words) {
  const counts = new Float64Array(words.length + 2);
  const of = Int32Array.from(codes, (code) => (code >= 0 ? code : words.length + (code === -2 ? 0 : 1)));
  for (const place of of) counts[place]++;
  return grouped(of, [...words, "others", "none"], counts, words.length);
}

function byNumbers(values) {
  const distinct = new Set();
  for (const value of values) {
    if (Number.isFinite(value)) distinct.add(value);
    if (distinct.size > 12) break;
  }
  // A column of a few whole numbers, as labels are, names groups.
  if (distinct.size <= 12 && [...distinct].every(Number.isInteger)) {
    const names = [...distinct].sort((a, b) => a - b);
    const places = new Map(names.map((value, place) => [value, place]));
    const counts = new Float64Array(names.length + 1);
    const of = Int32Array.from(values, (value) => places.get(value) ?? names.length);
    for (const place of of) counts[place]++;
    return grouped(of, [...names.map(String), "none"], counts, names.length);
  }
  const finite = Float64Array.from(values).filter(Number.isFinite).sort();
  const at = (share) => finite[Math.round(share * (finite.length - 1))] ?? 0;
  return { kind: "numbers", low: at(0.02), high: at(0.98), of: values };
}

/** The most frequent groups have colours of their own; what is from `named` on is grey. */
function grouped(of, names, counts, named) {
  const order = [...names.keys()].sort((a, b) => (a >= named) - (b >= named) || counts[b] - counts[a] || a - b);
  const rank = new Map(order.map((place, position) => [place, position]));
  const groups = order.map((place, position) => ({
    name: names[place],
    count: counts[place],
    slot: place < named && position < MOST_CATEGORIES ? position : -1,
  }));
  return { kind: "words", groups, of: of.map((place) => rank.get(place)) };
}
