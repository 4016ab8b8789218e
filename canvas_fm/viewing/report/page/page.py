"""A report as Markdown and as one static page with the same tables and figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from canvas_fm.errors import counted
from canvas_fm.evaluation.page.html import png_data, render
from canvas_fm.viewing.report.page.tables import Table

NOTE = (
    "All figures are cross-validated over volumes. F1, precision and recall: at one fixed threshold, "
    "chosen on the training volumes, by one-to-one matching with all true cells. True cells without a "
    "candidate are false negatives, so the best possible F1 at recall R is 2R / (1 + R). F1 at its best "
    "threshold is chosen on the held-out volume itself: an upper bound. AUC, overlap: only candidates "
    "whose score lies where those of cells and non-cells overlap (from the lowest 1 % of cells to the top "
    "1 % of non-cells). ECE: expected calibration error. Small or in brackets: 95 % interval, over seeds "
    "where there are several, else over cells (F1 of one volume only)."
)
FIRST_TABLES = 3  # before all else, the rest is folded
PICTURES = {
    "precision_recall": ("Precision and recall", "Precision against recall for each held-out volume"),
    "reliability": ("Reliability", "Observed frequency of cells against the predicted probability"),
    "labels": ("Labels", "F1 and AUC against the number of labels"),
    "gallery": ("Gallery", "Crops: most certain cells and non-cells, least certain candidates, worst errors"),
}


def markdown_of(report: Mapping[str, Any], tables: list[Table]) -> str:
    pictures = []
    for path in report["figures"]:
        heading, alt = PICTURES[Path(path).stem]
        pictures.append(f"## {heading}\n\n![{alt}]({path})")
    shown = [_table(table) for table in tables]
    parts = [
        f"# {report['title']}",
        f"**{sentence_of(report)}**",
        *[f"**{note}**" for note in report["notes"]],
    ]
    parts += [*pictures[:1], *shown[:FIRST_TABLES], NOTE, *shown[FIRST_TABLES:], *pictures[1:]]
    about = "\n".join(f"- {name}: {value}" for name, value in _about(report).items())
    return "\n\n".join([*parts, f"## About\n\n{about}"]) + "\n"


def sentence_of(report: Mapping[str, Any]) -> str:
    """The conclusion as a sentence."""
    text = str(report["conclusion"])
    return f"{text[0].upper()}{text[1:]}."


def _table(table: Table) -> str:
    head = "| " + " | ".join(table.heads) + " |\n|" + "---|" * len(table.heads)
    rows = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table.rows)
    return f"## {table.caption}\n\n{head}\n{rows}"


def page_of(report: Mapping[str, Any], tables: list[Table], folder: Path) -> str:
    """The report as one HTML page with embedded images."""
    paths = [folder / path for path in report["figures"]]
    pictures = [(path.stem, *PICTURES[path.stem], png_data(path.read_bytes())) for path in paths]
    return render(
        "viewing/report/page/page.html",
        title=report["title"],
        report=report,
        conclusion=sentence_of(report),
        tables=tables,
        first_tables=FIRST_TABLES,
        note=NOTE,
        pictures=pictures,
        about=_about(report),
    )


def _about(report: Mapping[str, Any]) -> dict[str, str]:
    folds = "; ".join(f"{name}: {', '.join(volumes)}" for name, volumes in report["split"]["folds"].items())
    lines_ = {
        "split": f"by {report['split']['by']}; held out together: {folds}",
        "candidates": "; ".join(
            f"{name} {volume['candidates']:,} ({counted(volume['cells'], 'cell')}, "
            f"{volume['skipped']:,} skipped, "
            f"{counted(volume['truth_without_candidate'], 'true cell')} without one)"
            for name, volume in report["volumes"].items()
        ),
        "versions": f"canvas-fm {report['canvas_fm']}, "
        + ", ".join(f"{name} {number}" for name, number in report["versions"].items()),
        "machine": report["machine"],
    }
    return lines_ | {name: str(value) for name, value in report["about"].items()}
