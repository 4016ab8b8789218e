"""The recipe of a detector: net, targets, crops, augmentation, and what is calibrated at the end."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict, model_validator

from canvas_fm.models.convmixer import ConvMixerConfig
from canvas_fm.training.recipe.recipe import (
    AnyRecipe,
    AugmentRecipe,
    CropsRecipe,
    EvaluationRecipe,
    Positive,
    Section,
    Share,
    Size,
    TrackingRecipe,
    TrainingRecipe,
)

Zyx = Annotated[tuple[Positive, Positive, Positive], Strict(False)]


class TargetRecipe(Section):
    """What the net is to be hot on: an ellipsoid of `radius_um` around every cell's centre, or its mask."""

    kind: Literal["centres", "masks"] = "centres"
    radius_um: Size = 6.0


class FocalRecipe(Section):
    """The binary focal loss: α weighs cells against background, γ turns away from what is easy.

    Summed over labelled voxels and divided by those that are cell, which count as at least `floor` of all.
    """

    alpha: float = Field(default=0.25, gt=0, lt=1)
    gamma: float = Field(default=2.0, ge=0)
    floor: float = Field(default=1e-3, gt=0)


class DetectorData(CropsRecipe):
    """The crops: a share around cells, a share around bright spots that are none, the rest anywhere."""

    crops: Positive = 4000
    crop_zyx: Zyx = (24, 64, 64)
    cells: Share = 0.4
    hard: Share = 0.3

    @model_validator(mode="after")
    def _shares_fit(self) -> DetectorData:
        if self.cells + self.hard > 1:
            raise ValueError(f"the shares cells {self.cells} and hard {self.hard} are more than the whole")
        return self


class DetectorAugment(AugmentRecipe):
    """Besides flips, turns and noise a crop's brightness: (gain · x + offset) to the power of gamma.

    Gain and gamma are drawn evenly in their logarithm, from 1 / the given to the given; the offset from
    −`offset` to `offset`; σ of the noise from 0 to `noise`.
    """

    noise: float = Field(default=0.03, ge=0)
    gain: float = Field(default=2.7, ge=1)
    gamma: float = Field(default=1.35, ge=1)
    offset: float = Field(default=0.05, ge=0)


class DetectionRecipe(Section):
    """How cells are read off the heat map, and how the operating threshold is chosen.

    `tolerance_um` is one for all, or one a marker. Over the training volumes, each as it is and with its
    contrast times every `gains`, the threshold is the one with the highest mean F1.
    """

    min_distance_um: Size = 8.0
    smooth_um: float = Field(default=3.0, ge=0)
    tolerance_um: Size | dict[str, Size] = 8.0
    gains: Annotated[tuple[Size, ...], Strict(False), Field(min_length=1)] = (1.0,)


class DetectorRecipe(AnyRecipe):
    """The whole training of a detector."""

    kind: Literal["detector"]
    model: ConvMixerConfig = ConvMixerConfig()
    target: TargetRecipe = TargetRecipe()
    loss: FocalRecipe = FocalRecipe()
    data: DetectorData = DetectorData()
    augment: DetectorAugment = DetectorAugment()
    training: TrainingRecipe
    detection: DetectionRecipe = DetectionRecipe()
    evaluation: EvaluationRecipe = EvaluationRecipe()
    tracking: TrackingRecipe = TrackingRecipe()
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _crops_are_patches(self) -> DetectorRecipe:
        if any(c % p for c, p in zip(self.data.crop_zyx, self.model.patch_zyx, strict=True)):
            raise ValueError(
                f"data.crop_zyx {self.data.crop_zyx} is not whole patches {self.model.patch_zyx}"
            )
        return self

    def tolerance_um(self, marker: str | None) -> float:
        """For one volume, by its marker where there is one each."""
        given = self.detection.tolerance_um
        if isinstance(given, float):
            return given
        if marker not in given:
            known = ", ".join(given)
            raise ValueError(f"detection.tolerance_um has no tolerance for marker {marker!r}; it has {known}")
        return given[marker]
