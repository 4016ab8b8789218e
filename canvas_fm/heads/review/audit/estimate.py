"""Precision, recall and corrected count of an audit, with 90 % intervals.

Estimates are the unbiased ones of stratified sampling, with the finite population in their variance. The
interval of a share is that of Korn and Graubard (1998): Clopper and Pearson's at the effective number of
answers. That of the missed cells is Fay and Feuer's (1997) gamma interval of a weighted sum of counts, with
the variance between boxes where that is the larger. Sums and ratios of the two combine both intervals (MOVER:
Zou and Donner 2008; Donner and Zou 2012).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from scipy.stats import beta, chi2, norm, t

from canvas_fm.errors import BadInput, counted
from canvas_fm.heads.refine.counts.count_interval import COUNT_LEVEL

_TAIL = (1 - COUNT_LEVEL) / 2


class Estimate(NamedTuple):
    """A number with its 90 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class StratifiedAnswers:
    """Answers by stratum: the `size` of each, and the answers (1 and 0, or numbers of missed cells)."""

    size: Int64[np.ndarray, " k"]
    values: tuple[Float64[np.ndarray, " _"], ...]

    @classmethod
    def of(
        cls,
        stratum: Int64[np.ndarray, " n"],
        size: Int64[np.ndarray, " n"],
        answer: Float64[np.ndarray, " n"],
    ) -> StratifiedAnswers:
        """Answered rows (NaN: none) by stratum; strata of fewer than two answers join their neighbour."""
        sizes, values = [], []
        for number in np.unique(stratum):
            rows = stratum == number
            sizes.append(int(size[rows][0]))
            values.append(answer[rows & ~np.isnan(answer)])
        k = 0
        while len(values) > 1 and k < len(values):
            if len(values[k]) >= min(2, sizes[k]):
                k += 1
                continue
            other = k - 1 if k else 1
            low, high = min(k, other), max(k, other)
            sizes[low : high + 1] = [sizes[low] + sizes[high]]
            values[low : high + 1] = [np.concatenate([values[low], values[high]])]
            k = 0
        return cls(np.array(sizes, np.int64), tuple(values))

    @property
    def n(self) -> Int64[np.ndarray, " k"]:
        return np.array([len(values) for values in self.values], np.int64)

    @property
    def total(self) -> float:
        """The sum over all that could have been drawn, estimated."""
        return float(sum(size * values.mean() for size, values in zip(self.size, self.values, strict=True)))


@dataclass(frozen=True)
class Audit:
    """Estimates of an audit: `true` detections are cells, `missed` cells have none, `cells` are both."""

    detections: int
    answered: int
    unsure: int
    precision: Estimate
    true: Estimate
    boxes: int = 0
    missed: Estimate | None = None
    recall: Estimate | None = None
    cells: Estimate | None = None
    notes: tuple[str, ...] = ()

    @property
    def f1(self) -> float | None:
        if self.cells is None:
            return None
        both = self.detections + self.cells.value
        return 2 * self.true.value / both if both else None

    def as_dict(self) -> dict[str, Any]:
        """The fields as `audit --json` prints them."""
        shown: dict[str, Any] = {
            "detections": self.detections,
            "answered": self.answered,
            "unsure": self.unsure,
            "boxes": self.boxes,
        }
        for name in ("precision", "recall", "cells", "true", "missed"):
            estimate = getattr(self, name)
            shown[name] = None if estimate is None else estimate.value
            shown[f"{name}_90"] = None if estimate is None else [estimate.low, estimate.high]
        return shown | {"f1": self.f1, "notes": list(self.notes)}


def estimate_audit(
    detections: StratifiedAnswers,
    boxes: StratifiedAnswers | None = None,
    *,
    unsure: int = 0,
    notes: tuple[str, ...] = (),
) -> Audit:
    """Estimates from the answers on detections, and on boxes where some were looked at."""
    if int(detections.n.sum()) < 2:
        raise BadInput(
            f"{counted(int(detections.n.sum()), 'detection', 'are')} answered with 1 or 0; answer "
            "more of them, fifty at "
            "least for a useful interval"
        )
    of, precision = int(detections.size.sum()), estimate_share(detections)
    true = Estimate(*(of * value for value in precision))
    audit = Audit(of, int(detections.n.sum()), unsure, precision, true, notes=notes)
    if boxes is None or int(boxes.n.sum()) < min(2, int(boxes.size.sum())):
        return audit
    missed = estimate_total(boxes)
    return Audit(
        of, audit.answered, unsure, precision, true, int(boxes.n.sum()), missed, _recall(true, missed),
        _sum(true, missed), notes,
    )  # fmt: skip


