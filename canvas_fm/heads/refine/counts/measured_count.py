"""Intervals of cell counts from the count errors of a detector on held-out brains.

Recall of candidates and calibration of a refiner vary together from brain to brain, often against each other.
Treated as independent, as where nothing else is known, they give an interval wider than the measured errors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Real
from scipy.special import stdtrit

from canvas_fm.data.points.points import Points
from canvas_fm.files.option_sets import FrozenModel
from canvas_fm.files.shipped import COUNTS
from canvas_fm.heads.features.candidate_score import made_by
from canvas_fm.heads.refine.counts.candidate_recall import ONE_BRAIN_SPREAD, same_threshold, threshold_of
from canvas_fm.heads.refine.counts.count_interval import COUNT_LEVEL, NORMAL, MeasuredCount
from canvas_fm.heads.refine.counts.detection_statistics import DetectionStats, detection_stats

NOT_REFINED = ""  # among `refiners`: the record holds for detections as they are
LEAST_DEVIATION = 0.05  # of the logarithm from brain to brain: two brains may agree by chance
_MANY = 20  # brains from which on the width is fitted to the stats of the detections
_RIDGE = 10.0
_LEAST_ERROR = 0.05
# Of k brains' range, in deviations over all volumes of a record, divided by k²: two brains are no range yet.
_MARGIN, _LEAST_MARGIN = 2.0, 0.25
_FADE = 0.25  # in the same unit: so far outside, nothing of those brains' errors counts


class HeldOut(NamedTuple):
    """A volume that the detector had not seen: detections, true cells where labelled, statistics."""

    detections: int
    cells: int
    stats: DetectionStats


class PartError(NamedTuple):
    """How far cells per detection of a volume's part are from the whole's, as a variance of the logarithm.

    `per_cell` divided by the part's cells is counting noise, in units of the squared share of doubtful
    detections; `between` is the same for parts of any size.
    """

    per_cell: float
    between: float


class Ratio(NamedTuple):
    """Logarithm of cells over detections on a new brain, its 90 % half-width, and its parts' error.

    `alike` from 0 to 1: how far the record's own brains, not the other volumes, say so.
    """

    log: float
    half: float
    parts: PartError
    alike: float


class CountRecord(FrozenModel):
    """Detections of one detector at its own threshold beside the true cells, by held-out volume.

    `brains` are labelled brains of one stain, `others` volumes that may be unlike them, such
    as synthetic ones. It holds for detections refined by one of `refiners` (sha256), or `NOT_REFINED`.
    """

    made_by: str
    threshold: float
    refiners: tuple[str, ...]
    brains: dict[str, HeldOut]
    others: dict[str, HeldOut]
    parts: PartError
    parts_of_others: PartError

    def ratio(self, stats: DetectionStats) -> Ratio:
        """Cells over detections on a brain that is none of these.

        Where the detections look like those of the labelled brains it is their mean with Student's
        distribution, of one brain `ONE_BRAIN_SPREAD`. Elsewhere it is a line through all volumes, as wide as
        held `COUNT_LEVEL` of them; in between a mixture of both.
        """
        every = [*self.brains.values(), *self.others.values()]
        alike = self._similarity(stats) if len(every) >= _MANY else 1.0
        if alike == 1.0:
            return Ratio(*_students_interval(list(self.brains.values())), self.parts, 1.0)
        log, half = _conformal_interval(every, stats)
        if alike == 0.0:
            return Ratio(log, half, self.parts_of_others, 0.0)
        near_log, near_half = _students_interval(list(self.brains.values()))
        pairs = zip(self.parts, self.parts_of_others, strict=True)
        mixed = [alike * own + (1 - alike) * other for own, other in pairs]
        half = float(np.exp(alike * np.log(near_half) + (1 - alike) * np.log(half)))
        return Ratio(alike * near_log + (1 - alike) * log, half, PartError(*mixed), alike)

    def _similarity(self, stats: DetectionStats) -> float:
        """Similarity to the labelled brains: 1 in their range and a margin, the wider the fewer they are."""
        if not self.brains or np.isnan(stats).any():
            return 0.0
        known = np.array([brain.stats for brain in self.brains.values()])
        unit = np.array([one.stats for one in (*self.brains.values(), *self.others.values())]).std(0) + 1e-6
        margin = max(_MARGIN / len(known) ** 2, _LEAST_MARGIN)
        outside = np.maximum(known.min(0) - stats, stats - known.max(0)) / unit
        return float(np.clip(1 - (outside.max() - margin) / _FADE, 0, 1))


def _students_interval(brains: Sequence[HeldOut]) -> tuple[float, float]:
    """Mean log ratio of a few brains, and the half-width of its prediction interval by Student's t."""
    log = _log_ratios(brains)
    k = len(log)
    if k == 1:
        return float(log[0]), NORMAL * ONE_BRAIN_SPREAD * float(np.sqrt(2))
    deviation = max(float(log.std(ddof=1)), LEAST_DEVIATION)
    factor = float(stdtrit(k - 1, (1 + COUNT_LEVEL) / 2))
    return float(log.mean()), factor * deviation * float(np.sqrt(1 + 1 / k))


