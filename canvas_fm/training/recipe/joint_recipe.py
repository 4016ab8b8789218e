"""The recipe of a joint-embedding pretraining: encoder, projector, loss, positions and views."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, Strict, model_validator

from canvas_fm.models.folder.network_config import (
    DecoderConfig,
    DescriptorsConfig,
    EncoderConfig,
    Pool,
    ProjectorConfig,
)
from canvas_fm.training.recipe.recipe import (
    AnyRecipe,
    CropsRecipe,
    EvaluationRecipe,
    Positive,
    Share,
    Size,
    StrictModel,
    TrackingRecipe,
    TrainedEncoder,
    TrainingRecipe,
)

Level = Annotated[float, Field(ge=0)]


class DescriptorsRecipe(StrictModel):
    """Descriptors behind the tokens of the written encoder, fitted on its training volumes; nothing of the
    training depends on them. As in `DescriptorsConfig`.
    """

    components: Positive = 96
    radii_um: Annotated[tuple[Size, ...], Strict(False), Field(min_length=2)] = (2.0, 4.0, 6.0, 9.0, 13.0)

    def config(self, voxel_um: tuple[float, float, float]) -> DescriptorsConfig:
        """Descriptors at a voxel size."""
        return DescriptorsConfig(components=self.components, radii_um=self.radii_um, voxel_um=voxel_um)


class JointModel(StrictModel):
    """Encoder, projector, and the number of visible patches of a training view, the centre's included.

    `decoder` predicts the masked patches of each view where `loss.reconstruction` has a weight.
    """

    encoder: TrainedEncoder = EncoderConfig(crop_zyx=(8, 16, 16), patch_zyx=(2, 4, 4), dim=192, heads=3)
    projector: ProjectorConfig = ProjectorConfig()
    decoder: DecoderConfig = DecoderConfig(dim=96, depth=2, heads=3)
    visible: Positive = 16
    pool: Pool = "centre"
    descriptors: DescriptorsRecipe | None = None

    @model_validator(mode="after")
    def _the_centre_is_visible(self) -> JointModel:
        tokens, centre = self.encoder.tokens, math.prod(2 - n % 2 for n in self.encoder.grid_zyx)
        if not centre <= self.visible <= tokens:
            raise ValueError(
                f"visible is {self.visible}; a view shows at least the {centre} patches of the centre and at "
                f"most all {tokens}"
            )
        return self


class JointLoss(StrictModel):
    """`contrastive`: decoupled contrastive loss at `temperature`; `vicreg`: no negatives, three weights.

    `negatives` of a place are all other places of the batch, or those of its own volume only (`volume`): then
    two brains need not be told apart, and two cells of one brain must be.
    `reconstruction` is the weight of a masked autoencoder's loss beside it, on the same views and tokens; 0
    leaves the decoder out.
    """

    kind: Literal["contrastive", "vicreg"] = "contrastive"
    temperature: Size = 0.2
    negatives: Literal["all", "volume"] = "all"
    invariance: Level = 25.0
    variance: Level = 25.0
    covariance: Level = 1.0
    reconstruction: Level = 0.0


class PlacesRecipe(CropsRecipe):
    """Number of positions, a share `blobs` of them on maxima of a Laplacian of a Gaussian of σ `blob_um`.

    A batch mixes positions of all volumes, or has equally many of so few random ones (`volumes_a_batch`).
    """

    crops: Positive = 40_000
    volumes_a_batch: Positive | None = None
    blobs: Share = 0.7
    blob_um: Size = 5.0


class ViewRecipe(StrictModel):
    """Strengths of the augmentations of a view; 0 turns one off.

    Flips and quarter turns always; a share `free` of views is turned by any angle in y, x and scaled by up to
    `scale`. `shift_zyx` in voxels. `gain`, `gamma` and `scale` are drawn evenly in their logarithm, from 1 /
    the given to the given. `blur` mixes in neighbours along each axis, 1 being weights of 1, 2, 1. `noise`,
    `stripes` and `ramp` (a gradient of brightness) are in deviations of the crop, `offset` in the window.
    """

    free: Share = 0.5
    scale: float = Field(default=1.2, ge=1, le=2)
    shift_zyx: Annotated[tuple[Level, Level, Level], Strict(False)] = (1.4, 2.9, 2.9)
    gain: float = Field(default=1.8, ge=1)
    offset: Level = 0.05
    gamma: float = Field(default=1.57, ge=1)
    blur: Share = 1.0
    noise: Level = 0.5
    stripes: Level = 0.6
    ramp: Level = 0.5


class JointRecipe(AnyRecipe):
    """The recipe of a joint-embedding pretraining; `training.batch` counts positions, two views each.

    `start` is an encoder of the same architecture whose weights the training starts from.
    """

    objective: Literal["joint"]
    model: JointModel = JointModel()
    loss: JointLoss = JointLoss()
    data: PlacesRecipe = PlacesRecipe()
    views: ViewRecipe = ViewRecipe()
    training: TrainingRecipe
    evaluation: EvaluationRecipe = EvaluationRecipe()
    tracking: TrackingRecipe = TrackingRecipe()
    start: str | None = None
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _something_is_left_to_predict(self) -> JointRecipe:
        decoder, tokens = self.model.decoder, self.model.encoder.tokens
        if self.loss.reconstruction and self.model.visible == tokens:
            raise ValueError(
                f"loss.reconstruction is {self.loss.reconstruction:g}, and all {tokens} patches are visible; "
                "give a smaller model.visible"
            )
        if decoder.targets != "voxels":
            raise ValueError("model.decoder.targets: joint pretraining predicts voxels; leave it out")
        return self

    @model_validator(mode="after")
    def _one_channel(self) -> JointRecipe:
        if self.model.encoder.channels != 1:
            raise ValueError(
                f"model.encoder.channels is {self.model.encoder.channels}; joint pretraining takes one, a "
                "masked autoencoder two"
            )
        return self

    @model_validator(mode="after")
    def _one_batch_is_compared_whole(self) -> JointRecipe:
        if self.training.micro_batch is not None:
            raise ValueError("training.micro_batch: the loss compares all views of a batch; leave it out")
        if self.training.batch < 2:
            raise ValueError(f"training.batch is {self.training.batch}; a place needs another to differ from")
        return self

    @model_validator(mode="after")
    def _volumes_share_a_batch(self) -> JointRecipe:
        batch, volumes = self.training.batch, self.data.volumes_a_batch
        if volumes is not None and (batch % volumes or batch < 2 * volumes):
            raise ValueError(
                f"training.batch is {batch} and data.volumes_a_batch {volumes}; each volume needs equally "
                f"many places of a batch, two or more: give a batch of {2 * volumes}, {3 * volumes}, …"
            )
        if self.loss.negatives == "volume" and self.loss.kind != "contrastive":
            raise ValueError(f"loss.negatives: {self.loss.kind} compares no places; leave it out")
        if self.loss.negatives == "volume" and volumes is None:
            raise ValueError(
                "loss.negatives: volume compares places of one volume, of which a mixed batch may hold one; "
                "give data.volumes_a_batch too, for example 2"
            )
        return self
