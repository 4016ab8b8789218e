"""The columns that a detector gives a refiner: its pooled map at each candidate, and its score there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import BadInput
from canvas_fm.heads.features.feature_set import DETECTOR, DETECTOR_LOGIT, Provenance
from canvas_fm.inference.detect.detector_features import MapPooling, detector_features
from canvas_fm.inference.detect.typical_amplitude import (
    TypicalAmplitude,
    check_typical,
    typical_amplitude,
)
from canvas_fm.models.load_model import Detector

Blocks = dict[str, Float32[np.ndarray, "_ _"]]


@dataclass(frozen=True)
class DetectorColumns:
    """The blocks `detector` and, with `pooling.heat`, `heat`: the logit of the detector's score.

    That score is the heat alone, or with `pooling.amplitude` the one that a detection there would have: with
    the spot's brightness compared with that of a typical detection around, whoever found the candidate.
    `running` are device, precision, and how voxel sizes are treated.
    """

    detector: Detector
    pooling: MapPooling
    running: dict[str, Any]

    def __post_init__(self) -> None:
        if self.pooling.amplitude:
            if not self.pooling.heat:
                raise BadInput("brightness is part of the detector score: give detector_score too")
            check_typical(self.detector)

    @property
    def provenance(self) -> dict[str, Provenance]:
        """Model and settings of each block."""
        name, sha256 = self.detector.name, self.detector.sha256
        pooled: dict[str, Any] = {"crop_zyx": list(self.pooling.crop_zyx), "bins": self.pooling.bins}
        blocks = {DETECTOR: Provenance(name, sha256, pooled)}
        if self.pooling.heat:
            settings = {"brightness": True} if self.pooling.amplitude else {}
            blocks[DETECTOR_LOGIT] = Provenance(name, sha256, settings)
        return blocks

    @property
    def sizes(self) -> dict[str, int]:
        """Number of columns of each block."""
        pooled = self.detector.config.architecture.dim * self.pooling.bins**3
        return {DETECTOR: pooled, **({DETECTOR_LOGIT: 1} if self.pooling.heat else {})}

    def at(
        self,
        volume: Volume,
        points_zyx: Float64[np.ndarray, "n 3"],
        *,
        background: Volume | None = None,
        typical: TypicalAmplitude | None = None,
        show: bool | None = None,
    ) -> Blocks:
        """The blocks of points of a volume."""
        maps = detector_features(
            self.detector, volume, points_zyx, crop_zyx=self.pooling.crop_zyx, bins=self.pooling.bins,
            heat=self.pooling.heat, amplitude=self.pooling.amplitude, background=self._seen(background),
            show=show, **self.running,
        )  # fmt: skip
        typical = typical or self.typical(volume, points_zyx, background=background, show=show)
        return self.blocks(maps, points_zyx, typical)

    def typical(
        self,
        volume: Volume,
        points_zyx: Float64[np.ndarray, "n 3"],
        *,
        background: Volume | None = None,
        **how: Any,
    ) -> TypicalAmplitude | None:
        """What brightness at these points is compared with; None where it is not, or there are no points."""
        if not self.pooling.amplitude or not len(points_zyx):
            return None
        background = self._seen(background)
        return typical_amplitude(
            self.detector, volume, points_zyx, background=background, **how, **self.running
        )

    def _seen(self, background: Volume | None) -> Volume | None:
        return background if self.detector.config.architecture.channels == 2 else None

    def blocks(
        self,
        maps: Float32[np.ndarray, "n d"],
        points_zyx: Float64[np.ndarray, "n 3"],
        typical: TypicalAmplitude | None,
    ) -> Blocks:
        """The blocks of points where `detector_features` gave `maps`."""
        pooled = self.sizes[DETECTOR]
        blocks = {DETECTOR: maps[:, :pooled]}
        if self.pooling.heat:
            blocks[DETECTOR_LOGIT] = maps[:, pooled : pooled + 1]
        if typical is not None:
            assert self.detector.config.amplitude is not None
            # Where nothing is detected around, brightness says nothing.
            above = np.nan_to_num(maps[:, -1:] - typical.at(points_zyx)[:, None])
            score = blocks[DETECTOR_LOGIT] + self.detector.config.amplitude.weight * above
            blocks[DETECTOR_LOGIT] = score.astype(np.float32)
        return blocks
