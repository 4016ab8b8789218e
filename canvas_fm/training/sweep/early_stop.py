"""Early stopping of a sweep's runs by asynchronous successive halving.

Li et al., "A System for Massively Parallel Hyperparameter Tuning" (2018): no run waits for another, each is
compared with those that have come as far by then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from canvas_fm.training.run.folder.run_folder import Run
from canvas_fm.training.sweep.grid import EarlyTerminate, Metric


@dataclass(frozen=True)
class EarlyStop:
    """Whether a run is to end now, given the `runs` of its data set that it is compared with."""

    rule: EarlyTerminate
    metric: Metric
    runs: tuple[Path, ...]

    def __call__(self, run: Run) -> bool:
        """True after an evaluation that decides, if the run is not among the best 1/`eta` of those there.

        Where fewer than `eta` runs have come as far, none is stopped; the best one never is.
        """
        own = evaluations(run.metrics(), self.metric.name)
        if not self.rule.decides_after(len(own)):
            return False
        place = len(own) - 1
        others = (evaluations(Run(path).metrics(), self.metric.name) for path in self.runs)
        reached = [scores[place] for scores in others if len(scores) > place]
        sign = 1 if self.metric.goal == "maximize" else -1
        better = sum(sign * score > sign * own[place] for score in reached)
        return better >= max(1, math.ceil(len(reached) / self.rule.eta))


def evaluations(metrics: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """A figure at each evaluation of a run, in order: the mean over its sets of crops, nan if missing."""
    by_step: dict[int, list[float]] = {}
    for row in metrics:
        if row["kind"] == "eval":
            by_step.setdefault(row["step"], []).append(float(row.get(name, math.nan)))
    return [fmean(values) for _, values in sorted(by_step.items())]
