"""The recipe of a pretraining: all settings of a training in one validated YAML file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import yaml
from pydantic import AfterValidator, AliasChoices, Field, Strict, model_validator

from canvas_fm.data.volume.window import WindowRule
from canvas_fm.files.strict_yaml import StrictModel
from canvas_fm.models.folder.network_config import DecoderConfig, EncoderConfig, Pool, masked_count

Positive = Annotated[int, Field(gt=0)]
Size = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


def _without_descriptors(encoder: EncoderConfig) -> EncoderConfig:
    if encoder.descriptors is not None:
        raise ValueError(
            "descriptors are fitted when a joint pretraining is written: leave encoder.descriptors out, and "
            "give model.descriptors there"
        )
    return encoder


TrainedEncoder = Annotated[EncoderConfig, AfterValidator(_without_descriptors)]


class ModelRecipe(StrictModel):
    """Encoder, decoder, mask ratio, and the encoder's default pooling."""

    encoder: TrainedEncoder = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    mask_ratio: float = Field(default=0.15, gt=0, lt=1)
    pool: Pool = "mean"

    @model_validator(mode="after")
    def _something_hidden_and_something_seen(self) -> ModelRecipe:
        tokens = self.encoder.tokens
        if not 0 < masked_count(self.mask_ratio, tokens) < tokens:
            raise ValueError(f"mask_ratio {self.mask_ratio} hides none or all of a crop's {tokens} patches")
        return self


class LossRecipe(StrictModel):
    """Content-aware weights: background α, cells α + γ; γ = 0 is the uniform loss.

    `scale` says what a patch's variance is measured against: the mean over the optimizer batch, over the data
    set, or the `mean_variance` given here. `error` is measured in windowed voxels, as in the paper, in
    deviations of each crop (`contrast`, for an encoder that sees those): then dim crops count like others,
    or in deviations of each patch (`patch`, for a decoder with such targets): then every patch counts like
    any other, and γ goes on by its variance in windowed voxels, as in its own unit all have the same.
    """

    alpha: float = Field(default=1.0, gt=0)
    gamma: float = Field(default=9.0, ge=0)
    scale: Literal["batch", "dataset", "fixed"] = "batch"
    error: Literal["window", "contrast", "patch"] = "window"
    mean_variance: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _fixed_means_given(self) -> LossRecipe:
        if (self.scale == "fixed") != (self.mean_variance is not None):
            raise ValueError("mean_variance has to be given with scale: fixed, and only then")
        return self


class DistilRecipe(StrictModel):
    """Self-distillation: masked patches also predict the features of a moving-average teacher.

    The teacher is the average of the encoder over the last 1 / (1 − `momentum`) steps; its target is the mean
    of its last `layers` blocks, and its loss counts `weight` beside the reconstruction's. By `normalise` each
    block comes to mean 0 and variance 1: over the features of a patch (`layer`), or for each feature over the
    patches of a crop (`crop`); then what all patches share, else nearly all there is, is no target any more.
    """

    weight: float = Field(default=1.0, gt=0)
    momentum: float = Field(default=0.99, ge=0, lt=1)
    layers: Positive = 3
    normalise: Literal["layer", "crop"] = "layer"


class WindowRecipe(StrictModel):
    """Intensity window: two percentiles of the volume, or two multiples of its median."""

    kind: Literal["percentiles", "median"] = "percentiles"
    low: float = 0.5
    high: float = 99.9

    @model_validator(mode="after")
    def _is_a_rule(self) -> WindowRecipe:
        assert self.rule
        return self

    @property
    def rule(self) -> WindowRule:
        """The window rule as a volume takes it."""
        return WindowRule(self.kind, self.low, self.high)


class CropsRecipe(StrictModel):
    """Number of crops, window rule, and the held-out volumes."""

    crops: Positive = 60_000
    held_out: Annotated[int, Field(ge=0)] | list[str] = Field(default_factory=list)
    window: WindowRecipe = WindowRecipe()
    resample_to: Annotated[tuple[Size, Size, Size], Strict(False)] | None = None
    ignore_voxel_size: bool = Field(
        default=False,
        validation_alias=AliasChoices("ignore_voxel_size", "any_voxel"),  # as runs before 1.0 wrote it
    )
    resident_gb: float = Field(default=4.0, ge=0)


class DataRecipe(CropsRecipe):
    """The crops of a pretraining, and the share on foreground signal."""

    foreground: Share = 0.5