def _conformal_interval(volumes: Sequence[HeldOut], stats: DetectionStats) -> tuple[float, float]:
    """Log ratio regressed on the share of doubtful detections, and its conformal half-width.

    The half-width goes by that share and the neighbours; `COUNT_LEVEL` of these volumes hold, each predicted
    by the others.
    """
    log, k = _log_ratios(volumes), len(volumes)
    all_stats = np.array([[one.stats.doubtful, one.stats.neighbours] for one in volumes])
    # Sparse detections have the wider errors: so much is taken where the neighbours are not known.
    at = np.clip(
        np.nan_to_num([stats.doubtful, stats.neighbours], nan=-np.inf), all_stats.min(0), all_stats.max(0)
    )
    error = np.abs(log - _leave_one_out(all_stats[:, :1], log))
    log_error = np.log(error + _LEAST_ERROR)
    normed = np.sort(error / np.exp(_leave_one_out(all_stats, log_error)))
    middle, width = _RidgeRegression(all_stats[:, :1], log), _RidgeRegression(all_stats, log_error)
    factor = float(normed[min(int(np.ceil(COUNT_LEVEL * (k + 1))), k) - 1])
    return float(middle(at[None, :1])[0]), factor * float(np.exp(width(at[None]))[0])


def _log_ratios(volumes: Sequence[HeldOut]) -> Float64[np.ndarray, " k"]:
    cells, detections = np.array([[one.cells, one.detections] for one in volumes], np.float64).T
    return np.log((cells + 0.5) / (detections + 0.5))


class _RidgeRegression:
    """Ridge regression of y on standardised x."""

    def __init__(self, x: Float64[np.ndarray, "k d"], y: Float64[np.ndarray, " k"]) -> None:
        self.centre, self.scale, self.mean = x.mean(0), x.std(0) + 1e-6, y.mean()
        z = (x - self.centre) / self.scale
        self.slope = np.linalg.solve(z.T @ z + _RIDGE * np.eye(z.shape[1]), z.T @ (y - self.mean))

    def __call__(self, x: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, " n"]:
        return np.asarray(self.mean + (x - self.centre) / self.scale @ self.slope)


def _leave_one_out(x: Float64[np.ndarray, "k d"], y: Float64[np.ndarray, " k"]) -> Float64[np.ndarray, " k"]:
    """Leave-one-out predictions of y."""
    rows = np.arange(len(x))
    return np.array([_RidgeRegression(x[rows != row], y[rows != row])(x[row : row + 1])[0] for row in rows])


@lru_cache(maxsize=1)
def shipped_counts() -> tuple[CountRecord, ...]:
    """Records of the shipped detectors."""
    return tuple(CountRecord.model_validate(record) for record in json.loads(COUNTS.read_bytes()))


def measured_count(
    points: Points,
    p_cell: Real[np.ndarray, " n"] | None,
    refiner_sha256: str = NOT_REFINED,
    records: Sequence[CountRecord] | None = None,
) -> MeasuredCount | None:
    """What the sum of P(cell) is to be divided by for all cells; None where no such pair was measured.

    Without `p_cell` the detections themselves are counted, each as one.
    """
    threshold = threshold_of(points)
    detections = len(points)
    total = float(detections if p_cell is None else np.sum(p_cell))
    if threshold is None or "score" not in points.columns or (total <= 0 < detections):
        return None
    for record in shipped_counts() if records is None else records:
        if record.made_by != made_by(points) or refiner_sha256 not in record.refiners:
            continue
        if not same_threshold(record.threshold, threshold):
            continue
        stats = detection_stats(points, threshold)
        ratio = record.ratio(stats)
        # One sure detection is not yet a volume without doubtful ones.
        doubtful = (stats.doubtful * detections + 1) / (detections + 2)
        per_detection = total / detections if detections else 1.0
        volumes = len(record.brains) + (0 if ratio.alike == 1 else len(record.others))
        return MeasuredCount(
            per_detection / float(np.exp(ratio.log)), ratio.half / NORMAL, volumes,
            ratio.parts.per_cell * doubtful**2, ratio.parts.between,
            detections * float(np.exp(ratio.log)), ratio.alike if record.brains else 1.0,
        )  # fmt: skip
    return None
