"""Precision and recall at every threshold by greedy matching in one pass."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from canvas_fm.evaluation.detection.pairs import Pairs


class Curve(NamedTuple):
    """Counts at each distinct score as threshold (score ≥ threshold), in falling order."""

    threshold: Float64[np.ndarray, " k"]
    tp: Int64[np.ndarray, " k"]
    fp: Int64[np.ndarray, " k"]
    truths: int

    @property
    def precision(self) -> Float64[np.ndarray, " k"]:
        return self.tp / np.maximum(self.tp + self.fp, 1)

    @property
    def recall(self) -> Float64[np.ndarray, " k"]:
        return self.tp / max(self.truths, 1)

    @property
    def f1(self) -> Float64[np.ndarray, " k"]:
        return 2 * self.tp / np.maximum(self.tp + self.fp + self.truths, 1)

    @property
    def average_precision(self) -> float | None:
        """Σ (Rₖ − Rₖ₋₁) · Pₖ in falling order of threshold, uninterpolated; None without true cells."""
        if not self.truths:
            return None
        return float(np.sum(np.diff(self.recall, prepend=0.0) * self.precision))

    @property
    def best(self) -> tuple[float, float] | None:
        """(threshold, F1) of the highest F1: an upper bound, since it is chosen on the truth."""
        if not len(self.threshold) or not self.truths:
            return None
        at = int(np.argmax(self.f1))
        return float(self.threshold[at]), float(self.f1[at])


def score_curve(
    pairs: Pairs,
    scores: Float64[np.ndarray, " n"],
    pred_counts: Bool[np.ndarray, " n"],
    truth_counts: Bool[np.ndarray, " m"],
) -> Curve:
    """Counts of the greedy matching at every threshold.

    A matching that always takes the closest free pair is the one stable matching of predictions and truths
    that prefer whom they are closer to. So predictions enter by falling score, each proposing to its truths
    from the closest on and displacing a more distant one, which goes on proposing: the same matchings as
    starting anew at every threshold, at the cost of one. `pred_counts` and `truth_counts` say which rows are
    scored.
    """
    order = np.lexsort((pairs.truth, pairs.distance, pairs.pred))
    truth, distance = pairs.truth[order], pairs.distance[order]
    counts = np.bincount(pairs.pred, minlength=len(scores))
    ends = np.cumsum(counts)
    by_score = np.argsort(-scores, kind="stable")
    new_truth = np.full(len(scores), -1)
    new_false = np.full(len(scores), -1)
    # A prediction whose truths are near no other one takes the closest, whatever else there is.
    shared = np.bincount(pairs.truth, minlength=len(truth_counts))[pairs.truth] > 1
    alone = (np.bincount(pairs.pred[shared], minlength=len(scores)) == 0)[by_score]
    new_false[alone & (counts[by_score] == 0)] = by_score[alone & (counts[by_score] == 0)]
    takes = by_score[alone & (counts[by_score] > 0)]
    new_truth[alone & (counts[by_score] > 0)] = truth[ends[takes] - counts[takes]]
    next_pair, ends = (ends - counts).tolist(), ends.tolist()
    truth, distance = truth.tolist(), distance.tolist()
    holder = [-1] * len(truth_counts)
    matched_distance = [0.0] * len(truth_counts)
    turns = np.flatnonzero(~alone)
    for turn, pred in zip(turns.tolist(), by_score[turns].tolist(), strict=True):
        while True:
            pair = next_pair[pred]
            if pair == ends[pred]:
                new_false[turn] = pred
                break
            next_pair[pred] = pair + 1
            at = truth[pair]
            other = holder[at]
            if other < 0:
                holder[at], matched_distance[at] = pred, distance[pair]
                new_truth[turn] = at
                break
            if (distance[pair], pred) < (matched_distance[at], other):
                holder[at], matched_distance[at] = pred, distance[pair]
                pred = other
    tp = np.cumsum(_counted(new_truth, truth_counts))
    fp = np.cumsum(_counted(new_false, pred_counts))
    falling = scores[by_score]
    last = (
        np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
        if len(falling)
        else np.empty(0, np.int64)
    )
    return Curve(falling[last], tp[last], fp[last], int(truth_counts.sum()))


def _counted(rows: Int64[np.ndarray, " n"], counts: Bool[np.ndarray, " m"]) -> Int64[np.ndarray, " n"]:
    """1 for row indices that are valid and scored, else 0."""
    named = rows >= 0
    ones = np.zeros(len(rows), np.int64)
    ones[named] = counts[rows[named]]
    return ones