class AugmentRecipe(StrictModel):
    """Flips along each axis with probability `flip`, turns by 90° in y, x, Gaussian noise of σ `noise`."""

    flip: Share = 0.5
    rotate: bool = True
    noise: float = Field(default=0.01, ge=0)


class TrainingRecipe(StrictModel):
    """Duration and optimizer. `steps` override `epochs`; one epoch is one pass over `data.crops`.

    0 steps are for a detector with a `start`: its weights stay, and only the threshold is chosen.
    """

    steps: int | None = Field(default=None, ge=0)
    epochs: float | None = Field(default=None, gt=0)
    batch: Positive = 64
    micro_batch: Positive | None = None
    learning_rate: float = Field(default=1.5e-4, gt=0)
    min_learning_rate: float = Field(default=1e-6, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.05, ge=0)
    betas: Annotated[tuple[Share, Share], Strict(False)] = (0.9, 0.95)
    clip: float | None = Field(default=1.0, gt=0)
    ema: float | None = Field(default=None, gt=0, lt=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    log_every: Positive = 20
    checkpoint_every: Positive = 500

    @model_validator(mode="after")
    def _has_a_length(self) -> TrainingRecipe:
        if self.steps is None and self.epochs is None:
            raise ValueError("neither steps nor epochs is given; a training needs one of them")
        return self


class EvaluationRecipe(StrictModel):
    """Evaluation interval in steps (none: at the end only), and fixed crops of each kind a volume."""

    every: Positive | None = None
    crops: Positive = 512
    batch: Positive = 64
    seed: int = Field(default=0, ge=0)
    figures: bool = True


class WandbRecipe(StrictModel):
    """Weights & Biases; offline leaves the files in the run folder for a later `wandb sync`."""

    project: str = "canvas-fm"
    offline: bool = True


class TrackingRecipe(StrictModel):
    """Metric sinks in addition to metrics.jsonl."""

    tensorboard: bool = False
    wandb: WandbRecipe | None = None


class AnyRecipe(StrictModel):
    """Settings shared by all recipes."""

    if TYPE_CHECKING:
        data: CropsRecipe
        training: TrainingRecipe
        evaluation: EvaluationRecipe
        tracking: TrackingRecipe
        seed: int

    @model_validator(mode="after")
    def _has_steps_or_a_start(self) -> AnyRecipe:
        if self.training.steps == 0 and not getattr(self, "starts", None):
            raise ValueError("training.steps is 0, and no weights to start from are given; give 1 or more")
        return self

    @property
    def steps(self) -> int:
        """Number of optimizer steps of the whole training."""
        training = self.training
        if training.steps is not None:
            return training.steps
        assert training.epochs is not None
        return max(1, round(training.epochs * self.data.crops / training.batch))

    def to_yaml(self) -> str:
        """The resolved recipe with all defaults."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class Recipe(AnyRecipe):
    """The recipe of a pretraining; defaults are those of recipes/canvas_all_markers.yaml."""

    model: ModelRecipe = ModelRecipe()
    loss: LossRecipe = LossRecipe()
    distil: DistilRecipe | None = None
    data: DataRecipe = DataRecipe()
    augment: AugmentRecipe = AugmentRecipe()
    training: TrainingRecipe
    evaluation: EvaluationRecipe = EvaluationRecipe()
    tracking: TrackingRecipe = TrackingRecipe()
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _contrast_is_seen(self) -> Recipe:
        if self.loss.error == "contrast" and self.model.encoder.intensity != "contrast":
            raise ValueError("loss.error: contrast goes with model.encoder.intensity: contrast")
        if self.loss.error == "contrast" and self.loss.scale != "batch":
            raise ValueError("loss.error: contrast measures variances in the batch; leave out loss.scale")
        return self

    @model_validator(mode="after")
    def _layers_are_there(self) -> Recipe:
        depth = self.model.encoder.depth
        if self.distil is not None and self.distil.layers > depth:
            raise ValueError(
                f"distil.layers is {self.distil.layers}, and the encoder has only {depth} blocks"
            )
        return self

    @model_validator(mode="after")
    def _error_is_in_the_targets_unit(self) -> Recipe:
        error, targets = self.loss.error, self.model.decoder.targets
        if (error == "patch") != (targets == "patch"):
            raise ValueError(
                f"loss.error is {error!r} and model.decoder.targets {targets!r}; `patch` goes with `patch`, "
                "so give both or neither"
            )
        return self
