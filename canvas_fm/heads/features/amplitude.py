"""Amplitude of the spot at a candidate, on the scale of its brain: a feature that needs no model."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from canvas_fm.data.volume.volume import Volume, Zyx
from canvas_fm.data.volume.window import DEFAULT_RULE, WindowRule
from canvas_fm.errors import BadInput
from canvas_fm.inference.detect.maxima.laplacian import log_reach, log_response
from canvas_fm.inference.detect.tiles.tiles import Box, cut, whole

LEAST = 1e-3  # an amplitude below counts as this
NEAR_ZYX: Zyx = (1, 2, 2)  # a candidate may lie so many voxels beside the middle of its spot
TILE_ZYX: Zyx = (48, 128, 128)


@dataclass(frozen=True)
class SpotAmplitude:
    """Laplacian of a Gaussian of `sigma_um`, in units of the window `rule` of the whole volume.

    The unit is the window's width: from a dark to a bright percentile, or one median. Nothing is clipped.
    """

    sigma_um: float
    rule: WindowRule = DEFAULT_RULE

    def __post_init__(self) -> None:
        if not 0 < self.sigma_um < float("inf"):
            raise BadInput(f"the amplitude's sigma is {self.sigma_um} um; give a length above 0")

    @classmethod
    def of(cls, settings: dict[str, Any]) -> SpotAmplitude:
        """From the settings that a refiner recorded."""
        return cls(settings["sigma_um"], WindowRule(**settings["rule"]))

    def at(self, volume: Volume, points_zyx: Float64[np.ndarray, "n 3"]) -> Float32[np.ndarray, "n 1"]:
        """Logarithm of the highest response near each point; rows as given, at the volume's own voxel size.

        Tile by tile, in bounded memory. The volume's borders are reflected.
        """
        window = volume.window_by(self.rule)
        extent = whole(volume.shape_zyx)
        reach = [a + b for a, b in zip(log_reach(self.sigma_um, volume.voxel_um), NEAR_ZYX, strict=True)]
        offsets = np.array(list(product(*(range(-n, n + 1) for n in NEAR_ZYX))))
        place = np.clip(np.floor(points_zyx + 0.5).astype(np.int64), 0, np.asarray(extent.stop) - 1)
        peaks = np.empty((len(place), 1), np.float32)
        for core in cut(extent, TILE_ZYX):
            rows = np.flatnonzero(core.holds(place))
            if not len(rows):
                continue
            low, high = place[rows].min(axis=0).tolist(), (place[rows].max(axis=0) + 1).tolist()
            box = Box((low[0], low[1], low[2]), (high[0], high[1], high[2])).grown(reach, extent)
            voxels = volume.read(box.start, box.size).astype(np.float32)
            response = log_response(voxels, self.sigma_um, volume.voxel_um)
            around = np.clip(place[rows, None] + offsets, 0, np.asarray(extent.stop) - 1) - box.start
            peaks[rows, 0] = response[tuple(np.moveaxis(around, 2, 0))].max(axis=1)
        return np.log(np.maximum(peaks / np.float32(window.high - window.low), LEAST)).astype(np.float32)
