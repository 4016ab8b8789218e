"""Blob amplitude relative to its brain, which a net of local contrast cannot see.

A Laplacian of a Gaussian over the volume's median ranks cells by their absolute brightness, a net by their
look. Annotators follow both, so a score may join them: its logit is the net's plus a weight times the
logarithm of the blob's amplitude.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32
from scipy.ndimage import maximum_filter

from canvas_fm.data.volume.volume import Zyx, ZyxUm
from canvas_fm.inference.detect.laplacian import log_reach, log_response
from canvas_fm.models.checkpoint import AmplitudeConfig

FLOOR = 0.05  # maxima of the smoothed heat below are no candidates, however bright
_LEAST = 1e-3  # an amplitude below counts as this
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

    def near(self, voxels: Float32[np.ndarray, "z y x"]) -> Float32[np.ndarray, "z y x"]:
        """Maximum amplitude near each voxel, in the config's unit."""
        response = log_response(voxels, self.config.sigma_um, self.voxel_um)
        response *= np.float32(self.config.unit)
        return maximum_filter(response, [2 * n + 1 for n in _NEAR_ZYX], mode="nearest")

    def join(
        self, heat: Float32[np.ndarray, " n"], amplitude: Float32[np.ndarray, " n"]
    ) -> Float32[np.ndarray, " n"]:
        """Scores in (0, 1) of maxima with this heat-map value and amplitude."""
        heat = np.clip(heat, 1e-6, 1 - 1e-6)
        logit = np.log(heat / (1 - heat)) + self.config.weight * np.log(np.maximum(amplitude, _LEAST))
        return (1 / (1 + np.exp(-logit))).astype(np.float32)
