"""Coarser levels of a pyramid: the mean of blocks of voxels, or for labels their mode."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Num, Shaped

from canvas_fm.data.zyx import Zyx


def mean_down(voxels: Num[np.ndarray, "z y x"], factor: Zyx) -> Num[np.ndarray, "z2 y2 x2"]:
    """The mean over blocks of 1 or 2 voxels an axis, at an odd border over what there is.

    Integers are rounded to the nearest, halves to the even one.
    """
    parts = _corners(voxels, factor)
    if len(parts) == 1:
        return parts[0].copy()
    if voxels.dtype.kind == "f":
        total = parts[0].astype(np.float64)
        for part in parts[1:]:
            total += part
        return (total / len(parts)).astype(voxels.dtype)
    if voxels.dtype.itemsize == 8:
        return np.rint(sum(part.astype(np.float64) for part in parts) / len(parts)).astype(voxels.dtype)
    wide: Any = np.int32 if voxels.dtype.itemsize <= 2 else np.int64
    whole = parts[0].astype(wide)
    for part in parts[1:]:
        whole += part
    shift = len(parts).bit_length() - 1
    # Half of the count, less one where what is above the point is even.
    whole += ((whole >> shift) & 1) + ((1 << (shift - 1)) - 1)
    whole >>= shift
    return whole.astype(voxels.dtype)


def mode_down(labels: Num[np.ndarray, "z y x"], factor: Zyx) -> Num[np.ndarray, "z2 y2 x2"]:
    """The label that a block of 1 or 2 voxels an axis holds most often; the greater of equally frequent ones.

    So a thin object wins over background, which is 0.
    """
    parts = _corners(labels, factor)
    best, votes = parts[0].copy(), np.zeros(parts[0].shape, np.uint8)
    for part in parts:
        count = np.zeros(part.shape, np.uint8)
        for other in parts:
            count += part == other
        wins = (count > votes) | ((count == votes) & (part > best))
        best[wins], votes[wins] = part[wins], count[wins]
    return best


def _corners(voxels: Shaped[np.ndarray, "z y x"], factor: Sequence[int]) -> list[np.ndarray]:
    """The first, second … voxel of every block; an odd border is repeated, which changes no mean or mode."""
    assert set(factor) <= {1, 2}
    odd = [n % f for n, f in zip(voxels.shape, factor, strict=True)]
    if any(odd):
        voxels = np.pad(voxels, [(0, pad) for pad in odd], mode="edge")
    steps = itertools.product(*(range(f) for f in factor))
    return [
        voxels[tuple(slice(at, None, f) for at, f in zip(corner, factor, strict=True))] for corner in steps
    ]
