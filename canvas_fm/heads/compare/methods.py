"""Interface of a method that classifies candidates, from a bare score to a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.metrics.classification import best_f1
from canvas_fm.heads.compare.pooled_candidates import PooledCandidates
from canvas_fm.heads.labels.group_folds import Folds, grouped_folds
from canvas_fm.heads.refine.counts.count_interval import CountSpread

RowIndices = Int64[np.ndarray, "_"]
Predict = Callable[[np.ndarray], np.ndarray]  # row numbers of the task to P(cell)
_INNER = 3


class Training(NamedTuple):
    """Training data of a method: labelled `rows` of the task, and the unlabelled `pool`.

    `folds` part the rows so that a threshold can be chosen on what a model has not seen; `fold` names what is
    held out, for methods whose features were made once a fold.
    """

    pooled: PooledCandidates
    rows: RowIndices
    pool: RowIndices
    folds: Folds
    fold: str
    seed: int


class Fit(NamedTuple):
    """A fitted method: `predict` gives P(cell) of rows; `threshold` was chosen on the training rows.

    `from_scratch` does the same without anything that was worked out before, for measuring speed; None where
    `predict` does so already. `whole` says whether that starts at the volume's voxels. `spread` is how far
    counts of regions were off on training rows held out.
    """

    predict: Predict
    threshold: float
    from_scratch: Predict | None = None
    whole: bool = True
    spread: CountSpread = CountSpread()


@runtime_checkable
class Method(Protocol):
    """A method that classifies candidates; `seeded` if its result depends on the seed.

    `identity` is all that decides, beside rows and seed, what it says of candidates of the fold: fits are
    kept by it. None where it cannot tell.
    """

    name: str
    seeded: bool

    def identity(self, fold: str) -> Mapping[str, Any] | None: ...

    def fit(self, data: Training) -> Fit: ...


def training(pooled: PooledCandidates, rows: RowIndices, pool: RowIndices, fold: str, seed: int) -> Training:
    """Training rows with inner folds: whole brains, else regions of the one brain, else random rows."""
    is_cell = pooled.is_cell[rows]
    fewest = min(int(is_cell.sum()), int((~is_cell).sum()))
    if fewest < 2:
        raise CanvasError(
            f"without {fold} {int(is_cell.sum())} cells and {int((~is_cell).sum())} other candidates are "
            "labelled; a threshold takes two of each at least"
        )
    folds = grouped_folds(
        pooled.group[rows],
        is_cell,
        folds=min(_INNER, fewest),
        regions=pooled.region[rows].astype(np.str_),
        force_random=True,  # so few labels that a brain or a region lacks a class
        seed=seed,
    )
    return Training(pooled, rows, pool, folds, fold, seed)


def fit_by(
    data: Training, predict: Predict, held_out: np.ndarray, from_scratch: Predict | None = None
) -> Fit:
    """A fit with threshold and count spread from out-of-fold predictions (NaN: none).

    The threshold has the highest F1 there; true cells that no candidate stands for count as missed, by their
    share.
    """
    pooled, known = data.pooled, np.isfinite(held_out)
    rows, p = data.rows[known], held_out[known]
    missed = sum(pooled.missed_by_part(rows).values())
    threshold, _ = best_f1(pooled.is_cell[rows], p, missed=missed)
    spread = CountSpread()
    if data.folds.by != "random":
        spread = CountSpread.of(p, pooled.is_cell[rows], pooled.region[rows])
    return Fit(predict, threshold, from_scratch, spread=spread)


def held_out_by(
    data: Training, fit_one: Callable[[RowIndices], Predict], *, parts: int | None = None
) -> np.ndarray:
    """Out-of-fold P(cell) of each training row; NaN beyond the first `parts` folds."""
    out = np.full(len(data.rows), np.nan)
    for number, (train, test) in enumerate(data.folds):
        if parts is None or number < parts:
            out[test] = fit_one(data.rows[train])(data.rows[test])
    return out
