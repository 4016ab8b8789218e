"""Figures of a method comparison: precision–recall, reliability, label efficiency, gallery of crops."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from canvas_fm.evaluation.metrics.classification import reliability
from canvas_fm.files.atomic import write_atomic
from canvas_fm.heads.compare.compare import Comparison
from canvas_fm.heads.compare.label_curve import LabelCurve
from canvas_fm.heads.compare.pooled_candidates import PooledCandidates
from canvas_fm.heads.compare.summary import curves
from canvas_fm.heads.labels.candidates import CELL, SKIP

_COLUMNS = 3
_SHOWN = 10  # crops a row of the gallery
_CROP_UM = 40.0
_PITCH, _SIDE = (1.15, 1.7), 1.05  # inches of the gallery: from crop to crop (x, y), and a crop's side
_STYLES = ("-", "--", "-.", ":")


def precision_recall_figure(comparison: Comparison, path: Path) -> None:
    """Precision–recall curves, a panel a volume; dots mark the fixed threshold."""
    figure, panels = _panels(comparison.volumes)
    for volume, ax in panels.items():
        part = next(candidates for candidates in comparison.pooled.parts if candidates.name == volume)
        rows = comparison.pooled.group == volume
        max_recall = 0.0
        for number, method in enumerate(comparison.methods):
            p = np.nan_to_num(comparison.p_cell[method][rows], nan=0.0)
            curve = part.curve(p)
            ax.plot(curve.recall, curve.precision, label=method, **_line(number))
            max_recall = float(curve.recall[-1]) if len(curve.recall) else 0.0
            at = (
                int(np.searchsorted(-curve.threshold, -comparison.thresholds[method][volume], side="right"))
                - 1
            )
            if at >= 0:
                ax.plot(curve.recall[at], curve.precision[at], "o", ms=5, color=f"C{number % 10}")
        ax.axvline(max_recall, color="0.6", lw=0.8, ls=":")
        ax.set(xlim=(0, 1.02), ylim=(0, 1.02), title=volume, xlabel="recall", ylabel="precision")
    _finish(figure, path, "dots: fixed threshold; dotted: recall of the candidates")


def reliability_figure(comparison: Comparison, path: Path) -> None:
    """Reliability diagrams, a panel a volume; the diagonal is perfect calibration."""
    figure, panels = _panels(comparison.volumes)
    for volume, ax in panels.items():
        rows = (comparison.pooled.group == volume) & (comparison.pooled.label != SKIP)
        is_cell = comparison.pooled.label[rows] == CELL
        ax.plot([0, 1], [0, 1], color="0.7", lw=0.8)
        for number, method in enumerate(comparison.methods):
            bins = reliability(is_cell, comparison.p_cell[method][rows])
            label = f"{method} ({bins.error:.3f})" if len(panels) == 1 else method
            ax.plot(bins.predicted, bins.observed, marker="o", ms=3, label=label, **_line(number))
        ax.set(
            xlim=(-0.02, 1.02),
            ylim=(-0.02, 1.02),
            title=volume,
            xlabel="predicted probability P(cell)",
            ylabel="observed frequency of cells",
        )
    _finish(figure, path, "above the diagonal: more cells than predicted")


def labels_figure(comparison: Comparison, path: Path) -> bool:
    """Pooled F1 and AUC against the number of labels; False without label curves."""
    by_figure = {name: curves(comparison, figure=name) for name in ("f1", "auc")}
    if not by_figure["f1"]:
        return False
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    for ax, (name, every) in zip(figure.subplots(1, 2), by_figure.items(), strict=True):
        for number, method in enumerate(comparison.methods):
            if method in every:
                _labels(ax, every[method], method, number)
        ylabel = "F1, fixed threshold" if name == "f1" else "AUC"
        ax.set(xscale="log", xlabel="labels", ylabel=ylabel, title=f"{ylabel}, held-out volumes")
        counts = sorted({n for curve in every.values() for n in curve.values})
        ax.set_xticks(counts, [f"{n:,}" for n in counts], fontsize=8, rotation=30)
        ax.minorticks_off()
    _finish(figure, path, "bands: 95 % over seeds")
    return True


class Shown(NamedTuple):
    """A candidate of the gallery."""

    row: int
    p: float
    is_cell: bool
    volume: str


def gallery_rows(comparison: Comparison, method: str) -> dict[str, list[Shown]]:
    """Candidates for the gallery: sure cells, sure non-cells, least certain ones, errors.

    The worst errors are first false negatives, then false positives. No two
    lists name one row.
    """
    pooled, p = comparison.pooled, comparison.p_cell[method]
    known = np.flatnonzero(np.isfinite(p))
    is_cell = pooled.label[known] == CELL
    limit = np.array([comparison.thresholds[method][str(name)] for name in pooled.group[known]])
    rising = known[np.argsort(p[known], kind="stable")]
    wrong_cell = known[is_cell & (p[known] < limit)]
    wrong_other = known[~is_cell & (p[known] >= limit)]
    picks = {
        "false negatives": wrong_cell[np.argsort(p[wrong_cell], kind="stable")],
        "false positives": wrong_other[np.argsort(-p[wrong_other], kind="stable")],
        "least certain": known[np.argsort(np.abs(p[known] - limit), kind="stable")],
        "most certain cells": rising[::-1],
        "most certain non-cells": rising,
    }
    taken: set[int] = set()
    rows = {}
    for title, order in picks.items():
        chosen = [int(row) for row in order if int(row) not in taken][:_SHOWN]
        taken |= set(chosen)
        rows[title] = [
            Shown(row, float(p[row]), bool(pooled.label[row] == CELL), str(pooled.group[row]))
            for row in chosen
        ]
    order = ("most certain cells", "most certain non-cells", "least certain", *list(picks)[:2])
    return {title: rows[title] for title in order}


def gallery_figure(comparison: Comparison, method: str, path: Path) -> None:
    """Gallery PNG: 40 µm wide crops, maximum projection over ±6 µm, framed by label."""
    every = {title: rows for title, rows in gallery_rows(comparison, method).items() if rows}
    lines = max(len(every), 1)
    figure = Figure(figsize=(_PITCH[0] * _SHOWN, _PITCH[1] * lines))
    # One pair of axes in inches: fifty of them, each with its ticks, take seconds to draw.
    width, height = figure.get_size_inches()
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    for line, (title, entries) in enumerate(every.items()):
        crops = _projected(comparison.pooled, np.array([entry.row for entry in entries], np.int64))
        top = line * _PITCH[1] + 0.26
        ax.text(0.06, top - 0.07, title, fontsize=9)
        for place, (entry, crop) in enumerate(zip(entries, crops, strict=True)):
            left = place * _PITCH[0] + 0.06
            box = (left, left + _SIDE, top + _SIDE, top)
            high = max(float(np.percentile(crop, 99.8)), 1e-3)
            ax.imshow(crop, cmap="gray", vmin=float(crop.min()), vmax=high, extent=box, aspect="auto")
            colour, style = ("#0b8f4d", "-") if entry.is_cell else ("#c23b0b", "--")
            frame = Rectangle((left, top), _SIDE, _SIDE, fill=False, ec=colour, lw=2.2, ls=style)
            ax.add_patch(frame)
            label = f"P {entry.p:.2f}\n{entry.volume}"[:40]
            ax.text(left + _SIDE / 2, top + _SIDE + 0.06, label, fontsize=6.5, ha="center", va="top")
    ax.set(xlim=(0, width), ylim=(height, 0))  # imshow moved them
    _save(figure, path)


def _projected(pooled: PooledCandidates, rows: np.ndarray) -> Float32[np.ndarray, "n y x"]:
    z, y, x = pooled.voxel_um
    side_y, side_x = (2 * round(_CROP_UM / 2 / size) + 1 for size in (y, x))
    crops = pooled.crops(rows, (2 * round(6.0 / z) + 1, side_y, side_x))
    return crops.max(axis=1) if len(crops) else np.zeros((0, side_y, side_x), np.float32)


def _labels(ax: Axes, curve: LabelCurve, method: str, number: int) -> None:
    counts = sorted(curve.values)
    ax.plot(counts, [curve.mean(n) for n in counts], marker="o", ms=3, label=method, **_line(number))
    low, high = zip(*(curve.interval(n) for n in counts), strict=True)
    ax.fill_between(counts, low, high, color=f"C{number % 10}", alpha=0.12, lw=0)


def _panels(volumes: list[str]) -> tuple[Figure, dict[str, Axes]]:
    columns = min(_COLUMNS, len(volumes))
    lines = math.ceil(len(volumes) / columns)
    figure = Figure(figsize=(3.3 * columns + 1.2, 3.2 * lines + 0.7), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for ax in axes[len(volumes) :]:
        ax.set_axis_off()
    return figure, dict(zip(volumes, axes, strict=False))


def _line(number: int) -> dict[str, Any]:
    return {"color": f"C{number % 10}", "ls": _STYLES[number // 2 % len(_STYLES)], "lw": 1.5}


def _finish(figure: Figure, path: Path, note: str) -> None:
    for ax in figure.axes:
        ax.title.set_fontsize(9)
        ax.grid(alpha=0.25)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        fontsize=8,
        title=note,
    ).get_title().set_fontsize(8)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    # The canvas is named so that no backend is looked up and no display is asked for.
    FigureCanvasAgg(figure)
    write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=110))