def estimate_share(answers: StratifiedAnswers) -> Estimate:
    """The share of ones among all, with Korn and Graubard's interval; exact where all were answered."""
    size, n = answers.size.astype(np.float64), answers.n
    weight = size / size.sum()
    ones = np.array([values.sum() for values in answers.values])
    share = min(float((weight * ones / n).sum()), 1.0)  # or one bit above it
    if (n == answers.size).all():
        return Estimate(share, share, share)
    # Nine of nine are not yet all: smoothed rates keep a variance where all answers are the same.
    rate = (ones + 0.5) / (n + 1)
    left = 1 - n / size
    variance = float((weight**2 * left * rate * (1 - rate) / np.maximum(n - 1, 1)).sum())
    mean = float((weight * rate).sum())
    free = max(int(n.sum()) - len(n), 1)
    effective = mean * (1 - mean) / variance * (norm.ppf(_TAIL) / t.ppf(_TAIL, free)) ** 2
    true, rest = effective * share, effective * (1 - share)
    low = float(beta.ppf(_TAIL, true, rest + 1)) if true > 0 else 0.0
    high = float(beta.ppf(1 - _TAIL, true + 1, rest)) if rest > 0 else 1.0
    known_ones, known_rest = ones.sum() / size.sum(), (n.sum() - ones.sum()) / size.sum()
    return Estimate(share, max(low, float(known_ones)), min(high, float(1 - known_rest)))


def estimate_total(answers: StratifiedAnswers) -> Estimate:
    """The sum of counts over all boxes, with a gamma interval; exact where all were looked at."""
    size, n = answers.size.astype(np.float64), answers.n
    total = answers.total
    if (n == answers.size).all():
        return Estimate(total, total, total)
    left = 1 - n / size
    counts = np.array([values.sum() for values in answers.values])
    between = np.array([values.var(ddof=1) if len(values) > 1 else 0.0 for values in answers.values])
    poisson = float(((size / n) ** 2 * left * counts).sum())
    # Few boxes of a stratum that happen to agree say little of how boxes differ: the spread over its mean is
    # pooled over strata, and holds for each.
    mean = counts / n
    free = max(int((n - 1).sum()), 1)
    pooled = float(((n - 1) * between).sum()) / max(float(((n - 1) * mean).sum()), 1e-12)
    spread = max(1.0, pooled) if counts.sum() else 1.0
    design = float((size**2 * left * between / n).sum())
    variance = max(poisson * spread, design) * (t.ppf(_TAIL, free) / norm.ppf(_TAIL)) ** 2
    weight = float((size / n * left).max())  # of one more cell in the box that stands for most others
    low = variance / (2 * total) * chi2.ppf(_TAIL, 2 * total**2 / variance) if total and variance else total
    spread_above, above = variance + weight**2, total + weight
    high = spread_above / (2 * above) * chi2.ppf(1 - _TAIL, 2 * above**2 / spread_above)
    return Estimate(total, max(float(low), float(counts.sum())), float(high))


def _sum(a: Estimate, b: Estimate) -> Estimate:
    value = a.value + b.value
    low = value - np.hypot(a.value - a.low, b.value - b.low)
    high = value + np.hypot(a.high - a.value, b.high - b.value)
    return Estimate(value, float(low), float(high))


def _recall(true: Estimate, missed: Estimate) -> Estimate | None:
    """True detections over all cells, from the interval of missed cells for each true detection."""
    if true.value + missed.value == 0:
        return None
    value = true.value / (true.value + missed.value)
    return Estimate(value, 1 / (1 + _ratio(missed, true)), 1 / (1 + _ratio_below(missed, true)))


def _ratio(a: Estimate, b: Estimate) -> float:
    """Upper end of a / b."""
    end = b.low * (2 * b.value - b.low)
    if end <= 0:
        return float("inf")
    product = a.value * b.value
    root = max(product**2 - a.high * (2 * a.value - a.high) * end, 0.0)
    return float((product + np.sqrt(root)) / end)


def _ratio_below(a: Estimate, b: Estimate) -> float:
    """Lower end of a / b."""
    end = b.high * (2 * b.value - b.high)
    product = a.value * b.value
    root = max(product**2 - a.low * (2 * a.value - a.low) * end, 0.0)
    if end <= 0:
        return 0.0
    return max(float((product - np.sqrt(root)) / end), 0.0)
