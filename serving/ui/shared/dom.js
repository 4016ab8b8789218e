// Elements without markup as text: the page's policy forbids it, and nothing that a server says becomes HTML.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "path", "circle", "rect", "g", "title"]);

/** An element. `props`: `class`, `text`, `on: {event: handler}`, `data: {…}`, properties, or attributes. */
export function h(tag, props = {}, ...children) {
  const element = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name === "text") element.textContent = value;
    else if (name === "class") element.setAttribute("class", value);
    else if (name !== "role" && name in element && !SVG_TAGS.has(tag)) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Say something to those who do not see the page. */
export function announce(sentence) {
  const live = byId("live");
  live.textContent = "";
  requestAnimationFrame(() => { live.textContent = sentence; });
}

/** Put a sentence about what went wrong, or what is going on, in place of what an element holds. */
export function notice(element, sentence, kind = "note") {
  element.replaceChildren(h("p", { class: kind, role: kind === "problem" ? "alert" : "status", text: sentence }));
}

/** Label and control in one; the label names the control. */
export function field(label, control, hint) {
  return h("label", { class: "field" }, h("span", {}, label), control, hint && h("small", { text: hint }));
}

export function select(options, value, change, props = {}) {
  const element = h("select", { on: { change: () => change(element.value) }, ...props },
    options.map((option) => {
      const [name, text] = Array.isArray(option) ? option : [option, option];
      return h("option", { value: name, text, selected: name === value });
    }));
  return element;
}

export function button(text, click, props = {}) {
  return h("button", { type: "button", text, on: { click }, ...props });
}

/** A function that runs once its calls have paused. */
export function settled(run, pause = 150) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => run(...values), pause);
  };
}

const NUMBER = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** A number as a person reads it: thousands apart, four digits that count. */
export function shown(value) {
  if (value === null || value === undefined || value === "") return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return WHOLE.format(value);
  if (value !== 0 && Math.abs(value) < 0.001) return value.toExponential(2);
  return NUMBER.format(value);
}

export const plural = (count, one, many = `${one}s`) => `${WHOLE.format(count)} ${count === 1 ? one : many}`;

/** Hand a file to the person. */
export function download(blob, name) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Definitions as a table of two columns. */
export function facts(pairs) {
  return h("dl", { class: "facts" }, Object.entries(pairs)
    .filter(([, value]) => value !== undefined && value !== null)
    .map(([name, value]) => h("div", {}, h("dt", { text: name }), h("dd", {}, value instanceof Node ? value : String(value)))));
}
