"""The recipe of a detector: net, targets, crops, augmentation, threshold calibration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, Strict, model_validator

from canvas_fm.data.phantom.randomised.draw_phantom import TOLERANCE_UM
from canvas_fm.data.phantom.randomised.parameter_ranges import Families
from canvas_fm.models.folder.network_config import (
    AmplitudeConfig,
    ConvMixerConfig,
    RelativeConfig,
    check_amplitude,
)
from canvas_fm.training.recipe.recipe import (
    AnyRecipe,
    AugmentRecipe,
    CropsRecipe,
    EvaluationRecipe,
    Positive,
    Share,
    Size,
    StrictModel,
    TrackingRecipe,
    TrainingRecipe,
)

Zyx = Annotated[tuple[Positive, Positive, Positive], Strict(False)]


class TargetRecipe(StrictModel):
    """Positive voxels: an ellipsoid of `radius_um` around every cell's centre, or its mask."""

    kind: Literal["centres", "masks"] = "centres"
    radius_um: Size = 6.0


class FocalRecipe(StrictModel):
    """Binary focal loss: α weighs cells against background, γ down-weights easy voxels.

    Summed over labelled voxels and divided by those that are cell, which count as at least `floor` of all.
    """

    alpha: float = Field(default=0.25, gt=0, lt=1)
    gamma: float = Field(default=2.0, ge=0)
    floor: float = Field(default=1e-3, gt=0)


class PhantomRecipe(StrictModel):
    """Randomised phantoms drawn in memory during training: `share` of each batch.

    A volume of `shape_zyx` is drawn, gives `crops_each` crops from a pool of `pool` volumes and makes room
    for the next. `resampled` of them are drawn at another voxel size and read at the detector's, which is
    that of the volumes, or `voxel_um` where there are none. `calibrate` more are what the threshold is
    chosen on.
    """

    share: float = Field(default=1.0, gt=0, le=1)
    families: Families = Families()
    shape_zyx: Zyx = (40, 160, 160)
    voxel_um: Annotated[tuple[Size, Size, Size], Strict(False)] = (6.0, 1.62, 1.62)
    resampled: Share = 0.3
    crops_each: Positive = 36
    pool: Positive = 6
    calibrate: Positive = 32


class DetectorData(CropsRecipe):
    """The crops: a share around cells, a share around hard negatives, the rest at random.

    Every marker gives as many crops, or as `marker_shares` says; every volume of a marker as many.
    """

    marker_shares: dict[str, Size] | None = None

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
    """Flips, turns, noise, and brightness: (gain · x + offset) to the power of gamma.

    Gain and gamma are drawn evenly in their logarithm, from 1 / the given to the given; the offset from
    −`offset` to `offset`; σ of the noise from 0 to `noise`.
    """

    noise: float = Field(default=0.03, ge=0)
    gain: float = Field(default=2.7, ge=1)
    gamma: float = Field(default=1.35, ge=1)
    offset: float = Field(default=0.05, ge=0)


class DetectionRecipe(StrictModel):
    """Detection of cells in the heat map, and calibration of the fixed threshold.

    `tolerance_um` is one for all, or one a marker. Over the training volumes, each as it is and with its
    contrast times every `gains`, the threshold is the one with the highest mean F1; `chosen_on` phantoms, or
    both, each marker and all phantoms counting as much. The scores of another brain may be higher or lower by
    some `spread` (a standard deviation, in logits), and F1 is taken on average over that. With `amplitude`
    scores take in how bright a blob is, with `relative` they are taken against the strongest around, with
    `amplitude.relative` its brightness too.
    """

    min_distance_um: Size = 8.0
    smooth_um: float = Field(default=3.0, ge=0)
    tolerance_um: Size | dict[str, Size] = 8.0
    gains: Annotated[tuple[Size, ...], Strict(False), Field(min_length=1)] = (1.0,)
    chosen_on: Literal["volumes", "phantoms", "both"] = "volumes"
    spread: float = Field(default=0.0, ge=0)
    amplitude: AmplitudeConfig | None = None
    relative: RelativeConfig | None = None

    @model_validator(mode="after")
    def _amplitude_has_a_reference(self) -> Self:
        check_amplitude(self.amplitude, self.relative)
        return self


