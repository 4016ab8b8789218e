"""Intervals of cell counts from the count errors of a detector with its refiner on held-out brains.

Recall of candidates and calibration of a refiner vary together from brain to brain, often against each other.
Treated as independent, as where nothing else is known, they give an interval wider than the measured errors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Float64, Real
from pydantic import Field
from scipy.stats import t as student_t

from canvas_fm.data.points.points import Points
from canvas_fm.files.option_sets import FrozenModel
from canvas_fm.files.shipped import COUNTS
from canvas_fm.heads.features.candidate_score import made_by
from canvas_fm.heads.refine.counts.candidate_recall import ONE_BRAIN_SPREAD, same_threshold, threshold_of
from canvas_fm.heads.refine.counts.count_interval import COUNT_LEVEL, NORMAL, MeasuredCount

LEAST_DEVIATION = 0.05  # of the logarithm from brain to brain: two brains may agree by chance
_MANY = 20  # brains from which on the interval goes by the share of doubtful detections
_BAND = 1.0  # log-odds above the threshold within which a detection is doubtful
_RIDGE = 10.0
_LEAST_ERROR = 0.05


class CountRecord(FrozenModel):
    """Counts of one detector at its own threshold beside the true cells, by held-out brain.

    `counted` are detections or the sum of P(cell) of refined ones, `doubtful` their shares with a score near
    the threshold. It holds for detections refined by one of `refiners` (sha256).
    """

    made_by: str
    threshold: float
    refiners: tuple[str, ...]
    counted_by: Literal["detections", "p_cell"]
    counted: dict[str, float]
    cells: dict[str, int]
    doubtful: dict[str, float] = Field(default_factory=dict)

    def ratio(self, doubtful: float) -> tuple[float, float]:
        """Logarithm of cells over counted on a brain that is none of these, and its 90 % half-width.

        Of a few brains their mean and Student's distribution, of one `ONE_BRAIN_SPREAD`. Of many both are
        lines in the share of doubtful detections, the width as wide as held `COUNT_LEVEL` of these brains.
        """
        names = list(self.cells)
        cells, counted = (np.array([of[name] for name in names], np.float64)
                          for of in (self.cells, self.counted))  # fmt: skip
        log = np.log((cells + 0.5) / (counted + 0.5))
        k = len(log)
        if k == 1:
            return float(log[0]), NORMAL * ONE_BRAIN_SPREAD * float(np.sqrt(2))
        if k < _MANY or not self.doubtful:
            deviation = max(float(log.std(ddof=1)), LEAST_DEVIATION)
            factor = float(student_t.ppf((1 + COUNT_LEVEL) / 2, k - 1))
            return float(log.mean()), factor * deviation * float(np.sqrt(1 + 1 / k))
        shares = np.array([self.doubtful[name] for name in names])
        at = float(np.clip(doubtful, shares.min(), shares.max()))
        line = _line(shares, log)
        error = np.abs(log - line(shares))
        width = _line(shares, np.log(error + _LEAST_ERROR))
        normed = np.sort(error / np.exp(width(shares)))
        factor = float(normed[min(int(np.ceil(COUNT_LEVEL * (k + 1))), k) - 1])
        return float(line(at)), factor * float(np.exp(width(at)))


class _line:
    """A line through y over x, with its slope shrunk a little."""

    def __init__(self, x: Float64[np.ndarray, " k"], y: Float64[np.ndarray, " k"]) -> None:
        self.centre, self.scale, self.mean = x.mean(), x.std() + 1e-6, y.mean()
        z = (x - self.centre) / self.scale
        self.slope = float((z * (y - self.mean)).sum() / ((z * z).sum() + _RIDGE))

    def __call__(self, x: Float64[np.ndarray, "*k"] | float) -> Float64[np.ndarray, "*k"]:
        return np.asarray(self.mean + self.slope * (np.asarray(x) - self.centre) / self.scale)


@lru_cache(maxsize=1)
def shipped_counts() -> tuple[CountRecord, ...]:
    """Records of the shipped detectors."""
    return tuple(CountRecord.model_validate(record) for record in json.loads(COUNTS.read_bytes()))


def doubtful_share(score: Real[np.ndarray, " n"], threshold: float) -> float:
    """Share of detections whose score is less than one unit of log-odds above the threshold."""
    inside = np.clip(np.asarray(score, np.float64), 1e-6, 1 - 1e-6)
    above = np.log(inside / (1 - inside)) - np.log(threshold / (1 - threshold))
    return float((above < _BAND).mean()) if len(above) else 1.0


def measured_count(
    points: Points,
    p_cell: Real[np.ndarray, " n"],
    refiner_sha256: str,
    records: Sequence[CountRecord] | None = None,
) -> MeasuredCount | None:
    """Divisor of the sum of P(cell) for all cells; None where no such pair was measured."""
    threshold, score = threshold_of(points), points.columns.get("score")
    total = float(np.sum(p_cell))
    if threshold is None or score is None or total <= 0:
        return None
    for record in shipped_counts() if records is None else records:
        if record.made_by != made_by(points) or refiner_sha256 not in record.refiners:
            continue
        if not same_threshold(record.threshold, threshold):
            continue
        log, half = record.ratio(doubtful_share(score, threshold))
        counted = total if record.counted_by == "p_cell" else float(len(points))
        return MeasuredCount(total / (counted * float(np.exp(log))), half / NORMAL, len(record.cells))
    return None
