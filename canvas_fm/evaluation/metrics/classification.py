"""Binary classification metrics of scores or probabilities: ranking, F1, calibration, intervals.

Labels are True for a cell; rows without a judgement are left out before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int, Real, Shaped

from canvas_fm.errors import CanvasError

LEVEL = 0.95
RESAMPLES = 1000
_FEW_GROUPS = 5


def auc(is_cell: Bool[np.ndarray, " n"], score: Real[np.ndarray, " n"]) -> float | None:
    """Area under the ROC curve: P(score of a cell > that of a non-cell), ties half; None for one class."""
    from scipy.stats import rankdata

    cells, others = int(is_cell.sum()), int((~is_cell).sum())
    if not cells or not others:
        return None
    ranks = rankdata(score)[is_cell].sum()
    return float((ranks - cells * (cells + 1) / 2) / (cells * others))


def auc_of_ranks(is_cell: Bool[np.ndarray, " n"], rank: Int[np.ndarray, " n"]) -> float | None:
    """`auc` of scores given by their ranks, whole numbers from 0 that rise with the score: for many draws."""
    cells = np.bincount(rank[is_cell], minlength=int(rank.max(initial=0)) + 1)
    others = np.bincount(rank[~is_cell], minlength=len(cells))
    pairs = int(cells.sum()) * int(others.sum())
    above = np.cumsum(others) - others / 2
    return float((cells * above).sum() / pairs) if pairs else None


def average_precision(
    is_cell: Bool[np.ndarray, " n"], score: Real[np.ndarray, " n"], *, missed: int = 0
) -> float | None:
    """Σ (Rₖ − Rₖ₋₁) · Pₖ over thresholds; `missed` true cells have no candidate. None without cells."""
    _, tp, n_selected = _kept(is_cell, score)
    cells = int(is_cell.sum()) + missed
    return float(np.sum(np.diff(tp, prepend=0) / cells * (tp / n_selected))) if cells else None


def f1_at(
    is_cell: Bool[np.ndarray, " n"], score: Real[np.ndarray, " n"], threshold: float, *, missed: int = 0
) -> float:
    """F1 at a fixed threshold; `missed` true cells have no candidate."""
    selected = score >= threshold
    tp = int((selected & is_cell).sum())
    return 2 * tp / max(int(selected.sum()) + int(is_cell.sum()) + missed, 1)


def best_f1(
    is_cell: Bool[np.ndarray, " n"], score: Real[np.ndarray, " n"], *, missed: int = 0
) -> tuple[float, float]:
    """(threshold, F1) of the highest F1; an upper bound on the rows that it is chosen on."""
    thresholds, tp, n_selected = _kept(is_cell, score)
    if not len(thresholds):
        raise CanvasError("no rows were given; a threshold needs some")
    f1 = 2 * tp / (n_selected + int(is_cell.sum()) + missed)
    at = int(np.argmax(f1))
    # Halfway to the next score: a threshold that is to be carried shall not hang on one row's last digits.
    below = thresholds[at + 1] if at + 1 < len(thresholds) else thresholds[at]
    return float((thresholds[at] + below) / 2), float(f1[at])


def ceiling(recall: float) -> float:
    """Best possible F1 of any classifier of candidates with this recall: 2R / (1 + R)."""
    return 2 * recall / (1 + recall)


def balanced_accuracy(truth: Shaped[np.ndarray, " n"], predicted: Shaped[np.ndarray, " n"]) -> float:
    """Mean over classes of the recall of each."""
    return float(np.mean([(predicted[truth == kind] == kind).mean() for kind in np.unique(truth)]))


class Reliability(NamedTuple):
    """Reliability diagram: by probability bin, the count, mean probability and observed frequency."""

    rows: Int[np.ndarray, " b"]
    predicted: Float64[np.ndarray, " b"]
    observed: Float64[np.ndarray, " b"]

    @property
    def error(self) -> float:
        """The expected calibration error: |predicted − observed|, weighted by count."""
        return float(np.sum(self.rows * np.abs(self.predicted - self.observed)) / max(self.rows.sum(), 1))


def reliability(
    is_cell: Bool[np.ndarray, " n"], p_cell: Real[np.ndarray, " n"], *, bins: int = 10
) -> Reliability:
    """Predicted probability against observed frequency in bins of equal width; empty bins are left out."""
    at = np.minimum((np.asarray(p_cell, np.float64) * bins).astype(np.int64), bins - 1)
    rows = np.bincount(at, minlength=bins)
    occupied = rows > 0
    predicted = np.bincount(at, weights=p_cell, minlength=bins)[occupied] / rows[occupied]
    observed = np.bincount(at, weights=is_cell, minlength=bins)[occupied] / rows[occupied]
    return Reliability(rows[occupied], predicted, observed)


def calibration_error(
    is_cell: Bool[np.ndarray, " n"], p_cell: Real[np.ndarray, " n"], *, bins: int = 10
) -> float:
    """Expected calibration error in bins of equal width."""
    return reliability(is_cell, p_cell, bins=bins).error


class Interval(NamedTuple):
    """A metric with its 95 % percentile interval and the unit of resampling."""

    value: float
    low: float
    high: float
    over: str

    def as_dict(self) -> dict[str, float | str | list[float]]:
        return {"value": self.value, "interval": [self.low, self.high], "level": LEVEL, "over": self.over}


def bootstrap(
    metric: Callable[[Int[np.ndarray, " m"]], float | None],
    groups: Shaped[np.ndarray, " n"],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """Bootstrap interval of a metric of row indices; None where the metric of all rows is None.

    Whole groups (brains, regions) are drawn, which says how much their choice leaves open. Of fewer than
    five groups, rows are drawn within each: that takes rows to err independently and is narrower than it
    should be. Draws on which the figure is None are left out.
    """
    value = metric(np.arange(len(groups)))
    if value is None:
        return None
    random = np.random.default_rng(seed)
    names, of = np.unique(groups, return_inverse=True)
    members = np.split(np.argsort(of, kind="stable"), np.cumsum(np.bincount(of))[:-1])
    drawn = []
    for _ in range(resamples):
        if len(names) >= _FEW_GROUPS:
            rows = np.concatenate([members[g] for g in random.integers(0, len(names), len(names))])
        else:
            rows = np.concatenate(
                [group_rows[random.integers(0, len(group_rows), len(group_rows))] for group_rows in members]
            )
        if (resampled := metric(rows)) is not None:
            drawn.append(resampled)
    over = f"{len(names)} groups" if len(names) >= _FEW_GROUPS else "rows"
    low, high = np.percentile(drawn or [value], [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Interval(float(value), float(low), float(high), over)


def _kept(
    is_cell: Bool[np.ndarray, " n"], score: Real[np.ndarray, " n"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct scores in falling order; numbers of cells and of rows at or above each."""
    order = np.argsort(-np.asarray(score, np.float64), kind="stable")
    falling = np.asarray(score, np.float64)[order]
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True)) if len(falling) else order
    return falling[last], np.cumsum(is_cell[order])[last], last + 1
