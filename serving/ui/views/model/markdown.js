// The Markdown of model cards as elements: headings, paragraphs, lists, tables, code. Everything else stays text.

import { h } from "../../shared/dom.js";

/** The elements of a text; its headings begin one level below `level`. */
export function markdown(text, level = 2) {
  const out = [];
  for (const block of text.replace(/<!--.*?-->/gs, "").split(/\n\s*\n/)) {
    const lines = block.split("\n").filter((line) => line.trim());
    if (!lines.length) continue;
    const heading = /^(#{1,5})\s+(.*)$/.exec(lines[0]);
    if (heading) {
      out.push(h(`h${Math.min(6, heading[1].length + level)}`, {}, inline(heading[2])));
      lines.shift();
    }
    if (lines.length) out.push(blockOf(lines));
  }
  return out;
}

function blockOf(lines) {
  if (lines.every((line) => line.trim().startsWith("|")) && /^[\s|:-]+$/.test(lines[1] ?? "")) return table(lines);
  if (/^\s*[-*]\s/.test(lines[0])) return list(lines);
  if (lines[0].startsWith("```")) return h("pre", { tabIndex: 0, text: lines.filter((line) => !line.startsWith("```")).join("\n") });
  return h("p", {}, inline(lines.map((line) => line.trim()).join(" ")));
}

function table(lines) {
  const [head, , ...rows] = lines.map((line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim()));
  return h("div", { class: "scroll", role: "region", tabIndex: 0, "aria-label": `Table: ${head.join(", ")}` }, h("table", {},
    h("thead", {}, h("tr", {}, head.map((cell) => h("th", { scope: "col" }, inline(cell))))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell) => h("td", {}, inline(cell))))))));
}

/** A line that is no item of its own goes on with the one before it. */
function list(lines) {
  const items = [];
  for (const line of lines) {
    const item = /^\s*[-*]\s+(.*)$/.exec(line);
    if (item) items.push(item[1]);
    else items[items.length - 1] += ` ${line.trim()}`;
  }
  return h("ul", {}, items.map((item) => h("li", {}, inline(item))));
}

/** Code and strong words; of a link its words. */
function inline(text) {
  const plain = text.replace(/\[([^\]]+)\]\([^)]*\)/g, "$1");
  return plain.split(/(`[^`]+`|\*\*[^*]+\*\*)/).filter(Boolean).map((part) => {
    if (part.startsWith("`")) return h("code", { text: part.slice(1, -1) });
    if (part.startsWith("**")) return h("b", { text: part.slice(2, -2) });
    return part;
  });
}
