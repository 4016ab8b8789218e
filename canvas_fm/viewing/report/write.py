"""The report of a comparison: report.json, Markdown and a page, which say the same."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError
from canvas_fm.files.atomic import write_text_atomic
from canvas_fm.heads.compare.compare import Comparison
from canvas_fm.heads.compare.summary import (
    POOLED,
    Figure,
    against,
    count_lines,
    curves,
    fit_seconds,
    gains,
    lines,
)
from canvas_fm.viewing.report.figures import (
    gallery_figure,
    gallery_rows,
    labels_figure,
    precision_recall_figure,
    reliability_figure,
)
from canvas_fm.viewing.report.page import PICTURES, markdown_of, page_of
from canvas_fm.viewing.report.tables import curve_counts, tables_of


def write_report(
    found: Comparison,
    out: str | Path,
    *,
    title: str = "Telling cells from other candidates",
    gallery_of: str | None = None,
    reference: str | None = None,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write report.json, report.md, report.html, figures/ and candidates/; returns what report.json holds.

    candidates/VOLUME.csv has every candidate with its label and, for each method, the P(cell) of the fit that
    had not seen its volume (all labels, first seed; nothing for skipped ones).

    `gallery_of` is the method whose judgements are shown as crops, by default the one of the highest pooled
    F1; `reference` is the one that the others are compared with. `about` goes into the report as it is
    (models with their sha256, say). Raises CanvasError for a method that is not there.
    """
    for name in (gallery_of, reference):
        if name is not None and name not in found.methods:
            raise CanvasError(f"there is no method {name!r}; the report has {', '.join(found.methods)}")
    pooled = {line.method: line.figures["f1"] for line in lines(found, POOLED)}
    shown = gallery_of or max(pooled, key=lambda name: _mean(pooled[name]))
    folder = Path(out)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    pictures = _draw(found, folder / "figures", shown)
    _write_candidates(found, folder / "candidates")
    report = _report(found, title, shown, reference, dict(about or {}), pictures)
    tables = tables_of(found, reference)
    write_text_atomic(folder / "report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    write_text_atomic(folder / "report.md", markdown_of(report, tables))
    write_text_atomic(folder / "report.html", page_of(report, tables, folder))
    return report


def _draw(found: Comparison, folder: Path, shown: str) -> list[str]:
    precision_recall_figure(found, folder / "precision_recall.png")
    reliability_figure(found, folder / "reliability.png")
    some = labels_figure(found, folder / "labels.png")
    gallery_figure(found, shown, folder / "gallery.png")
    return [name for name in PICTURES if name != "labels" or some]


def _write_candidates(found: Comparison, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for part in found.task.parts:
        rows = found.task.group == part.name
        columns = {"label": part.label}
        columns |= {} if part.own is None else {"score": part.own}
        for method, p in found.p_cell.items():
            columns["p_" + re.sub(r"\W+", "_", method)] = p[rows]
        path = folder / (re.sub(r"[\\/]", "_", part.name) + ".csv")
        Points(part.zyx, columns, {"volume": part.volume.name}).write(path)


def _report(
    found: Comparison,
    title: str,
    shown: str,
    reference: str | None,
    about: dict[str, Any],
    pictures: list[str],
) -> dict[str, Any]:
    task = found.task
    return {
        "title": title,
        "canvas_fm": version("canvas-fm"),
        "versions": {name: version(name) for name in ("numpy", "scikit-learn", "torch")},
        "machine": f"{platform.machine()}, {platform.system()}",
        "split": {"by": task.by, "folds": {name: list(some) for name, some in found.folds.items()}},
        "volumes": {
            part.name: {
                "candidates": len(part),
                "cells": int((part.label == 1).sum()),
                "skipped": int((part.label == -1).sum()),
                "truth_without_candidate": part.missed,
                "tolerance_um": part.tolerance_um,
                "voxel_um": list(part.volume.voxel_um),
            }
            for part in task.parts
        },
        "notes": found.notes,
        "about": about,
        "methods": {
            line.method: {
                volume: _line_json(one)
                for volume in [*found.volumes, POOLED]
                for one in lines(found, volume)
                if one.method == line.method
            }
            for line in lines(found, POOLED)
        },
        "unrefined": {name: counts.as_dict() for name, counts in found.unrefined.items()},
        "own_thresholds": found.own_thresholds,
        "gains": {volume: gains(found, volume)._asdict() for volume in [*found.volumes, POOLED]},
        "counts": {
            line.method: {
                "calibration_error": line.error,
                "count_error": line.counts.error,
                "regions": line.counts.regions,
                "intervals_that_hold": line.counts.held,
            }
            for line in count_lines(found)
        },
        "label_curves": {name: curve.to_json() for name, curve in curves(found).items()},
        "against": None if reference is None else _against(found, reference),
        "speed": {name: speed._asdict() for name, speed in found.speed.items()},
        "fit_seconds": fit_seconds(found),
        "gallery": {
            "method": shown,
            "rows": {
                name: [
                    {
                        "volume": one.volume,
                        "zyx": task.zyx[one.row].tolist(),
                        "p_cell": one.p,
                        "cell": one.is_cell,
                    }
                    for one in rows
                ]
                for name, rows in gallery_rows(found, shown).items()
            },
        },
        "figures": [f"figures/{name}.png" for name in pictures],
        "results": [{**one._asdict(), "counts": one.counts._asdict()} for one in found.results],
    }


def _line_json(line: Any) -> dict[str, Any]:
    return {
        **{name: None if one is None else one.as_dict() for name, one in line.figures.items()},
        "f1_interval_over_cells": line.cells_interval,
        "ceiling": line.ceiling,
        **dict(zip(("tp", "fp", "fn"), line.counts, strict=True)),
    }


def _against(found: Comparison, reference: str) -> dict[str, Any]:
    counts = curve_counts(found)
    asked = {"all": None, **{str(n): n for n in counts}}
    return {
        "reference": reference,
        "f1": {
            key: {name: one.as_dict() for name, one in against(found, reference, labels=labels).items()}
            for key, labels in asked.items()
        },
    }


def _mean(figure: Figure | None) -> float:
    return -1.0 if figure is None else figure.mean
