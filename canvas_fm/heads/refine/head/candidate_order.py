"""Blending of the candidate score into a refiner that ranks worse than it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from canvas_fm.errors import BadInput
from canvas_fm.evaluation.metrics.classification import auc
from canvas_fm.heads.features.candidate_score import candidate_scores, with_candidate_score
from canvas_fm.heads.labels.candidates import SKIP, Candidates
from canvas_fm.heads.refine.fit.training_set import TrainingSet
from canvas_fm.heads.refine.refiner import Refiner

_log = logging.getLogger(__name__)


def keep_candidate_order(
    refiner: Refiner, data: TrainingSet, brains: Sequence[Candidates]
) -> dict[str, Any] | None:
    """Refit a refiner with the candidate score as a feature, where that ranks held-out brains better.

    Both are judged by the mean AUC within brains that were held out. The new head is a blend in which the
    score is a model by itself, and which ranks no worse than it: at the least it is the score. Returns what
    was compared, None where the candidates have no score in common or a brain is corrected by itself.
    """
    if refiner.correction != "none":
        return None
    try:
        scores, provenance = candidate_scores(brains)
    except BadInput:
        return None
    own = _mean(
        [auc(brain.label[kept] == 1, score[kept, 0]) for brain, score, kept in _labelled(brains, scores)]
    )
    refined = _mean([scores["auc"] for scores in refiner.cross_validation_["brains"].values()])
    if own is None or refined is None:
        return None
    outcome = {"own_auc": own, "refined_auc": refined, "blended_in": own > refined}
    if own > refined:
        features = with_candidate_score(data.features, np.concatenate(scores), provenance)
        others = [with_candidate_score(features, np.concatenate(scores), provenance)
                  for features in data.contrast_augmented]  # fmt: skip
        refiner.set_params(model="blend").fit(
            features, data.label, regions=data.regions, missed=data.missed, contrast_augmented=others
        )
        _log.warning(
            "on held-out candidates their own score ranks better than the refiner (AUC %.3f and %.3f): "
            "it is blended in, and candidates to be refined need the column %r; --ignore-candidate-score "
            "leaves it out", own, refined, provenance.settings["column"],
        )  # fmt: skip
    return outcome


def _labelled(brains: Sequence[Candidates], scores: Sequence[np.ndarray]) -> Any:
    return zip(brains, scores, [brain.label != SKIP for brain in brains], strict=True)


def _mean(each: Sequence[float | None]) -> float | None:
    known = [value for value in each if value is not None]
    return float(np.mean(known)) if known else None
