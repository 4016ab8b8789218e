"""Score of detections against true cells: counts, F1, intervals, chance level, warnings."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from canvas_fm.data.points.boxes import as_boxes, box_of
from canvas_fm.data.points.points import Points
from canvas_fm.data.zyx import ZyxUm, ZyxUmLike, check_voxel_um
from canvas_fm.evaluation.detection.confusion_counts import Chance, Counts, Intervals, chance_level, intervals
from canvas_fm.evaluation.detection.curve import Curve, score_curve
from canvas_fm.evaluation.detection.matching import greedy_of, optimal_of_small
from canvas_fm.evaluation.detection.pairs import Pairs, find_pairs
from canvas_fm.evaluation.detection.plausibility_checks import cells_of, sanity_warnings, scores_of
from canvas_fm.evaluation.detection.tolerance import Tolerance, tolerance_of

_log = logging.getLogger(__name__)
_LARGE_GROUP = 30_000  # cells that chain into one group: an optimal matching of more would take minutes


@dataclass(frozen=True)
class Score:
    """Result of one evaluation; `counts` by greedy matching are the paper's metrics.

    `points` and `truth` are the rows that took part; `detected` (of the truth), `missed`, `right` (of the
    points) and `false` say what became of each. With boxes, everything is matched and then counted by where
    it lies: a true cell inside is detected or missed, a prediction inside that matches nothing is false. So a
    cell at the border is neither missed nor false because its prediction lies a voxel outside.
    """

    counts: Counts
    tolerance: Tolerance
    voxel_um: ZyxUm | None
    points: Points
    truth: Points
    detected: np.ndarray
    missed: np.ndarray
    right: np.ndarray
    false: np.ndarray
    box_counts: tuple[Counts, ...]
    boxes: np.ndarray | None
    interval: Intervals
    mean_distance: float | None
    optimal: Counts | None
    chance: Chance | None
    curve: Curve | None
    in_um: tuple[float, Counts] | None
    warnings: tuple[str, ...]
    threshold: float | None = None
    """Threshold of the score, an argument or recorded in the file."""

    @property
    def average_precision(self) -> float | None:
        """Average precision over all thresholds; None without scores."""
        return None if self.curve is None else self.curve.average_precision

    def to_json(self) -> dict[str, Any]:
        """Everything but the positions, as a dictionary for `json.dumps`."""
        best = None if self.curve is None else self.curve.best
        return {
            **self.counts.as_dict(),
            "mean_distance": self.mean_distance,
            "intervals": self.interval.as_dict(),
            "tolerance": self.tolerance._asdict(),
            "voxel_um": self.voxel_um,
            "boxes": None if self.boxes is None else self.boxes.tolist(),
            "optimal": None if self.optimal is None else self.optimal.as_dict(),
            "in_um": None
            if self.in_um is None
            else {"tolerance_um": self.in_um[0], **self.in_um[1].as_dict()},
            "chance": None if self.chance is None else self.chance._asdict(),
            "average_precision": self.average_precision,
            "best_threshold": None
            if best is None
            else {"threshold": best[0], "f1": best[1], "tuned_on_the_answers": True},
            "warnings": list(self.warnings),
        }


def evaluate(
    points: Points | np.ndarray | Sequence[Sequence[float]],
    truth: Points | np.ndarray | Sequence[Sequence[float]],
    *,
    voxel_um: ZyxUmLike | None = None,
    tolerance_um: float | None = None,
    tolerance_voxels: float | None = None,
    marker: str | None = None,
    within: np.ndarray | Sequence[Sequence[int]] | None = None,
    shape_zyx: Sequence[int] | None = None,
    score_column: str | None = None,
    threshold: float | None = None,
    chance: bool = True,
    seed: int = 0,
) -> Score:
    """Score predicted against true cells (z, y, x in voxels of level 0) by one-to-one matching.

    The tolerance is one of `tolerance_um` (needs `voxel_um`), `tolerance_voxels`, or a `marker` of the CANVAS
    paper for its own in voxels; a distance equal to it is a match. `within` are boxes (see `read_boxes`) to
    which the score is restricted, `shape_zyx` the volume's shape, by which points outside are found. Where
    the points carry a score (`score_column`, else `score`, `p_cell` or `log_score`), only those at or above
    `threshold` count and average precision is worked out over all of them. Where the points say at which
    P(cell) a refiner keeps them (what `refine apply` wrote), the column is `p_cell` and that is the
    threshold.

    Warns (logging, and `warnings` of the result) of duplicates, of points outside, and where another order of
    axes would match far better. Raises CanvasError for what no score can be made of.
    """
    size = None if voxel_um is None else check_voxel_um(voxel_um)
    tolerance = tolerance_of(
        size, tolerance_um=tolerance_um, tolerance_voxels=tolerance_voxels, marker=marker
    )
    boxes = None if within is None else as_boxes(within, source="within")
    every, notes = cells_of(_points(points), "predictions")
    true, more = cells_of(_points(truth), "truth")
    score_column, threshold = _as_recorded(points, score_column, threshold)
    scores = scores_of(every, score_column, needed=threshold is not None)
    pred = every
    pairs = all_pairs = _near(every, true, tolerance.value, tolerance.scale_zyx)
    if scores is not None and threshold is not None:
        pred = _rows(every, scores >= threshold)
        pairs = _of_rows(all_pairs, scores >= threshold)
    outcome = _Outcome(greedy_of(pairs, len(pred), len(true)), pred, true, boxes)
    counts = outcome.counts
    most = optimal_of_small(pairs, _LARGE_GROUP)
    optimal = None if most is None else _Outcome(most, pred, true, boxes).counts
    if optimal is None:
        more.append(
            "cells chain into a group too large for the optimal matching; only the greedy one is given"
        )
    notes = [*notes, *_trained_on(points), *_threshold_lost(every, score_column, threshold)]
    warnings = [*notes, *more, *sanity_warnings(pred, true, counts, tolerance, boxes, shape_zyx, size)]
    for warning in warnings:
        _log.warning("%s", warning)
    return Score(
        counts=counts,
        tolerance=tolerance,
        voxel_um=size,
        points=pred,
        truth=true,
        detected=outcome.detected,
        missed=outcome.missed,
        right=outcome.right,
        false=outcome.false,
        box_counts=tuple(Counts(*part) for part in outcome.by_box.tolist()),
        boxes=boxes,
        interval=intervals(outcome.by_box, seed),
        mean_distance=outcome.mean_distance,
        optimal=optimal,
        chance=chance_level(pred.zyx, true.zyx, tolerance, boxes, shape_zyx, seed) if chance else None,
        curve=None if scores is None else _curve(every, scores, true, all_pairs, boxes),
        in_um=_in_um(pred, true, tolerance, size, boxes),
        warnings=tuple(warnings),
        threshold=threshold,
    )


def _trained_on(points: Any) -> list[str]:
    """A sentence where the file of predictions says that a model was trained on the volume that it judges."""
    meta = points.meta if isinstance(points, Points) else {}
    models = [name for name in ("detector", "refiner") if meta.get(f"{name}_trained_on_volume") == "yes"]
    if not models:
        return []
    volume = f"the volume {meta['volume']!r}" if "volume" in meta else "this volume"
    return [
        f"the {' and the '.join(models)} {'was' if len(models) == 1 else 'were'} trained on "
        f"{volume}, which is scored here, or on one that it is a crop of: no held-out figure"
    ]


def _threshold_lost(points: Points, column: str | None, threshold: float | None) -> list[str]:
    """A sentence where a refiner scored the points and nothing says from which P(cell) on they are cells."""
    if "p_cell" not in points.columns or column is not None or threshold is not None:
        return []
    return [
        "the predictions have a column p_cell, but not the refiner's threshold (their .json beside them is "
        "missing or not theirs): every row is scored as a cell; give --threshold"
    ]


class _Outcome:
    """Outcome of every row under a matching, and counts by box."""

    def __init__(self, matched: Pairs, pred: Points, true: Points, boxes: np.ndarray | None) -> None:
        place_pred, place_true = _places(pred.zyx, boxes), _places(true.zyx, boxes)
        self.right, hit = np.zeros(len(pred), bool), np.zeros(len(true), bool)
        self.right[matched.pred] = True
        hit[matched.truth] = True
        self.detected, self.missed = hit & (place_true >= 0), ~hit & (place_true >= 0)
        self.false = ~self.right & (place_pred >= 0)
        k = 1 if boxes is None else len(boxes)
        rows = place_true[self.detected], place_pred[self.false], place_true[self.missed]
        self.by_box = np.stack([np.bincount(row, minlength=k) for row in rows], axis=1)
        self.counts = Counts(*self.by_box.sum(axis=0).tolist())
        self.mean_distance = float(matched.distance.mean()) if len(matched.distance) else None


def _near(pred: Points, true: Points, tolerance: float, scale_zyx: ZyxUm) -> Pairs:
    return find_pairs(pred.zyx, true.zyx, tolerance=tolerance, scale_zyx=scale_zyx)


def _of_rows(pairs: Pairs, keep: np.ndarray) -> Pairs:
    """The pairs of the predictions that are kept, numbered anew."""
    kept = pairs.where(keep[pairs.pred])
    return kept._replace(pred=(np.cumsum(keep) - 1)[kept.pred])


def _curve(every: Points, scores: np.ndarray, true: Points, pairs: Pairs, boxes: np.ndarray | None) -> Curve:
    """Counts at every threshold, of all predictions regardless of this score's threshold."""
    return score_curve(pairs, scores, _places(every.zyx, boxes) >= 0, _places(true.zyx, boxes) >= 0)


