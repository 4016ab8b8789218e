"""The report of a comparison as report.json, Markdown and HTML."""

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
from canvas_fm.viewing.report.page.conclusion import conclusion_of
from canvas_fm.viewing.report.page.page import PICTURES, markdown_of, page_of
from canvas_fm.viewing.report.page.tables import curve_counts, tables_of


def write_report(
    comparison: Comparison,
    out: str | Path,
    *,
    title: str = "Telling cells from other candidates",
    reference: str | None = None,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write report.json, report.md, report.html, figures/ and candidates/; returns the JSON content.

    candidates/VOLUME.csv has every candidate with its label and, for each method, the P(cell) of the fit that
    had not seen its volume (all labels, first seed; nothing for skipped ones).

    Crops show the judgements of the method with the highest pooled F1; `reference` is the one that the others
    are compared with. `about` goes into the report as it is (models with their sha256, say). Raises
    CanvasError for a method that is not there.
    """
    if reference is not None and reference not in comparison.methods:
        raise CanvasError(f"there is no method {reference!r}; the report has {', '.join(comparison.methods)}")
    pooled = {line.method: line.figures["f1"] for line in lines(comparison, POOLED)}
    gallery_method = max(pooled, key=lambda name: _mean(pooled[name]))
    folder = Path(out)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    pictures = _draw(comparison, folder / "figures", gallery_method)
    _write_candidates(comparison, folder / "candidates")
    report = _report(comparison, title, gallery_method, reference, dict(about or {}), pictures)
    tables = tables_of(comparison, reference)
    write_text_atomic(folder / "report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    write_text_atomic(folder / "report.md", markdown_of(report, tables))
    write_text_atomic(folder / "report.html", page_of(report, tables, folder))
    return report


def _draw(comparison: Comparison, folder: Path, gallery_method: str) -> list[str]:
    precision_recall_figure(comparison, folder / "precision_recall.png")
    reliability_figure(comparison, folder / "reliability.png")
    has_labels = labels_figure(comparison, folder / "labels.png")
    gallery_figure(comparison, gallery_method, folder / "gallery.png")
    return [name for name in PICTURES if name != "labels" or has_labels]


def _write_candidates(comparison: Comparison, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for part in comparison.pooled.parts:
        rows = comparison.pooled.group == part.name
        columns = {"label": part.label}
        columns |= {} if part.own is None else {"score": part.own}
        for method, p in comparison.p_cell.items():
            columns["p_" + re.sub(r"\W+", "_", method)] = p[rows]
        path = folder / (re.sub(r"[\\/]", "_", part.name) + ".csv")
        Points(part.zyx, columns, {"volume": part.volume.name}).write(path)


def _report(
    comparison: Comparison,
    title: str,
    gallery_method: str,
    reference: str | None,
    about: dict[str, Any],
    pictures: list[str],
) -> dict[str, Any]:
    pooled = comparison.pooled
    return {
        "title": title,
        "conclusion": conclusion_of(comparison),
        "canvas_fm": version("canvas-fm"),
        "versions": {name: version(name) for name in ("numpy", "scikit-learn", "torch")},
        "machine": f"{platform.machine()}, {platform.system()}",
        "split": {
            "by": pooled.by,
            "folds": {name: list(volumes) for name, volumes in comparison.folds.items()},
        },
        "volumes": {
            part.name: {
                "candidates": len(part),
                "cells": int((part.label == 1).sum()),
                "skipped": int((part.label == -1).sum()),
                "truth_without_candidate": part.missed,
                "tolerance_um": part.tolerance_um,
                "voxel_um": list(part.volume.voxel_um),
            }
            for part in pooled.parts
        },
        "notes": comparison.notes,
        "about": about,
        "methods": {
            line.method: {
                volume: _line_json(other)
                for volume in [*comparison.volumes, POOLED]
                for other in lines(comparison, volume)
                if other.method == line.method
            }
            for line in lines(comparison, POOLED)
        },
        "unrefined": {name: counts.as_dict() for name, counts in comparison.unrefined.items()},
        "own_thresholds": comparison.own_thresholds,
        "gains": {volume: gains(comparison, volume)._asdict() for volume in [*comparison.volumes, POOLED]},
        "counts": {
            line.method: {
                "calibration_error": line.error,
                "count_error": line.counts.error,
                "regions": line.counts.regions,
                "intervals_that_hold": line.counts.held,
            }
            for line in count_lines(comparison)
        },
        "label_curves": {name: curve.to_json() for name, curve in curves(comparison).items()},
        "against": None if reference is None else _against(comparison, reference),
        "speed": {name: speed._asdict() for name, speed in comparison.speed.items()},
        "fit_seconds": fit_seconds(comparison),
        "gallery": {
            "method": gallery_method,
            "rows": {
                name: [
                    {
                        "volume": example.volume,
                        "zyx": pooled.zyx[example.row].tolist(),
                        "p_cell": example.p,
                        "cell": example.is_cell,
                    }
                    for example in rows
                ]
                for name, rows in gallery_rows(comparison, gallery_method).items()
            },
        },
        "figures": [f"figures/{name}.png" for name in pictures],
        "results": [{**result._asdict(), "counts": result.counts._asdict()} for result in comparison.results],
    }


def _line_json(line: Any) -> dict[str, Any]:
    return {
        **{name: None if figure is None else figure.as_dict() for name, figure in line.figures.items()},
        "f1_interval_over_cells": line.cells_interval,
        "ceiling": line.ceiling,
        **dict(zip(("tp", "fp", "fn"), line.counts, strict=True)),
    }


def _against(comparison: Comparison, reference: str) -> dict[str, Any]:
    counts = curve_counts(comparison)
    label_counts = {"all": None, **{str(n): n for n in counts}}
    return {
        "reference": reference,
        "f1": {
            key: {
                name: difference.as_dict()
                for name, difference in against(comparison, reference, labels=labels).items()
            }
            for key, labels in label_counts.items()
        },
    }


def _mean(figure: Figure | None) -> float:
    return -1.0 if figure is None else figure.mean
