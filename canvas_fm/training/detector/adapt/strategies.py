"""Strategies of adapting a detector: cross-validated scores, and the choice among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from canvas_fm.training.detector.adapt.label_folds import (
    Counts,
    LabelFolds,
    best_threshold,
    counts_at,
    cross_fitted,
    drawn_blocks,
    f1_of,
)

Strategy = Literal["unadapted", "threshold", "amplitude", "self-training", "last layers", "all layers"]
# Share of resamples in which a way has to be above the unadapted detector, with fewer cells than this: for
# the threshold alone, and for what changes the order of detections too. Of 120 draws of 10 cells 3 % lost
# more than .02 of F1 by the threshold at .9 or .95; of 200 draws of 20 cells one at .9.
_SURE = ((15, 0.99, 0.99), (float("inf"), 0.9, 0.975))
_LIKELY = 0.5  # the share for self-training, with as many cells as the second row asks for


@dataclass(frozen=True)
class StrategyScore:
    """A way of adapting, scored on cells that it was not fitted on; intervals are 95 % over blocks."""

    way: Strategy
    f1: float
    interval: tuple[float, float]
    gain: float  # over the unadapted detector
    gain_interval: tuple[float, float]
    better: float  # share of resamples in which it is above the unadapted detector
    threshold: float  # chosen on all labels


def choose_strategy(
    scores: Sequence[StrategyScore], cells: int, *, phantoms_alone: bool = False
) -> tuple[StrategyScore, StrategyScore]:
    """The strategy of highest F1 among the significantly better ones, else of all; and the chosen one.

    That is the same, or the unadapted (first of `scores`) where none is surely better: the threshold in nine
    of ten resamples, another way in 39 of 40, with fewer than 15 cells any in 99 of 100. With few cells, and
    with several ways, a gain is more often chance. For a detector that was trained on phantoms alone self-
    training comes first: with 15 cells or more it is taken where it is above in half of the resamples. Such a
    detector gains by it on most brains, and 20 cells cannot make it surer.
    """
    taught = [score for score in scores[1:] if score.way == "self-training"] if phantoms_alone else []
    if cells >= _SURE[0][0] and taught and taught[0].gain > 0 and taught[0].better >= _LIKELY:
        return taught[0], taught[0]
    alone, other = next((alone, other) for fewer, alone, other in _SURE if cells < fewer)
    sure = [
        score
        for score in scores[1:]
        if score.gain > 0 and score.better >= (alone if score.way == "threshold" else other)
    ]
    best = max(sure or scores[1:], key=lambda score: score.f1)
    return best, best if sure else scores[0]


def score_strategies(
    counts_by_way: Mapping[Strategy, Counts],
    folds: LabelFolds,
    threshold: float,
    seed: int,
    *,
    chosen_by: Mapping[Strategy, Counts] | None = None,
) -> tuple[StrategyScore, ...]:
    """Scores of the unadapted detector, then of every strategy, at thresholds chosen on the other folds.

    Where `chosen_by` has counts of a way its threshold is chosen on those.
    """
    chosen_by = {**counts_by_way, **(chosen_by or {})}
    drawn = drawn_blocks(len(folds.blocks), seed)
    before = counts_at(counts_by_way["threshold"], threshold)
    held: dict[Strategy, np.ndarray] = {"unadapted": before}
    held |= {
        way: cross_fitted(counts, folds.fold, seed, threshold, chosen_by[way])
        for way, counts in counts_by_way.items()
    }
    scores = []
    for way, counts in held.items():
        f1, base = f1_of(counts[drawn].sum(axis=1)), f1_of(before[drawn].sum(axis=1))
        whole = float(f1_of(counts.sum(axis=0)))
        scores.append(
            StrategyScore(
                way, whole, _ends(f1), whole - float(f1_of(before.sum(axis=0))), _ends(f1 - base),
                float((f1 > base).mean()),
                threshold
                if way == "unadapted"
                else best_threshold(chosen_by[way], seed, threshold),
            )
        )  # fmt: skip
    return tuple(scores)


def _ends(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
