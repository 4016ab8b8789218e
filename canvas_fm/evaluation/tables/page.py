"""The tables as a page with a heat map: marks and numbers say what the colours say."""

from __future__ import annotations

from html import escape

from canvas_fm.evaluation.html import heat, page, table
from canvas_fm.evaluation.tables.tables import Row, Tables

_NOTE = (
    "<strong>Bold</strong>: the data set of the model's own marker. <u>Underlined</u>: the best model of the "
    "row. Accuracy is TP / (TP + FP + FN). Sets and totals pool the cells of their regions. Small: 95 % "
    "bootstrap interval of F1 (over the scored boxes where there are five, else over cells). – : not run."
)


def tables_page(tables: Tables) -> str:
    """Tables 3 and 4 and the generalisation gap as one HTML page."""
    totals = [row for row in tables.rows if row.level == "total"]
    scale = "".join(f'<span style="{heat(step / 5)}">{step / 5:.1f}</span>' for step in range(6))
    tolerances = ", ".join(f"{escape(name)} {escape(text)}" for name, text in tables.tolerances.items())
    body = (
        f"<h1>{escape(tables.title)}</h1>\n"
        f'<p class="lead">Rows are data sets, columns are models. Accuracy and F1 by greedy one-to-one '
        f"matching; "
        f"tolerance: {tolerances}.</p>\n"
        f"<section><h2>Data sets</h2>{_table('All regions of each data set', tables, totals, regions=False)}"
        f'<p class="note">{_NOTE}</p>'
        f'<p class="note">Colour, by value: <span class="scale">{scale}</span></p></section>\n'
        f"<section><h2>Generalisation</h2>{_gaps(tables)}</section>\n"
        f"<section><h2>Regions</h2>{_table('Each data set by set and region', tables, list(tables.rows))}"
        "</section>"
    )
    return page(tables.title, body)


def _table(caption: str, tables: Tables, rows: list[Row], *, regions: bool = True) -> str:
    first = '<th class="text" scope="col" rowspan="2">Data set</th>'
    first += '<th class="text" scope="col" rowspan="2">Region</th>' if regions else ""
    models = "".join(
        f'<th class="heat" scope="colgroup" colspan="2">{escape(model)}</th>' for model in tables.models
    )
    figures = '<th class="heat" scope="col">Acc</th><th class="heat" scope="col">F1</th>' * len(tables.models)
    lines = []
    for row in rows:
        name = f'<th scope="row" class="text">{escape(row.dataset)}</th>'
        if regions:
            spoken = (
                escape(row.dataset)
                if row.level == "total"
                else f'<span class="hidden">{escape(row.dataset)}</span>'
            )
            name = f'<th class="text" scope="row">{spoken}</th><th scope="row">{escape(row.label)}</th>'
        level = row.level if regions else ""
        lines.append(
            f'<tr class="{level}">{name}{"".join(_cells(row, model) for model in tables.models)}</tr>'
        )
    return table(caption, f"<tr>{first}{models}</tr><tr>{figures}</tr>", "\n".join(lines))


def _cells(row: Row, model: str) -> str:
    cell = row.cells[model]
    if cell is None:
        return '<td class="heat">–</td><td class="heat">–</td>'
    interval = cell.interval.of.get("f1")
    parts = []
    for figure, value in (("Accuracy", cell.counts.accuracy), ("F1", cell.counts.f1)):
        text = "–" if value is None else f"{value:.2f}"
        text = f"<u>{text}</u>" if model in row.best else text
        text = f"<strong>{text}</strong>" if cell.matched else text
        spoken = [*(["matched"] if cell.matched else []), *(["best"] if model in row.best else [])]
        text += f'<span class="hidden"> {", ".join(spoken)}</span>' if spoken else ""
        if figure == "F1" and interval is not None:
            text += f" <small>{interval[0]:.2f}–{interval[1]:.2f}</small>"
        c = cell.counts
        tip = f"{model} on {row.dataset}, {row.label}: TP {c.tp}, FP {c.fp}, FN {c.fn}"
        style = "" if value is None else f' style="{heat(value)}"'
        parts.append(f'<td class="heat"{style} title="{escape(tip)}">{text}</td>')
    return "".join(parts)


def _gaps(tables: Tables) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in ("F1, own marker", "F1 elsewhere", "Gap"))
    lines = []
    for model in tables.models:
        gap = tables.gap(model)
        numbers = ("–",) * 3 if gap is None else tuple(f"{v:.2f}" for v in (*gap, gap[0] - gap[1]))
        cells = "".join(f"<td>{number}</td>" for number in numbers)
        lines.append(f'<tr><th scope="row">{escape(model)}</th>{cells}</tr>')
    caption = "Mean F1 on the data sets of a model's own marker, and on all others"
    return table(
        caption, f'<tr><th class="text" scope="col">Model</th>{head}</tr>', "\n".join(lines), kind="narrow"
    )
