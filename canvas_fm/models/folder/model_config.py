"""Contents of `config.json` of a model's folder."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from canvas_fm.data.volume.window import WindowRule
from canvas_fm.files.option_sets import FrozenModel
from canvas_fm.models.folder.network_config import (
    AmplitudeConfig,
    ConvMixerConfig,
    DecoderConfig,
    EncoderConfig,
    Pool,
    RelativeConfig,
    check_amplitude,
)


class ModelConfig(FrozenModel):
    """Everything needed to use an encoder's weights: `config.json` of its folder."""

    kind: Literal["encoder"] = "encoder"
    format_version: Literal[1] = 1
    architecture: EncoderConfig
    decoder: DecoderConfig | None = None
    voxel_um: tuple[float, float, float]
    window_rule: WindowRule = WindowRule()
    pool: Pool = "mean"
    provenance: dict[str, Any] = Field(default_factory=dict)
    weights: dict[str, str]
    sha256: str


class DetectorConfig(FrozenModel):
    """Everything needed to use a detector's weights: `config.json` of its folder.

    The heat map is smoothed by a Gaussian of `smooth_um`; a maximum of it is a cell iff it is at or above
    `threshold`, the operating threshold, and no hotter voxel lies within `min_distance_um`. With `amplitude`
    what is compared with the threshold is the score that joins the heat and the blob's brightness, with
    `relative` the score against the strongest detections around, and with `amplitude.relative` the blob's
    brightness against that of the brightest.
    """

    kind: Literal["detector"] = "detector"
    format_version: Literal[1] = 1
    architecture: ConvMixerConfig
    voxel_um: tuple[float, float, float]
    window_rule: WindowRule = WindowRule()
    threshold: float = Field(gt=0, lt=1)
    min_distance_um: float = Field(gt=0)
    smooth_um: float = Field(0.0, ge=0)
    amplitude: AmplitudeConfig | None = None
    relative: RelativeConfig | None = None
    provenance: dict[str, Any] = Field(default_factory=dict)
    weights: dict[str, str]
    sha256: str

    @model_validator(mode="after")
    def _amplitude_has_a_reference(self) -> Self:
        check_amplitude(self.amplitude, self.relative)
        return self
