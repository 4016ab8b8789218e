"""A comparison in numbers: tables over seeds, label curves, one method against another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from canvas_fm.evaluation.classification import calibration_error, ceiling
from canvas_fm.evaluation.detection.counts import pooled
from canvas_fm.heads.compare.compare import Comparison
from canvas_fm.heads.compare.label_curve import LabelCurve, t_interval
from canvas_fm.heads.compare.result import RegionCounts, Result
from canvas_fm.heads.labels.candidates import SKIP

POOLED = "pooled"
OWN, CAME = "own score", "as they came"
FIGURES = ("auc", "auc_overlap", "f1", "f1_tuned", "precision", "recall", "calibration_error")


class Figure(NamedTuple):
    """A mean over seeds with its 95 % interval (t distribution), and the value of each seed."""

    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float], lowest: float = 0.0) -> Figure:
        """No figure here goes beyond 1, nor below `lowest`: the interval is cut there."""
        low, high = np.clip(t_interval(values), lowest, 1.0).tolist()
        return cls(float(np.mean(values)), low, high, tuple(map(float, values)))

    def as_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "interval": [self.low, self.high], "seeds": list(self.seeds)}


class CountLine(NamedTuple):
    """A method's probabilities as counts, all volumes and seeds together: what its P(cell) can be used for.

    `error` is the expected calibration error of all candidates pooled (all labels, first seed); `counts` are
    those of the labelled regions, expected against true.
    """

    method: str
    error: float
    counts: RegionCounts


def count_lines(found: Comparison) -> list[CountLine]:
    """A line for each method, of the fits on all labels."""
    lines, known = [], found.task.label != SKIP
    for method in found.methods:
        judged = known & np.isfinite(found.p_cell[method])
        error = calibration_error(found.task.is_cell[judged], found.p_cell[method][judged])
        counts = RegionCounts.sum(
            one.counts for one in found.results if one.method == method and one.everything
        )
        lines.append(CountLine(method, error, counts))
    return lines


def fit_seconds(found: Comparison) -> dict[str, float]:
    """How long a fit on all labels took, the median over folds and seeds."""
    return {
        method: float(
            np.median([one.seconds for one in found.results if one.method == method and one.everything])
        )
        for method in found.methods
    }


class Gains(NamedTuple):
    """F1 of a volume's candidates before any judge, and of each method; `over` names what is gained over."""

    before: float
    after: dict[str, float]
    over: str

    @property
    def start(self) -> float:
        """The F1 that is gained over."""
        return self.after.get(self.over, self.before)


def gains(found: Comparison, volume: str) -> Gains:
    """What judging brings on a volume, or on all pooled.

    Gained is over the candidates from their detector's own threshold on where that is known for all volumes,
    else over their own score at the threshold carried from the training volumes, else over all of them.
    """
    names = found.volumes if volume == POOLED else [volume]
    before = pooled(found.unrefined[name] for name in names).f1 or 0.0
    f1 = {line.method: line.figures["f1"] for line in lines(found, volume)}
    after = {method: value.mean for method, value in f1.items() if value is not None}
    known = set(found.own_thresholds) >= set(found.volumes)
    return Gains(before, after, OWN if OWN in after and not known else CAME)


class Line(NamedTuple):
    """A method on a volume, or on all pooled (their cells counted together, AUC as the mean over them)."""

    method: str
    volume: str
    figures: dict[str, Figure | None]
    cells_interval: tuple[float, float] | None
    ceiling: float
    counts: tuple[int, int, int]


def lines(found: Comparison, volume: str, *, labels: int | None = None) -> list[Line]:
    """A line for each method: with all labels, or with a number of the label curve."""
    made = []
    for method in found.methods:
        names = found.volumes if volume == POOLED else [volume]
        results = [found.of(method, name, labels=labels) for name in names]
        if not all(results):
            continue
        by_seed = [[one[min(seed, len(one) - 1)] for one in results] for seed in range(_seeds(results))]
        made.append(_line(method, volume, by_seed))
    return made


def curves(found: Comparison, volume: str = POOLED, figure: str = "f1") -> dict[str, LabelCurve]:
    """For each method the figure against the number of labels, all labels last."""
    out = {}
    for method in found.methods:
        counts = sorted({one.labels for one in found.results if one.method == method and not one.everything})
        if not counts:
            continue
        values: dict[int, Sequence[float]] = {}
        for count in counts:
            values |= _values(found, method, volume, figure, count, count)
        everything = max(one.labels for one in found.results if one.everything)
        values |= _values(found, method, volume, figure, None, everything)
        out[method] = LabelCurve("F1" if figure == "f1" else figure, values)
    return out


def against(found: Comparison, reference: str, *, labels: int | None = None) -> dict[str, Figure]:
    """F1 of each method minus that of another, paired by volume and seed, with the interval over pairs."""
    out = {}
    for method in found.methods:
        pairs = []
        for volume in found.volumes:
            mine, theirs = (found.of(name, volume, labels=labels) for name in (method, reference))
            for seed in range(_seeds([mine, theirs])):
                if mine and theirs:
                    pairs.append(mine[min(seed, len(mine) - 1)].f1 - theirs[min(seed, len(theirs) - 1)].f1)
        if method != reference and pairs:
            out[method] = Figure.of(pairs, lowest=-1.0)
    return out


def _seeds(results: Sequence[Sequence[Result]]) -> int:
    return max((len(one) for one in results), default=0)


def _values(
    found: Comparison, method: str, volume: str, figure: str, labels: int | None, at: int
) -> dict[int, Sequence[float]]:
    for line in lines(found, volume, labels=labels):
        value = line.figures[figure]
        if line.method == method and value is not None:
            return {at: value.seeds}
    return {}


def _line(method: str, volume: str, by_seed: Sequence[Sequence[Result]]) -> Line:
    figures: dict[str, Figure | None] = {}
    for name in FIGURES:
        values = [_pooled(results, name) for results in by_seed]
        known = [value for value in values if value is not None]
        figures[name] = Figure.of(known) if len(known) == len(values) else None
    first = by_seed[0]
    tp, fp, fn = (sum(getattr(one, name) for one in first) for name in ("tp", "fp", "fn"))
    truths = [one.tp + one.fn for one in first]
    reach = [one.ceiling / (2 - one.ceiling) for one in first]  # R of 2R / (1 + R)
    recall = float(np.average(reach, weights=truths)) if sum(truths) else 0.0
    interval = first[0].f1_interval if len(first) == 1 else None
    return Line(method, volume, figures, interval, ceiling(recall), (tp, fp, fn))


def _pooled(results: Sequence[Result], name: str) -> float | None:
    """One figure of several volumes: F1, precision and recall by their cells together, else the mean."""
    if len(results) == 1:
        return getattr(results[0], name)
    tp, fp, fn = (sum(getattr(one, count) for one in results) for count in ("tp", "fp", "fn"))
    if name == "f1":
        return 2 * tp / max(2 * tp + fp + fn, 1)
    if name == "precision":
        return tp / (tp + fp) if tp + fp else None
    if name == "recall":
        return tp / (tp + fn) if tp + fn else None
    values = [getattr(one, name) for one in results]
    return None if any(value is None for value in values) else float(np.mean(values))
