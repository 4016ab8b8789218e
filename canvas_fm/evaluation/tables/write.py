"""The tables of a comparison as files: Markdown, CSV and a page."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from canvas_fm.evaluation.page.html import render
from canvas_fm.evaluation.tables.conclusion import conclusion_of, picture_of
from canvas_fm.evaluation.tables.tables import Row, Tables
from canvas_fm.files.atomic import write_text_atomic

_COLUMNS = (
    *("dataset", "row", "level", "model", "matched", "best", "tp", "fp", "fn"),
    *("accuracy", "precision", "recall", "f1", "f1_low", "f1_high", "interval_over", "tolerance"),
)


def write_tables(tables: Tables, out: str | Path) -> list[Path]:
    """Write tables.md, tables.csv and tables.html into a folder; returns their paths."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in (("md", markdown(tables)), ("csv", table_csv(tables)), ("html", tables_page(tables))):
        written.append(out / f"tables.{name}")
        write_text_atomic(written[-1], text)
    return written


def tables_page(tables: Tables) -> str:
    """Tables 3 and 4 and the generalisation gap as one HTML page, the conclusion and a picture first."""
    return render(
        "evaluation/tables/page.html",
        title=tables.title,
        tables=tables,
        conclusion=conclusion_of(tables),
        picture=picture_of(tables),
    )


def markdown(tables: Tables) -> str:
    """Tables 3 and 4 as Markdown: matched data set bold, best of a row underlined."""
    parts = [f"# {tables.title}\n", f"**{conclusion_of(tables)}**\n"]
    for name, rows in (
        ("Data sets", [row for row in tables.rows if row.level == "total"]),
        ("Regions", list(tables.rows)),
    ):
        heads = ["Data set"] + (["Region"] if name == "Regions" else [])
        heads += [f"{model} {figure}" for model in tables.models for figure in ("Acc", "F1")]
        parts.append(f"## {name}\n\n| {' | '.join(map(_cell_text, heads))} |\n|{'---|' * len(heads)}")
        for row in rows:
            first = [row.dataset] + ([row.label] if name == "Regions" else [])
            numbers = [text for model in tables.models for text in _marked(row, model)]
            parts.append(f"| {' | '.join([*map(_cell_text, first), *numbers])} |")
        parts.append("")
    parts.append("## Generalisation\n\n| Model | F1 matched | F1 elsewhere | Gap |\n|---|---|---|---|")
    for model in tables.models:
        gap = tables.gap(model)
        gap_text = "– | – | –" if gap is None else f"{gap[0]:.2f} | {gap[1]:.2f} | {gap[0] - gap[1]:.2f}"
        parts.append(f"| {_cell_text(model)} | {gap_text} |")
    tolerances = "; ".join(f"{name}: {tolerance}" for name, tolerance in tables.tolerances.items())
    parts.append(
        "\nBold: the data set of the model's own marker. Underlined: the best model of the row. Accuracy is "
        "TP / (TP + FP + FN); sets and totals pool the cells of their regions. Tolerance: "
        f"{tolerances}.\n"
    )
    return "\n".join(parts)


def table_csv(tables: Tables) -> str:
    """CSV with one line a row and model, including counts and intervals."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in tables.rows:
        for model, cell in row.cells.items():
            if cell is None:
                continue
            c, low_high = cell.counts, cell.interval.of.get("f1", ("", ""))
            figures = ["" if v is None else v for v in (c.accuracy, c.precision, c.recall, c.f1)]
            flags = [int(cell.matched), int(model in row.best)]
            ends = [*low_high, cell.interval.over, tables.tolerances[row.dataset]]
            writer.writerow([row.dataset, row.label, row.level, model, *flags, *c, *figures, *ends])
    return buffer.getvalue()


def _marked(row: Row, model: str) -> tuple[str, str]:
    cell = row.cells[model]
    if cell is None:
        return "–", "–"
    texts = []
    for figure in (cell.counts.accuracy, cell.counts.f1):
        text = "–" if figure is None else f"{figure:.2f}"
        text = f"<u>{text}</u>" if model in row.best else text
        texts.append(f"**{text}**" if cell.matched else text)
    return texts[0], texts[1]


def _cell_text(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
