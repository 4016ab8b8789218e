"""Training set of a refiner: features of labelled candidates of all brains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64, Shaped

from canvas_fm.heads.features.feature_set import FeatureSet
from canvas_fm.heads.labels.group_folds import Folds


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


@dataclass(frozen=True)
class LabelledFeatures:
    """Labelled rows as the model's input; `grouped` is False if no brains were given.

    `contrast_augmented` are the same rows at other contrasts: the model is fitted on them too and the
    threshold has to do for them, but calibration and figures are of the rows as they are.
    """

    x: Float32[np.ndarray, "n w"]
    is_cell: Bool[np.ndarray, " n"]
    groups: Shaped[np.ndarray, " n"]
    regions: np.ndarray | None
    missed: Mapping[str, int]
    grouped: bool
    contrast_augmented: tuple[Float32[np.ndarray, "n w"], ...] = ()

    def seen(
        self, subset: Int64[np.ndarray, " m"] | slice
    ) -> tuple[Float32[np.ndarray, "km w"], Bool[np.ndarray, " km"]]:
        """Training rows with labels: the original ones, then each contrast-augmented copy."""
        x = np.concatenate([self.x[subset], *(copy[subset] for copy in self.contrast_augmented)])
        return x, np.tile(self.is_cell[subset], 1 + len(self.contrast_augmented))

    def missed_in(self, rows: Int64[np.ndarray, " m"]) -> int:
        """True cells without a candidate, in proportion to these rows' share of their brain."""
        total = 0.0
        for name, count in self.missed.items():
            all_rows = int((self.groups == name).sum())
            total += count * int((self.groups[rows] == name).sum()) / all_rows if all_rows else 0
        return round(total)

    def by_brain(
        self, subset: Int64[np.ndarray, " m"] | None = None
    ) -> tuple[Bool[np.ndarray, " m"], Shaped[np.ndarray, " m"], dict[str, int]]:
        """Labels and brains of some rows, and the cells without a candidate in each brain."""
        rows = np.arange(len(self.is_cell)) if subset is None else subset
        groups = self.groups[rows]
        missed = {str(name): self.missed_in(rows[groups == name]) for name in np.unique(groups)}
        return self.is_cell[rows], groups, missed

    @property
    def places(self) -> Shaped[np.ndarray, " n"]:
        """Units for comparing counts: regions if known, else brains."""
        if self.regions is None:
            return self.groups
        return np.char.add(np.char.add(self.groups.astype(np.str_), "/"), self.regions.astype(np.str_))


def split_warning(folds: Folds, rows: LabelledFeatures) -> str | None:
    if not rows.grouped:
        return "rows split at random, since no groups were given: nothing is known of another brain"
    return folds.warning
