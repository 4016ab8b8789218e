// What the colours of the map mean; groups can be hidden.

import { category, css, onScale } from "../../shared/colours.js";
import { h, shown } from "../../shared/dom.js";

const shows = new WeakMap(); // the colouring that an element shows: where it is the same only colours may change

/** Fill `root`; `hidden` holds the places of hidden groups, `changed` is called where it changes. */
export function legend(root, name, colouring, hidden, changed) {
  if (colouring.kind === "numbers") root.replaceChildren(scale(name, colouring));
  else if (shows.get(root) === colouring) repaint(root);
  else root.replaceChildren(groups(name, colouring, hidden, changed));
  shows.set(root, colouring);
}

function groups(name, { groups: all }, hidden, changed) {
  const there = all.map((group, place) => ({ ...group, place })).filter(({ count }) => count > 0);
  const shownAtOnce = there.slice(0, 40);
  const items = shownAtOnce.map(({ name: word, count, slot, place }) => {
    const box = h("input", { type: "checkbox", checked: !hidden.has(place), on: { change: () => {
      if (box.checked) hidden.delete(place);
      else hidden.add(place);
      changed();
    } } });
    const swatch = h("span", { class: "swatch", data: { slot } });
    swatch.style.background = css(category(slot));
    return h("li", {}, h("label", {}, box, swatch, h("span", { class: "word", text: word }), h("span", { class: "count", text: shown(count) })));
  });
  const more = there.length - shownAtOnce.length;
  return h("fieldset", { class: "legend" }, h("legend", { text: name }), h("ul", {}, items),
    more > 0 && h("p", { class: "hint", text: `and ${more} more, in grey` }));
}

function repaint(root) {
  for (const swatch of root.querySelectorAll(".swatch")) swatch.style.background = css(category(Number(swatch.dataset.slot)));
}

function scale(name, { low, high }) {
  const bar = h("div", { class: "scale-bar" });
  bar.style.background = `linear-gradient(to right, ${Array.from({ length: 9 }, (_, i) => css(onScale(i / 8))).join(", ")})`;
  return h("div", { role: "img", "aria-label": `${name}: colours from ${shown(low)} to ${shown(high)}` },
    h("p", { class: "legend-name", text: name }), bar,
    h("p", { class: "scale-ends" }, h("span", { text: `≤ ${shown(low)}` }), h("span", { text: `≥ ${shown(high)}` })));
}
