"""Linear resampling of crops to a model's voxel size: the box to read and one matrix an axis."""

from __future__ import annotations

from math import ceil, floor
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Real

from canvas_fm.data.zyx import Zyx, ZyxUm


class Axis(NamedTuple):
    """One axis of a resampled crop: reads `matrix.shape[1]` voxels, starting `offset` from the centre."""

    offset: int
    matrix: Float64[np.ndarray, "target source"]


def axis_weights(size: int, ratio: float) -> Axis:
    """Weights of `size` samples, each `ratio` source voxels wide, around a centre voxel.

    Sample size // 2 sits on the centre voxel, as in a crop that is not resampled. Finer (ratio < 1): linear
    interpolation between voxel centres. Coarser: the share of each voxel in the sample's extent, its first
    moment then moved onto the sample's centre. So constants stay constant, linear ramps stay exact, and
    ratio 1 is the identity.
    """
    centres = (np.arange(size) - size // 2) * ratio
    reach = max(ratio, 1.0) / 2
    first = floor(centres[0] - reach + 0.5 + 1e-9) if ratio >= 1 else floor(centres[0] + 1e-9)
    last = ceil(centres[-1] + reach - 0.5 - 1e-9) if ratio >= 1 else ceil(centres[-1] - 1e-9)
    voxels = np.arange(first, last + 1)
    away = voxels[None, :] - centres[:, None]
    if ratio < 1:
        return Axis(first, np.clip(1 - np.abs(away), 0, None))
    share = np.clip(np.minimum(away + 0.5, reach) - np.maximum(away - 0.5, -reach), 0, None)
    share /= share.sum(axis=1, keepdims=True)
    moment = (share * away).sum(axis=1, keepdims=True)
    spread = (share * away**2).sum(axis=1, keepdims=True) - moment**2
    tilt = np.divide(moment, spread, out=np.zeros_like(moment), where=spread > 1e-12)
    return Axis(first, share * (1 - tilt * (away - moment)))


class Resampler:
    """Resamples boxes of a volume to crops of a model: `box_zyx` voxels in, `crop_zyx` samples out."""

    def __init__(self, crop_zyx: Zyx, volume_um: ZyxUm, model_um: ZyxUm) -> None:
        axes = [axis_weights(s, m / v) for s, m, v in zip(crop_zyx, model_um, volume_um, strict=True)]
        self.offset_zyx: Zyx = (axes[0].offset, axes[1].offset, axes[2].offset)
        self.matrices = tuple(axis.matrix.astype(np.float32) for axis in axes)
        z, y, x = (matrix.shape[1] for matrix in self.matrices)
        self.box_zyx: Zyx = (z, y, x)

    def __call__(self, boxes: Real[np.ndarray, "n bz by bx"]) -> Float32[np.ndarray, "n z y x"]:
        """Resample boxes read at the centre voxel plus `offset_zyx`; float32, original intensities."""
        z, y, x = self.matrices
        planes = np.einsum("nabc,xc->nabx", boxes.astype(np.float32), x, optimize=True)
        rows = np.einsum("nabx,yb->nayx", planes, y, optimize=True)
        return np.ascontiguousarray(np.einsum("nayx,za->nzyx", rows, z, optimize=True), dtype=np.float32)