def _in_um(
    pred: Points, true: Points, tolerance: Tolerance, voxel_um: ZyxUm | None, boxes: np.ndarray | None
) -> tuple[float, Counts] | None:
    """The tolerance in µm, in plane and along z: 8 voxels of 4 × 1.8 × 1.8 µm are 14.4 and 32 µm."""
    if tolerance.unit != "voxels" or voxel_um is None:
        return None
    across = tolerance.value * min(voxel_um[1:])
    pairs = _near(pred, true, across, voxel_um)
    return across, _Outcome(greedy_of(pairs, len(pred), len(true)), pred, true, boxes).counts


def _rows(points: Points, keep: np.ndarray) -> Points:
    return Points(
        points.zyx[keep], {name: values[keep] for name, values in points.columns.items()}, points.meta
    )


def _places(zyx: Float64[np.ndarray, "n 3"], boxes: np.ndarray | None) -> np.ndarray:
    """Index of each row's box, −1 outside; one box for everything if none are given."""
    return np.zeros(len(zyx), np.int64) if boxes is None else box_of(zyx, boxes)


def _as_recorded(
    points: object, column: str | None, threshold: float | None
) -> tuple[str | None, float | None]:
    """Column and threshold of a refiner's decision, if a refiner wrote the points and no column was named."""
    if column is not None or not isinstance(points, Points) or "p_cell" not in points.columns:
        return column, threshold
    recorded = points.meta.get("p_cell_threshold")
    if recorded is None:
        return column, threshold
    return "p_cell", float(recorded) if threshold is None else threshold


def _points(points: Points | np.ndarray | Sequence[Sequence[float]]) -> Points:
    return (
        points if isinstance(points, Points) else Points(np.asarray(points, dtype=np.float64).reshape(-1, 3))
    )
