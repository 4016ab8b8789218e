"""A report as Markdown and as one static page: the same tables, the same pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from canvas_fm.evaluation.html import page, table
from canvas_fm.viewing.report.tables import Table

NOTE = (
    "F1, precision and recall: cells kept at one threshold, which was chosen on the training volumes and "
    "carried to the held-out one, matched one to one to all true cells; true cells without a candidate count "
    "as missed, so no judge can pass the ceiling 2R / (1 + R). Tuned F1 takes the best threshold on the "
    "answers: an upper bound, no result. AUC, overlap: only candidates whose own score lies where those of "
    "cells and of others overlap (from the lowest 1 % of cells to the top 1 % of others). ECE: expected "
    "calibration error. Small or in brackets: 95 % over seeds where there are several, else over cells (F1 "
    "of one volume only)."
)
PICTURES = {
    "precision_recall": ("Precision and recall", "Precision against recall for each held-out volume"),
    "reliability": ("Reliability", "Share of cells against the probability that was said"),
    "labels": ("Labels", "F1 and AUC against the number of labels"),
    "gallery": ("Gallery", "Crops: most certain cells and others, most doubtful, worst mistakes"),
}


def markdown_of(report: Mapping[str, Any], tables: list[Table]) -> str:
    parts = [f"# {report['title']}", *[f"**{note}**" for note in report["notes"]], NOTE]
    for one in tables:
        head = "| " + " | ".join(one.heads) + " |\n|" + "---|" * len(one.heads)
        rows = "\n".join(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in one.rows
        )
        parts.append(f"## {one.caption}\n\n{head}\n{rows}")
    for path in report["figures"]:
        heading, alt = PICTURES[Path(path).stem]
        parts.append(f"## {heading}\n\n![{alt}]({path})")
    about = "\n".join(f"- {name}: {value}" for name, value in _about(report).items())
    return "\n\n".join([*parts, f"## About\n\n{about}"]) + "\n"


def page_of(report: Mapping[str, Any], tables: list[Table], folder: Path) -> str:
    parts = [f"<h1>{escape(report['title'])}</h1>"]
    parts += [f'<p class="lead"><strong>{escape(note)}</strong></p>' for note in report["notes"]]
    for number, one in enumerate(tables):
        head = "".join(
            f'<th scope="col"{_text(one, place)}>{escape(name)}</th>' for place, name in enumerate(one.heads)
        )
        body = "".join(_row(one, row) for row in one.rows)
        note = f'<p class="note">{escape(NOTE)}</p>' if not number else ""
        parts.append(f"<section>{table(one.caption, f'<tr>{head}</tr>', body)}{note}</section>")
    for path in report["figures"]:
        heading, alt = PICTURES[Path(path).stem]
        data = base64.b64encode((folder / path).read_bytes()).decode()
        caption = f" of {escape(report['gallery']['method'])}" if Path(path).stem == "gallery" else ""
        extra = _GALLERY_NOTE if Path(path).stem == "gallery" else ""
        parts.append(
            f'<section><h2>{heading}{caption}</h2><img alt="{escape(alt)}" '
            f'style="max-width:100%;background:#fff" src="data:image/png;base64,{data}">{extra}</section>'
        )
    listed = "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in _about(report).items())
    parts.append(f"<section><h2>About</h2><dl>{listed}</dl></section>")
    return page(report["title"], "\n".join(parts))


_GALLERY_NOTE = (
    '<p class="note">Solid green frame: labelled a cell; dashed red: none. The brightest of the planes '
    "within 6 µm, 40 µm wide, each on its own grey scale.</p>"
)


def _row(one: Table, row: tuple[str, ...]) -> str:
    cells = "".join(f"<td{_text(one, place + 1)}>{_small(cell)}</td>" for place, cell in enumerate(row[1:]))
    return f'<tr><th scope="row" class="text">{escape(row[0])}</th>{cells}</tr>'


def _small(cell: str) -> str:
    value, bracket, interval = cell.partition(" [")
    return escape(value) + (
        f"<small>{escape(interval.rstrip(']').replace(', ', ' to '))}</small>" if bracket else ""
    )


def _text(one: Table, place: int) -> str:
    wordy = place == 0 or one.heads[place] in ("What more are worth", "Counted from")
    return ' class="text"' if wordy else ""


def _about(report: Mapping[str, Any]) -> dict[str, str]:
    folds = "; ".join(f"{name}: {', '.join(some)}" for name, some in report["split"]["folds"].items())
    lines_ = {
        "split": f"by {report['split']['by']}; held out together: {folds}",
        "candidates": "; ".join(
            f"{name} {one['candidates']:,} ({one['cells']:,} cells, {one['skipped']:,} skipped, "
            f"{one['truth_without_candidate']:,} true cells without one)"
            for name, one in report["volumes"].items()
        ),
        "versions": f"canvas-fm {report['canvas_fm']}, "
        + ", ".join(f"{name} {number}" for name, number in report["versions"].items()),
        "machine": report["machine"],
    }
    return lines_ | {name: str(value) for name, value in report["about"].items()}
