"""What a refiner is fitted on: features of labelled candidates of all brains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from canvas_fm.heads.features.feature_set import FeatureSet


@dataclass(frozen=True)
class TrainingSet:
    """Features of all brains below each other, with labels, regions and what was missed in each brain.

    `contrast_augmented` are the features of the same candidates with each brain seen at another contrast.
    """

    features: FeatureSet
    label: Int64[np.ndarray, " n"]
    regions: np.ndarray | None
    missed: dict[str, int]
    contrast_augmented: tuple[FeatureSet, ...] = ()
