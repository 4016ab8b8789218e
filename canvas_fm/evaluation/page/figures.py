"""Figures of a training run: the paper's four rows of slices, and the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from canvas_fm.evaluation.metrics.reconstruction import Zyx, four_rows, masked_voxels
from canvas_fm.files.atomic import write_atomic

Side = tuple[tuple[float, float], tuple[float, float]]
_GAP = 2  # pixels between slices

ROWS = ("original", "masked input", "reconstruction", "visible and\nreconstructed")


def reconstruction_figure(
    original: Float[np.ndarray, "z y x"],
    masked: Bool[np.ndarray, " tokens"],
    prediction: Float[np.ndarray, "z y x"],
    path: Path | str,
    *,
    patch_zyx: Zyx,
    title: str = "",
) -> None:
    """Figures 5 to 12 of the CANVAS paper as a PNG: four rows, all z slices side by side.

    The crop; what the encoder was shown, masked patches black with a yellow dotted border; what the decoder
    says of every patch; and the crop with only its masked patches replaced. One grey scale for all, from 0 to
    the crop's 99.8th percentile.
    """
    shape = original.shape[0], original.shape[1], original.shape[2]
    hidden = masked_voxels(masked[None], shape, patch_zyx)[0]
    (rows,) = four_rows(original[None], masked[None], prediction[None], patch_zyx)
    high = max(float(np.percentile(original, 99.8)), 1e-3)

    depth, height, width = shape
    step_y, step_x = height + _GAP, width + _GAP
    sheet = np.full((len(ROWS) * step_y - _GAP, depth * step_x - _GAP), np.nan, np.float32)
    borders: set[Side] = set()
    for row, voxels in enumerate(rows):
        for z in range(depth):
            top, left = row * step_y, z * step_x
            sheet[top : top + height, left : left + width] = voxels[z]
            if row == 1:
                borders |= _borders(hidden[z], patch_zyx, top, left)

    figure = Figure(figsize=(0.9 * depth + 1.3, 0.9 * len(ROWS) * height / width + 0.6))
    ax = figure.add_subplot()
    ax.imshow(sheet, cmap="gray", vmin=0, vmax=high, interpolation="nearest")
    ax.add_collection(LineCollection(sorted(borders), colors="yellow", linewidths=0.9, linestyles="dotted"))
    ax.set_yticks([row * step_y + height / 2 for row in range(len(ROWS))], ROWS, fontsize=8)
    ax.set_xticks(
        [z * step_x + width / 2 for z in range(depth)], [f"z {z}" for z in range(depth)], fontsize=7
    )
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.spines[:].set_visible(False)
    ax.set_title(title, fontsize=9)
    figure.tight_layout(pad=0.4)
    _save(figure, path)


def _borders(hidden: Bool[np.ndarray, "y x"], patch_zyx: Zyx, top: int, left: int) -> set[Side]:
    """Edges of every masked patch of a slice drawn at (top, left), shared edges once."""
    _, py, px = patch_zyx
    sides = set()
    for gy, gx in zip(*np.nonzero(hidden[::py, ::px]), strict=True):
        y, x = top + int(gy) * py - 0.5, left + int(gx) * px - 0.5
        sides |= {((x, y), (x + px, y)), ((x, y + py), (x + px, y + py))}
        sides |= {((x, y), (x, y + py)), ((x + px, y), (x + px, y + py))}
    return sides


def loss_figure(rows: Sequence[Mapping[str, Any]], path: Path | str) -> None:
    """PNG of the loss of training and each evaluation set, and masked PSNR next to the trivial predictors.

    `rows` are those of metrics.jsonl. What a model was given of the patches that it predicts is said on the
    axis, and a distance from a teacher is drawn where there is one.
    """
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    train = [row for row in rows if row["kind"] == "train"]
    left.plot([r["step"] for r in train], [r["loss"] for r in train], color="0.6", lw=1, label="training")
    taught = [row for row in train if "distillation" in row]
    if taught:
        distances = [row["distillation"] for row in taught]
        left.plot([r["step"] for r in taught], distances, color="0.6", ls="--", lw=1, label="distillation")
    statistics = next((row["given"] for row in rows if "given" in row), None)
    for colour, (name, set_rows) in zip(_colours(), _sets(rows).items(), strict=False):
        steps = [row["step"] for row in set_rows]
        marker = "o" if len(set_rows) < 20 else None
        left.plot(
            steps, [row["loss"] for row in set_rows], color=colour, marker=marker, ms=3, lw=1, label=name
        )
        psnr = [row["psnr_masked"] for row in set_rows]
        right.plot(steps, psnr, color=colour, marker=marker, ms=3, lw=1, label=name)
        for predictor, style in (("crop_mean", ":"), ("neighbours_mean", "--")):
            right.axhline(set_rows[-1][predictor]["psnr_masked"], color=colour, ls=style, lw=0.8)
    left.set(xlabel="step", ylabel="loss", yscale="log")
    measure = "masked PSNR (dB)" if statistics is None else f"masked PSNR (dB), given\n{statistics}"
    right.set(xlabel="step", ylabel=measure, title="dotted: crop mean, dashed: neighbours' mean")
    right.title.set_fontsize(8)
    for ax in (left, right):
        ax.set_xlim(0, 1.03 * max((row["step"] for row in rows), default=1))
    figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    _save(figure, path)


def _sets(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    sets: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["kind"] == "eval" and row["psnr_masked"] is not None:
            sets.setdefault(f"{row['volume']}, {row['crops']}", []).append(row)
    return sets


def _colours() -> list[str]:
    return [f"C{i}" for i in range(10)] * 10


def _save(figure: Figure, path: Path | str) -> None:
    # The canvas is named so that no backend is looked up and no display is asked for.
    FigureCanvasAgg(figure)
    write_atomic(Path(path), lambda file: figure.savefig(file, format="png", dpi=110))
