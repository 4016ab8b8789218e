"""The candidate score as a one-column feature block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from canvas_fm.data.points.points import SCORE_COLUMNS, Points, score_column
from canvas_fm.errors import BadInput, CanvasError, ModelMismatch
from canvas_fm.evaluation.detection.plausibility_checks import scores_of
from canvas_fm.heads.features.feature_set import CANDIDATE_SCORE, FeatureSet, Provenance
from canvas_fm.heads.labels.candidates import Candidates

# Scores are looked at by their logarithm, from here on upwards: those of a Laplacian of a Gaussian go over
# decades, and a heat that was rounded to 0 still has one. No other row has a say, so that a score means the
# same when it is judged as when it was learned from.
FLOOR = 1e-6


def candidate_scores(brains: Sequence[Candidates]) -> tuple[list[Float32[np.ndarray, "n 1"]], Provenance]:
    """log(max(score, 1e-6)) of each brain's candidates, and the provenance of the score column.

    The column is the one that the candidates name, else the first of score, p_cell and log_score; it is the
    same for all. What made the scores is recorded where all the files name the same detector.
    Raises BadInput where a brain has no scores, another column, or a score that is NaN, infinite or below 0.
    """
    columns = {}
    for brain in brains:
        column = brain.score or score_column(brain.points)
        if column is None or column not in brain.points.columns:
            column_names = column or ", ".join(SCORE_COLUMNS)
            raise BadInput(
                f"{brain.name}: its candidates have no column {column_names}, they have "
                f"{_has(brain.points)}; name the score's with --score-column, "
                "or leave --candidate-score out"
            )
        columns[brain.name] = column
    if len(set(columns.values())) > 1:
        listing = ", ".join(f"{name} {column!r}" for name, column in columns.items())
        raise BadInput(
            f"the candidate score is in different columns ({listing}); name one with --score-column"
        )
    column = next(iter(columns.values()))
    scores = [_logarithm(brain.points, column, f"{brain.name}: ") for brain in brains]
    makers = {made_by(brain.points) for brain in brains}
    maker = makers.pop() if len(makers) == 1 else ""
    return scores, Provenance(f"column {column}", "", {"column": column, "made_by": maker})


def recorded_score(points: Points, provenance: Provenance) -> Float32[np.ndarray, "n 1"]:
    """`candidate_scores` of new candidates, from the score column that a refiner recorded.

    Raises BadInput where it is not there or holds what is no score, ModelMismatch where their file names
    another detector than those did that the refiner was fitted on.
    """
    column, maker = provenance.settings["column"], provenance.settings["made_by"]
    if column not in points.columns:
        raise BadInput(
            f"this refiner uses the candidate score, column {column!r}; these have "
            f"{_has(points)}: give candidates with the score of the detector that it was fitted on, "
            "or take a refiner that was fitted without --candidate-score"
        )
    if maker and (detector := made_by(points)) and detector != maker:
        raise ModelMismatch(
            f"the scores of these candidates are of the detector {_short(detector)}; this refiner was fitted "
            f"on those of {_short(maker)}: give candidates of that one, or fit anew on such as these"
        )
    return _logarithm(points, column, "")


def with_candidate_score(
    features: FeatureSet, score: Float32[np.ndarray, "n 1"], provenance: Provenance
) -> FeatureSet:
    """Features with the candidate score of the same rows as their last block."""
    width = features.x.shape[1]
    blocks = {**features.blocks, CANDIDATE_SCORE: slice(width, width + 1)}
    x = np.concatenate([features.x, score], axis=1)
    return FeatureSet(x, blocks, features.groups, {**features.provenance, CANDIDATE_SCORE: provenance})


def _logarithm(points: Points, column: str, whose: str) -> Float32[np.ndarray, "n 1"]:
    try:
        scores = scores_of(points, column, needed=True)
    except CanvasError as problem:
        raise BadInput(f"{whose}{problem}") from problem
    assert scores is not None
    odd = ~np.isfinite(scores) | (scores < 0)
    if odd.any():
        row = int(np.argmax(odd))
        raise BadInput(
            f"{whose}the candidate score, column {column!r}, is {scores[row]:g} in row {row + 1}; its "
            "logarithm is a feature: give scores that are finite and not below 0"
        )
    return np.log(np.maximum(scores, FLOOR)).astype(np.float32)[:, None]


def made_by(points: Points) -> str:
    """Detector named by a candidates file: its sha256, else its description; empty for none."""
    return str(points.meta.get("detector_sha256") or points.meta.get("detector") or "")


def _short(maker: str) -> str:
    return maker[:12] if len(maker) == 64 else maker


def _has(points: Points) -> str:
    return ", ".join(points.columns) or "none"
