"""Blob amplitude relative to its brain, which a net of local contrast cannot see.

A Laplacian of a Gaussian over the volume's median ranks cells by their absolute brightness, a net by their
look. Annotators follow both, so a score may join them: its logit is the net's plus a weight times the
logarithm of the blob's amplitude: over the volume's median, or over the largest or the typical amplitude
around, which `canvas_fm.inference.detect.maxima.relative_score` adds once all tiles are there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int

from canvas_fm.data.volume.volume import Zyx, ZyxUm
from canvas_fm.inference.detect.maxima.laplacian import log_peaks, log_reach
from canvas_fm.inference.detect.maxima.relative_score import LEAST_AMPLITUDE
from canvas_fm.models.folder.network_config import AmplitudeConfig

FLOOR = 0.05  # maxima of the smoothed heat below are no candidates, however bright
_NEAR_ZYX: Zyx = (1, 2, 2)  # the blob's middle lies within so many voxels of the heat's


@dataclass(frozen=True)
class Amplitude:
    """Amplitude of blobs in windowed voxels, and how it enters the scores."""

    config: AmplitudeConfig
    voxel_um: ZyxUm

    @property
    def reach_zyx(self) -> Zyx:
        """Receptive field: voxels farther away do not count."""
        z, y, x = (
            a + b for a, b in zip(log_reach(self.config.sigma_um, self.voxel_um), _NEAR_ZYX, strict=True)
        )
        return z, y, x

    def near(
        self, voxels: Float32[np.ndarray, "z y x"], places_zyx: Int[np.ndarray, "n 3"]
    ) -> Float32[np.ndarray, " n"]:
        """Maximum amplitude near each place, in the config's unit."""
        peaks = log_peaks(voxels, places_zyx, _NEAR_ZYX, self.config.sigma_um, self.voxel_um)
        return peaks * np.float32(self.config.unit)

    def join(
        self, heat: Float32[np.ndarray, " n"], amplitude: Float32[np.ndarray, " n"]
    ) -> Float32[np.ndarray, " n"]:
        """Scores in (0, 1) of maxima with this heat-map value and amplitude."""
        heat = np.clip(heat, 1e-6, 1 - 1e-6)
        logit = np.log(heat / (1 - heat)) + self.config.weight * np.log(
            np.maximum(amplitude, LEAST_AMPLITUDE)
        )
        return (1 / (1 + np.exp(-logit))).astype(np.float32)
