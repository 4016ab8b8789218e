"""One threshold for many brains: where the mean F1 over brains is high and flat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Shaped

from canvas_fm.heads.refine.head.head_models import SHARES

# Thresholds that are looked at: from the faintest cell to where so many of the cells are lost.
_THRESHOLDS, _HIGHEST, _NEIGHBOURS = 200, 0.6, 4
_AS_GOOD = 0.005  # of a mean F1: what a handful of brains cannot tell apart


class ChosenThreshold(NamedTuple):
    """A threshold of logits, and the mean F1 over brains there and at its neighbours."""

    threshold: float
    f1: float


def choose_threshold(
    logits: Float64[np.ndarray, "contrasts n"],
    is_cell: Bool[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"],
    missed: Mapping[str, int],
) -> ChosenThreshold:
    """The threshold of the highest mean F1 over brains, averaged over its neighbours: no lone peak counts.

    Every brain, and every contrast that it is seen at, counts as one. `missed`: cells without a candidate.
    """
    cells = logits[:, is_cell]
    thresholds = np.linspace(cells.min(), np.quantile(cells, _HIGHEST), _THRESHOLDS)
    each = []
    for name in np.unique(groups):
        brain = groups == name
        for seen in logits:
            cell_scores = np.sort(seen[brain & is_cell])
            kept = brain.sum() - np.searchsorted(np.sort(seen[brain]), thresholds)
            true = len(cell_scores) - np.searchsorted(cell_scores, thresholds)
            each.append(2 * true / np.maximum(kept + len(cell_scores) + missed.get(str(name), 0), 1))
    around = np.pad(np.mean(each, axis=0), _NEIGHBOURS, mode="edge")
    width = 2 * _NEIGHBOURS + 1
    mean = np.convolve(around, np.full(width, 1 / width), "valid")
    return ChosenThreshold(float(thresholds[mean.argmax()]), float(mean.max()))


def most_even(f1: Sequence[float]) -> int:
    """The place of the share nearest to 1 among those of `SHARES` that are as good as the best."""
    good = [place for place, value in enumerate(f1) if value >= max(f1) - _AS_GOOD]
    return min(good, key=lambda place: abs(np.log(max(SHARES[place], 0.05))))
