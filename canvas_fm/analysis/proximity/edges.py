"""Edge correction in a box or any mask: overlap with the shifted domain, distance to its border."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float64
from scipy.fft import irfftn, next_fast_len, rfftn
from scipy.ndimage import distance_transform_edt, map_coordinates

from canvas_fm.analysis.null_models import Box, Mask

_COARSE = 2_000_000  # voxels of the mask from which its overlap with itself is computed


@dataclass(frozen=True)
class BoxEdges:
    box: Box

    def overlap_um3(self, apart_um: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, " n"]:
        """Volume that the box shares with itself moved by each vector."""
        return np.prod(np.maximum(self.box.size_um - np.abs(apart_um), 0), axis=1)

    def to_border_um(self, um: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, " n"]:
        return np.minimum(um - self.box.low_um, self.box.high_um - um).min(1)


@dataclass(frozen=True)
class MaskEdges:
    mask: Mask

    @cached_property
    def _coarse(self) -> tuple[np.ndarray, np.ndarray]:
        """The mask by blocks (the share of each that is inside), and the size of a block in µm."""
        inside = self.mask.region >= 0
        factor = max(1, int(np.ceil((inside.size / _COARSE) ** (1 / 3))))
        if factor == 1:
            return inside.astype(np.float32), np.asarray(self.mask.voxel_um)
        padded = np.pad(inside, [(0, -size % factor) for size in inside.shape])
        z, y, x = (size // factor for size in padded.shape)
        blocks = padded.reshape(z, factor, y, factor, x, factor).mean((1, 3, 5), dtype=np.float32)
        return blocks, np.asarray(self.mask.voxel_um) * factor

    @cached_property
    def _covariance(self) -> np.ndarray:
        """The set covariance of the mask in voxels, lag 0 first (negative lags at the end)."""
        share, _ = self._coarse
        shape = [next_fast_len(2 * size, real=True) for size in share.shape]
        spectrum = rfftn(share, shape)
        return irfftn(np.abs(spectrum) ** 2, shape)

    def overlap_um3(self, apart_um: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, " n"]:
        """Volume that the mask shares with itself moved by each vector."""
        _, size = self._coarse
        lag = (apart_um / size).T
        covariance = map_coordinates(self._covariance, lag, order=1, mode="grid-wrap", output=np.float64)
        return np.maximum(covariance, 0) * float(np.prod(size))

    @cached_property
    def _depth(self) -> np.ndarray:
        inside = np.pad(self.mask.region >= 0, 1)
        return distance_transform_edt(inside, sampling=self.mask.voxel_um).astype(np.float32)

    def to_border_um(self, um: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, " n"]:
        at = (um / np.asarray(self.mask.voxel_um) + 0.5).T  # the padding is one voxel
        depth = map_coordinates(self._depth, at, order=1, output=np.float64)
        return np.maximum(depth - min(self.mask.voxel_um) / 2, 0)


Edges = BoxEdges | MaskEdges


def edges_of(domain: Box | Mask) -> Edges:
    """The edge correction of a domain."""
    return BoxEdges(domain) if isinstance(domain, Box) else MaskEdges(domain)
