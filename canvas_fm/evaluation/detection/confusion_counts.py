"""True and false positives, false negatives, derived metrics, bootstrap intervals, chance level."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from canvas_fm.data.points.boxes import box_of, draw_inside, whole
from canvas_fm.evaluation.detection.matching import match
from canvas_fm.evaluation.detection.tolerance import Tolerance

FIGURES = ("accuracy", "precision", "recall", "f1", "count_error")
LEVEL = 0.95
RESAMPLES = 2000
_FEW_BOXES = 5
_CHANCE_POINTS = 200_000
# Data are often made with seed 0 too: the key keeps these numbers from being the same ones again.
_KEY = 0x5C04E


class Counts(NamedTuple):
    """True positives, false positives, false negatives; a metric that is 0 / 0 is None."""

    tp: int
    fp: int
    fn: int

    @property
    def accuracy(self) -> float | None:
        """TP / (TP + FP + FN), as in Tables 3 and 4 of the CANVAS paper."""
        return _ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def precision(self) -> float | None:
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float | None:
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float | None:
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def count_error(self) -> float | None:
        """Relative count error: (FP − FN) / (TP + FN)."""
        return _ratio(self.fp - self.fn, self.tp + self.fn)

    def as_dict(self) -> dict[str, float | None]:
        return {**self._asdict(), **{name: getattr(self, name) for name in FIGURES}}


def pooled(parts: Iterable[Counts]) -> Counts:
    """Sum of counts, as in the paper's Total and Set rows: every cell has equal weight."""
    return pooled_rows(counts_array(parts))


def pooled_rows(parts: Int64[np.ndarray, "k 3"]) -> Counts:
    """`pooled` for rows of TP, FP, FN."""
    return Counts(*parts.sum(axis=0).tolist())


def counts_array(parts: Iterable[Counts]) -> Int64[np.ndarray, "k 3"]:
    """Counts as an array with rows TP, FP, FN."""
    return np.array([tuple(part) for part in parts], dtype=np.int64).reshape(-1, 3)


class Intervals(NamedTuple):
    """95 % bootstrap intervals by metric, and the unit of resampling: boxes, or single cells."""

    over: str
    of: dict[str, tuple[float, float]]

    def as_dict(self) -> dict[str, object]:
        listed = {name: list(interval) for name, interval in self.of.items()}
        return {"level": LEVEL, "over": self.over, "resamples": RESAMPLES, **listed}


def intervals(parts: Int64[np.ndarray, "k 3"], seed: int = 0) -> Intervals:
    """Percentile intervals from the counts (TP, FP, FN) of each box.

    Five boxes or more are drawn with replacement, which says how much the choice of places leaves open. From
    fewer, single cells are drawn (found, false and missed ones as they are), which takes cells to err
    independently of each other and is narrower than it should be.
    """
    figures = _figures(_draws(parts, np.random.default_rng((seed, _KEY))))
    by_metric = {name: _ends(values) for name, values in figures.items() if np.isfinite(values).any()}
    return Intervals(f"{len(parts)} boxes" if len(parts) >= _FEW_BOXES else "cells", by_metric)


def mean_f1(groups: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Mean F1 of groups of counts (k, 3) with interval, undefined F1 as 0; groups resampled separately."""
    random = np.random.default_rng((0, _KEY))
    drawn = [np.nan_to_num(_figures(_draws(parts, random))["f1"]) for parts in groups]
    value = float(np.mean([pooled_rows(parts).f1 or 0.0 for parts in groups]))
    return value, *_ends(np.mean(drawn, axis=0))


def _draws(parts: Int64[np.ndarray, "k 3"], random: np.random.Generator) -> Int64[np.ndarray, "r 3"]:
    """Bootstrap resamples of counts: of boxes if there are enough, else of cells."""
    if len(parts) >= _FEW_BOXES:
        return parts[random.integers(0, len(parts), (RESAMPLES, len(parts)))].sum(axis=1)
    total = parts.sum(axis=0)
    shares = total / total.sum() if total.sum() else [1.0, 0.0, 0.0]
    return random.multinomial(total.sum(), shares, RESAMPLES).astype(np.int64)


def _ends(values: Float64[np.ndarray, " r"]) -> tuple[float, float]:
    low, high = np.nanpercentile(values, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


class Chance(NamedTuple):
    """Mean score of equally many uniformly random predictions."""

    tp: float
    f1: float
    accuracy: float
    predictions: int
    region: str
    draws: int


def chance_level(
    pred_zyx: Float64[np.ndarray, "n 3"],
    truth_zyx: Float64[np.ndarray, "m 3"],
    tolerance: Tolerance,
    boxes: np.ndarray | None,
    shape_zyx: Sequence[int] | None,
    seed: int,
) -> Chance | None:
    """Score of equally many random predictions in the boxes, else the volume, else around the truth."""
    if boxes is not None:
        region, name = boxes, "the boxes"
    elif shape_zyx is not None:
        region, name = whole(shape_zyx), "the volume"
    elif len(truth_zyx):
        ends = np.floor(truth_zyx.min(axis=0) + 0.5), np.floor(truth_zyx.max(axis=0) + 0.5) + 1
        region, name = np.concatenate(ends).astype(np.int64)[None], "the box around the true cells"
    else:
        return None
    n = int((box_of(pred_zyx, region) >= 0).sum())
    draws = max(1, min(20, _CHANCE_POINTS // max(n, 1)))
    random = np.random.default_rng((seed, _KEY))
    place = box_of(truth_zyx, region)
    tables = []
    for _ in range(draws):
        thrown = draw_inside(region, n, random)
        chosen = match(thrown, truth_zyx, tolerance=tolerance.value, scale_zyx=tolerance.scale_zyx)
        tp = int((place[chosen.truth_index] >= 0).sum())
        tables.append(Counts(tp, n - len(chosen.pred_index), int((place >= 0).sum()) - tp))
    means = {
        name: float(np.mean([getattr(t, name) or 0.0 for t in tables])) for name in ("tp", "f1", "accuracy")
    }
    return Chance(**means, predictions=n, region=name, draws=draws)


def _figures(draws: Int64[np.ndarray, "r 3"]) -> dict[str, Float64[np.ndarray, " r"]]:
    tp, fp, fn = draws.T.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        figures = {
            "accuracy": tp / (tp + fp + fn),
            "precision": tp / (tp + fp),
            "recall": tp / (tp + fn),
            "f1": 2 * tp / (2 * tp + fp + fn),
            "count_error": (fp - fn) / (tp + fn),
        }
    return {name: np.where(np.isfinite(values), values, np.nan) for name, values in figures.items()}


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