class EncoderInit(StrictModel):
    """Start from an encoder: before the training on cells the net learns to predict its tokens.

    For so many `steps` of `batch` crops, drawn from the whole training volumes without labels.
    """

    encoder: str
    crops: Positive = 96
    steps: Positive = 300
    batch: Positive = 4
    learning_rate: Size = 4e-3


def init_overrides(encoder: str | Path | None) -> list[str]:
    """The overrides of a recipe that name an encoder to start from; none for None."""
    return [] if encoder is None else [f"init.encoder={json.dumps(str(encoder))}"]


class DetectorRecipe(AnyRecipe):
    """The recipe of a detector's training."""

    kind: Literal["detector"]
    model: ConvMixerConfig = ConvMixerConfig()
    target: TargetRecipe = TargetRecipe()
    loss: FocalRecipe = FocalRecipe()
    data: DetectorData = DetectorData()
    augment: DetectorAugment = DetectorAugment()
    training: TrainingRecipe
    detection: DetectionRecipe = DetectionRecipe()
    phantoms: PhantomRecipe | None = None
    init: EncoderInit | None = None
    start: str | list[str] | None = None  # a detector whose weights it starts from, or several: their mean
    start_share: float = Field(
        default=0.0, ge=0, lt=1
    )  # of its weights in what ships, averaged with the trained
    evaluation: EvaluationRecipe = EvaluationRecipe()
    tracking: TrackingRecipe = TrackingRecipe()
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _phantoms_are_there(self) -> DetectorRecipe:
        if self.phantoms is None and self.detection.chosen_on != "volumes":
            raise ValueError(
                f"detection.chosen_on is {self.detection.chosen_on}, and the recipe has no phantoms"
            )
        if self.phantoms is not None and self.target.kind == "masks":
            raise ValueError("phantoms have centres as targets: set target.kind=centres")
        drawn = None if self.phantoms is None else self.phantoms.families
        if self.model.channels == 2 and drawn is not None and drawn.autofluorescence is None:
            raise ValueError(
                "model.channels is 2, and phantoms have a background channel only with "
                "phantoms.families.autofluorescence: set it, {} for the default ranges"
            )
        return self

    @property
    def starts(self) -> list[str]:
        """The detectors whose weights, averaged, the training starts from."""
        return [self.start] if isinstance(self.start, str) else self.start or []

    @model_validator(mode="after")
    def _start_is_there(self) -> DetectorRecipe:
        if self.start == []:
            raise ValueError("start is an empty list; name one detector or several, or leave it out")
        if self.start_share and self.start is None:
            raise ValueError(f"start_share is {self.start_share}, and the recipe has no start")
        if self.start is not None and self.init is not None:
            raise ValueError("start and init are both given; a net starts from a detector or an encoder")
        return self

    @property
    def phantoms_a_batch(self) -> int:
        """Number of phantom crops in each batch."""
        return 0 if self.phantoms is None else max(1, round(self.phantoms.share * self.training.batch))

    @model_validator(mode="after")
    def _crops_are_patches(self) -> DetectorRecipe:
        if any(c % p for c, p in zip(self.data.crop_zyx, self.model.patch_zyx, strict=True)):
            raise ValueError(
                f"data.crop_zyx {self.data.crop_zyx} is not whole patches {self.model.patch_zyx}"
            )
        return self

    def tolerance_um(self, marker: str | None) -> float:
        """Matching tolerance of one volume, by its marker where there is one each."""
        if marker in TOLERANCE_UM:
            return TOLERANCE_UM[marker]
        tolerance = self.detection.tolerance_um
        if isinstance(tolerance, float):
            return tolerance
        if marker not in tolerance:
            known = ", ".join(tolerance)
            raise ValueError(f"detection.tolerance_um has no tolerance for marker {marker!r}; it has {known}")
        return tolerance[marker]
