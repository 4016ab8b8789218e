"""Figure of true positives, false negatives and false positives over the image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Num
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from canvas_fm.evaluation.detection.score import Score
from canvas_fm.files.atomic import write_atomic

if TYPE_CHECKING:
    from canvas_fm.data.volume.volume import Volume

_PANELS = 4
_WIDEST = 600  # pixels of a panel's side: beyond, the marks of single cells could not be told apart
_FEWEST_PLANES = 5
_GREYS = (1, 99.7)  # percentiles of the panel that become black and white: slabs differ in background
# Shape as well as colour, and colours that stay apart for every kind of colour vision.
_MARKS = {
    "true positives": ("o", "#56d4ff", "true positive (circle, at the true cell)"),
    "false negatives": ("s", "#ffb000", "false negative (square, at the true cell)"),
    "false positives": ("x", "#ff5fb4", "false positive (cross, at the prediction)"),
}


class _Slab(NamedTuple):
    """A box of the volume that one panel shows as maximum projection along z."""

    start: tuple[int, int, int]
    size: tuple[int, int, int]


def score_figure(score: Score, volume: Volume, path: Path | str, *, title: str = "") -> None:
    """Write a PNG of maximum projections of four slabs with every scored cell marked.

    The slabs lie where the cells are (at even shares of them along z), are as thick as two tolerances, and at
    most 600 voxels wide, around the densest place. Dashed lines are the boxes that were scored.
    """
    kinds = {
        "true positives": score.truth.zyx[score.detected],
        "false negatives": score.truth.zyx[score.missed],
        "false positives": score.points.zyx[score.false],
    }
    slabs = list(_slabs(score, np.concatenate(list(kinds.values())), volume.shape_zyx))
    high, wide = slabs[0].size[1:]
    figure = Figure(figsize=(2 * 4.6, 2 * 4.6 * high / wide + 1.1), layout="constrained")
    for slab, ax in zip(slabs, np.ravel(figure.subplots(2, 2, squeeze=False)), strict=False):
        _panel(ax, slab, volume.read(slab.start, slab.size).max(axis=0), score, kinds)
    c = score.counts
    figures = f"TP {c.tp:,} · FP {c.fp:,} · FN {c.fn:,}"
    if c.f1 is not None:
        figures += f" · F1 {c.f1:.3f}"
    figure.suptitle(f"{title}{': ' if title else ''}{figures}, within {score.tolerance}", fontsize=10)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=3, fontsize=9, facecolor="0.25", labelcolor="w"
    )
    # The canvas is named so that no backend is looked up and no display is asked for.
    FigureCanvasAgg(figure)
    write_atomic(Path(path), lambda file: figure.savefig(file, format="png", dpi=130))


def _panel(
    ax: Axes,
    slab: _Slab,
    image: Num[np.ndarray, "y x"],
    score: Score,
    kinds: dict[str, np.ndarray],
) -> None:
    z, y, x = slab.start
    depth, height, width = slab.size
    low, high = np.percentile(image, _GREYS)
    ax.imshow(
        image,
        cmap="gray",
        vmin=low,
        vmax=max(high, low + 1e-6),
        extent=(x - 0.5, x + width - 0.5, y + height - 0.5, y - 0.5),
        interpolation="nearest",
    )
    for kind, (marker, colour, label) in _MARKS.items():
        zyx = kinds[kind]
        in_slab = zyx[(zyx[:, 0] >= z - 0.5) & (zyx[:, 0] < z + depth - 0.5)]
        ax.plot(in_slab[:, 2], in_slab[:, 1], marker, ms=6, mew=1.3, mec=colour, mfc="none", label=label)
    for box in score.boxes if score.boxes is not None else ():
        if box[0] < z + depth and box[3] > z:
            corner, size = (box[2] - 0.5, box[1] - 0.5), (box[5] - box[2], box[4] - box[1])
            ax.add_patch(Rectangle(corner, *size, fill=False, ls="--", lw=0.8, ec="w"))
    ax.set(xlim=(x - 0.5, x + width - 0.5), ylim=(y + height - 0.5, y - 0.5))
    ax.set_title(f"z {z} to {z + depth - 1}", fontsize=9)
    ax.set(xlabel="x (voxels)", ylabel="y (voxels)")
    ax.label_outer()
    ax.tick_params(labelsize=7)


def _slabs(score: Score, zyx: np.ndarray, shape_zyx: tuple[int, int, int]) -> Iterator[_Slab]:
    depth = round(2 * score.tolerance.value / score.tolerance.scale_zyx[0])
    size = [min(max(depth, _FEWEST_PLANES), shape_zyx[0]), *(min(_WIDEST, side) for side in shape_zyx[1:])]
    inside = zyx[((zyx >= 0) & (zyx < shape_zyx)).all(axis=1)]
    places = inside if len(inside) else np.array([shape_zyx]) / 2
    for share in (np.arange(_PANELS) + 0.5) / _PANELS:
        z = np.quantile(places[:, 0], share)
        centre = [z, *_densest(places[np.abs(places[:, 0] - z) <= max(size[0], 1)], size)]
        start = [int(min(max(c - s // 2, 0), n - s)) for c, s, n in zip(centre, size, shape_zyx, strict=True)]
        yield _Slab((start[0], start[1], start[2]), (size[0], size[1], size[2]))


def _densest(zyx: np.ndarray, size: list[int]) -> tuple[float, float]:
    """Centre (y, x) of the field, half a panel wide, with the most cells."""
    if not len(zyx):
        return 0.0, 0.0
    step = np.array(size[1:]) / 2
    fields, counts = np.unique(np.floor(zyx[:, 1:] / step), axis=0, return_counts=True)
    y, x = (fields[np.argmax(counts)] + 0.5) * step
    return float(y), float(x)
