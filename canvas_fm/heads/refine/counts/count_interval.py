"""Expected counts of cells from calibrated probabilities, with 90 % prediction intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Real, Shaped
from scipy.special import gammaincinv

from canvas_fm.errors import BadInput
from canvas_fm.heads.refine.head.calibration import sigmoid

COUNT_LEVEL = 0.9
ALL_CELLS, AMONG_CANDIDATES = "all cells", "cells among the candidates"  # what a count is of
# Of a volume that looks unlike those on which the recall was measured.
ALL_CELLS_IF_RECALL_HOLDS = f"{ALL_CELLS} if the recall of the training brains holds here"
NORMAL = 1.6448536269514722  # the normal distribution's half-width of a 90 % interval
# Cells that no P(cell) answers for, missed ones and doubles, as a share: with the variance of P(cell) octants
# of microglia hold in 1.00 at .49 of their number, by the chance of so many cells alone at .70.
ROW_ERRORS = 0.1
_FEW_REGIONS = 10
# The deviation by which the log-odds of all candidates shift together where no other brain was looked at.
# A choice: wide enough to double a count of doubtful candidates or to halve it.
UNSEEN_BRAIN = 0.7
_LEAST = 1e-6
_LEAST_SHAPE = 0.3  # of a count's gamma distribution


class Recall(NamedTuple):
    """Recall of candidates on held-out brains: geometric mean and spread.

    `spread` is the deviation of its logarithm from brain to brain, with what few cells leave open in it.
    """

    value: float = 1.0
    spread: float = 0.0
    brains: int = 0

    @classmethod
    def of(cls, detected: Sequence[int], cells: Sequence[int]) -> Recall:
        """From each brain's cells with a candidate and all its cells; BadInput for impossible numbers.

        One brain says nothing of how brains differ: then only what its few cells leave open is counted.
        """
        hits, whole = np.asarray(detected, np.float64), np.asarray(cells, np.float64)
        if len(hits) != len(whole) or not len(hits) or (hits > whole).any() or (hits < 0).any():
            raise BadInput(
                f"{list(detected)} of {list(cells)} cells were found; give as many of each, found ≤ cells"
            )
        if (whole < 1).any():
            raise BadInput("a recall needs one cell at least that was looked for")
        each = (hits + 0.5) / (whole + 1)  # none missed of a few cells is not yet all of them
        own = (1 - each) / (each * (whole + 2))
        log = np.log(each)
        between = max(float(log.var(ddof=1)) - float(own.mean()), 0.0) if len(log) > 1 else 0.0
        # A new brain differs from the mean, and the mean is itself of few brains.
        spread = np.sqrt(between * (1 + 1 / len(log)) + own.mean() / len(log))
        return cls(float(np.exp(log.mean())), float(spread), len(log))


class MeasuredCount(NamedTuple):
    """Counts of the same models on held-out brains: Σ P(cell) over all cells, and spread.

    `value` may be above 1; of detections that were not refined it is their number over all cells. `spread` is
    the deviation of its logarithm from brain to brain, with calibration and recall in it. Of a part the
    variance `per_cell` over its cells is added, and `between` by what of the `whole` count is not in it.
    Files of earlier versions state neither (None): then the variance of P(cell) stands for it. `alike` from 0
    to 1: how far the detections look like those of the record's labelled brains.
    """

    value: float
    spread: float
    brains: int
    per_cell: float | None = None
    between: float = 0.0
    whole: float = 0.0
    alike: float = 1.0


class CountSpread(NamedTuple):
    """Overdispersion of region counts on held-out brains: a shared part, a factor, a shift of log-odds.

    A region's count is taken to vary by Σ p (1 − p) + (`shared` · Σ p)²; `factor` deviations to either side
    held 90 % of the `regions` that were looked at (none: rows are taken to err independently). `log_odds` is
    the deviation by which the log-odds of all rows may be off together: what few labels leave open, and a
    brain unlike the only one that was learned from.
    """

    shared: float = 0.0
    factor: float = NORMAL
    regions: int = 0
    log_odds: float = 0.0

    @classmethod
    def of(
        cls,
        p_cell: Float64[np.ndarray, " n"],
        is_cell: Bool[np.ndarray, " n"],
        regions: Shaped[np.ndarray, " n"],
        brains: Shaped[np.ndarray, " n"] | None = None,
    ) -> CountSpread:
        """Estimate from out-of-fold probabilities and labels, by region, and by whole brain where given.

        Regions of one brain err together, so that many regions of few brains say little of the next brain:
        the wider of both estimates counts.
        """
        parts = [regions, *([] if brains is None else [brains])]
        estimates = [estimate for part in parts if (estimate := cls._by(p_cell, is_cell, part)) is not None]
        if not estimates:
            return cls()
        shared = max(estimate.shared for estimate in estimates)
        factors = [cls._factor(p_cell, is_cell, part, shared) for part in parts]
        return cls(shared, max(*factors, NORMAL), max(estimate.regions for estimate in estimates))

    @classmethod
    def _by(
        cls,
        p_cell: Float64[np.ndarray, " n"],
        is_cell: Bool[np.ndarray, " n"],
        parts: Shaped[np.ndarray, " n"],
    ) -> CountSpread | None:
        """The shared part over regions or brains; None for fewer than two."""
        expected, variance, off = _sums(p_cell, is_cell, parts)
        if len(expected) < 2:
            return None
        shared = float(np.sqrt(max(np.sum(off**2 - variance), 0) / np.sum(expected**2)))
        return cls(shared, regions=len(expected))

    @staticmethod
    def _factor(
        p_cell: Float64[np.ndarray, " n"],
        is_cell: Bool[np.ndarray, " n"],
        parts: Shaped[np.ndarray, " n"],
        shared: float,
    ) -> float:
        """Number of deviations that held 90 % of regions or brains, all where there are few."""
        expected, variance, off = _sums(p_cell, is_cell, parts)
        n = len(expected)
        if n < 2:
            return 0.0
        deviations = np.abs(off) / np.sqrt(np.maximum(variance + (shared * expected) ** 2, 1e-12))
        level = 1.0 if n < _FEW_REGIONS else min(1.0, COUNT_LEVEL * (n + 1) / n)
        return float(np.quantile(deviations, level, method="higher"))

    def with_few_labels(self, p_cell: Float64[np.ndarray, " n"], *, other_brains: bool) -> CountSpread:
        """The spread widened by the error of a fit on few labels (their held-out probabilities).

        The offset of a logistic curve through n rows is known to 1 / √Σ p (1 − p). Where no `other_brains`
        were held out, how much the next one differs is not known from these rows and taken from elsewhere.
        """
        labels = 1 / max(float(np.sum(p_cell * (1 - p_cell))), _LEAST)
        # Rows told apart without a mistake leave the curve's steepness open, not its place.
        between = 0.0 if other_brains else UNSEEN_BRAIN**2
        return self._replace(log_odds=float(np.sqrt(min(labels, 4.0) + between)))


def _sums(
    p_cell: Float64[np.ndarray, " n"], is_cell: Bool[np.ndarray, " n"], parts: Shaped[np.ndarray, " n"]
) -> tuple[Float64[np.ndarray, " k"], Float64[np.ndarray, " k"], Float64[np.ndarray, " k"]]:
    """Expected count, variance of independent rows, and error of the count of each part."""
    _, of = np.unique(parts, return_inverse=True)
    expected, variance = np.bincount(of, p_cell), np.bincount(of, p_cell * (1 - p_cell))
    return expected, variance, np.bincount(of, is_cell) - expected


class Count(NamedTuple):
    """Expected number of cells, with a 90 % interval."""

    value: float
    low: float
    high: float


def expected_count(
    p_cell: Real[np.ndarray, " n"],
    spread: CountSpread | None = None,
    recall: Recall | MeasuredCount | None = None,
) -> Count:
    """Cells among candidates of these probabilities: Σ p; with a `recall` all cells: Σ p over the recall.

    Without a `spread` rows are taken to err independently, which is too narrow. Cells among candidates are
    never more than the candidates; all cells may be.
    """
    spread = spread or CountSpread()
    p = np.clip(np.asarray(p_cell, np.float64), 0.0, 1.0)
    value = p.sum()
    low, high = count_interval(value, np.sum(p * (1 - p)), *_shifted(p, spread), spread, recall)
    if recall is None:
        return Count(float(value), float(low), min(float(high), float(len(p))))
    return Count(float(value) / recall.value, float(low), float(high))


def count_interval(
    value: Any,
    variance: Any,
    below: Any,
    above: Any,
    spread: CountSpread,
    recall: Recall | MeasuredCount | None = None,
) -> tuple[Any, Any]:
    """The 90 % interval of one count or an array of counts, from sums over their candidates.

    `value` is Σ p, `variance` Σ p (1 − p), `below` and `above` Σ p with all log-odds shifted. Where counts as
    such were measured on other brains, that spread counts, and what is independent from row to row.
    """
    if isinstance(recall, MeasuredCount):
        return _measured_ends(value, variance, recall)
    half = spread.factor * np.sqrt(variance + (spread.shared * value) ** 2)
    half_low, half_high = np.hypot(half, value - below), np.hypot(half, above - value)
    if recall is None:
        return _gamma_ends(value, half_low, half_high)
    whole = value / recall.value
    # Cells without a candidate are a draw of their own; how recall varies acts on all of them.
    missed = spread.factor * np.sqrt(whole * (1 - recall.value) + (recall.spread * whole) ** 2)
    low, high = _gamma_ends(
        whole, np.hypot(half_low / recall.value, missed), np.hypot(half_high / recall.value, missed)
    )
    # Of so many cells none is found by chance in one volume of twenty.
    none = 0.0 if recall.value >= 1 else np.log((1 - COUNT_LEVEL) / 2) / np.log1p(-recall.value)
    return low, np.maximum(high, none)[()]


def _measured_ends(value: Any, variance: Any, known: MeasuredCount) -> tuple[Any, Any]:
    """A factor to either side; below one cell an upper end that does not vanish with the detections."""
    value = np.asarray(value, np.float64)
    whole = value / known.value
    at = np.maximum(whole, 1.0)
    if known.per_cell is None:
        rows = np.asarray(variance) / np.maximum(value, 1.0) ** 2 + ROW_ERRORS / at
    else:
        share = np.clip(whole / known.whole, 0.0, 1.0) if known.whole > 0 else 0.0
        rows = known.per_cell / at + known.between * (1 - share)
    factor = np.exp(NORMAL * np.sqrt(known.spread**2 + rows))
    low = whole / factor
    high = np.where(whole < 1, whole + factor - 1, whole * factor)
    return np.where(low < 1, 0.0, low)[()], high[()]


def _gamma_ends(value: Any, half_low: Any, half_high: Any) -> tuple[Any, Any]:
    """5th and 95th percentile of gamma distributions of this mean and the deviation of each half-width.

    Counts err by a factor: a normal distribution as wide as what two brains leave open would reach below 0.
    Less than one cell is none.
    """
    value = np.asarray(value, np.float64)
    ends = []
    for half, share in ((half_low, (1 - COUNT_LEVEL) / 2), (half_high, (1 + COUNT_LEVEL) / 2)):
        half = np.asarray(half, np.float64)
        known = (half > 0) & (value > 0)
        shape = (NORMAL * np.where(known, value, 1.0) / np.where(known, half, 1.0)) ** 2
        # Below this shape, over 4 times the mean, the upper end would fall as the deviation grows.
        shape = np.maximum(shape, _LEAST_SHAPE)
        ends.append(np.where(known, value * gammaincinv(shape, share) / shape, value))
    return np.where(ends[0] < 1, 0.0, ends[0])[()], ends[1][()]


def log_odds_shift(
    p: Float64[np.ndarray, " n"], spread: CountSpread
) -> tuple[Float64[np.ndarray, " n"], float]:
    """Log-odds of probabilities, and by how much all of them may be off together."""
    inside = np.clip(p, _LEAST, 1 - _LEAST)
    return np.log(inside / (1 - inside)), NORMAL * spread.log_odds


def _shifted(p: Float64[np.ndarray, " n"], spread: CountSpread) -> tuple[float, float]:
    """Σ p with the log-odds of all rows shifted down and up by what is open in them."""
    if not spread.log_odds:
        return float(p.sum()), float(p.sum())
    logit, shift = log_odds_shift(p, spread)
    return float(sigmoid(logit - shift).sum()), float(sigmoid(logit + shift).sum())


def counts_by_region(
    p_cell: Real[np.ndarray, " n"],
    regions: Shaped[np.ndarray, " n"] | Sequence[str],
    spread: CountSpread | None = None,
    recall: Recall | MeasuredCount | None = None,
) -> dict[str, Count]:
    """Expected count of every region, by name."""
    regions = np.asarray(regions)
    return {str(name): expected_count(p_cell[regions == name], spread, recall) for name in np.unique(regions)}
