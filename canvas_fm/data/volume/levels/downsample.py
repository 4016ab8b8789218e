"""Coarser levels of a pyramid: the mean of blocks of voxels, or for labels their mode."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Num, Shaped

from canvas_fm.data.zyx import Zyx

_CACHED = 512 * 1024  # bytes of sums that are worked on at once


def mean_down(
    voxels: Num[np.ndarray, "z y x"], factor: Zyx, *, out: Num[np.ndarray, "z2 y2 x2"] | None = None
) -> Num[np.ndarray, "z2 y2 x2"]:
    """The mean over blocks of 1 or 2 voxels an axis, at an odd border over what there is.

    Integers are rounded to the nearest, halves to the even one. `out` is an array to fill and return.
    """
    coarse = _out(voxels, factor, out)
    if voxels.dtype.kind == "u" and voxels.dtype.itemsize <= 4 and voxels.dtype.isnative:
        _mean_down_unsigned(_even(voxels, factor), factor, coarse)
        return coarse
    parts = _corners(voxels, factor)
    if voxels.dtype.kind == "f" or voxels.dtype.itemsize == 8:
        total = parts[0].astype(np.float64)
        for part in parts[1:]:
            total += part
        total /= len(parts)
        coarse[:] = (total if voxels.dtype.kind == "f" else np.rint(total)) if len(parts) > 1 else parts[0]
        return coarse
    wide: Any = np.int32 if voxels.dtype.itemsize <= 2 else np.int64
    whole = parts[0].astype(wide)
    for part in parts[1:]:
        whole += part
    _divide(whole, len(parts))
    coarse[:] = whole
    return coarse


def _out(voxels: np.ndarray, factor: Zyx, out: np.ndarray | None) -> np.ndarray:
    shape = tuple(math.ceil(n / f) for n, f in zip(voxels.shape, factor, strict=True))
    coarse = np.empty(shape, voxels.dtype) if out is None else out
    assert (coarse.shape, coarse.dtype) == (shape, voxels.dtype)
    return coarse


def _mean_down_unsigned(
    voxels: Shaped[np.ndarray, "z y x"], factor: Zyx, coarse: Shaped[np.ndarray, "z2 y2 x2"]
) -> None:
    """The same means, some rows at a time: several times as fast, as the sums stay in the cache."""
    few, bits = factor[0] * factor[1], 8 * voxels.dtype.itemsize
    height, width = coarse.shape[1:]
    rows = min(max(1, _CACHED // (width * 2 * voxels.dtype.itemsize)), height)
    wide = np.empty((2, rows, width), f"u{2 * voxels.dtype.itemsize}")
    narrow = np.empty((3, rows * factor[1], voxels.shape[2]), voxels.dtype)
    for z, y in itertools.product(range(coarse.shape[0]), range(0, height, rows)):
        out = coarse[z, y : y + rows]
        block = voxels[z * factor[0] : (z + 1) * factor[0], y * factor[1] : (y + len(out)) * factor[1]]
        if (int(block.max()) + 1) * few * factor[2] < 1 << bits:
            _mean_of_narrow(block, factor, out, narrow[:, : block.shape[1]])
        else:
            parts = [block[dz, dy :: factor[1]] for dz in range(factor[0]) for dy in range(factor[1])]
            _mean_of_wide(parts, factor[2], out, wide)


def _mean_of_narrow(block: np.ndarray, factor: Zyx, out: np.ndarray, room: np.ndarray) -> None:
    """The mean of rows whose sums fit the voxels' type, of half the bytes."""
    total = block[0]
    if factor[0] == 2:
        total = np.add(block[0], block[1], out=room[0])
    if factor[1] == 2:
        total = np.add(total[::2], total[1::2], out=room[1, : len(out)])
    if factor[2] == 2:
        # Of all neighbours, as adding every second one takes several times as long; then every second sum.
        total = total.reshape(-1)
        sums = room[2].reshape(-1)[: len(total)]
        np.add(total[:-1], total[1:], out=sums[1:] if sys.byteorder == "big" else sums[:-1])
        pairs = sums.view(f"u{2 * out.dtype.itemsize}").reshape(out.shape)
        np.copyto(out, pairs, casting="unsafe")  # the lower half of each
    else:
        out[:] = total
    _divide(out, math.prod(factor), room[0].reshape(-1)[: out.size].reshape(out.shape))


def _mean_of_wide(parts: Sequence[np.ndarray], factor_x: int, out: np.ndarray, wide: np.ndarray) -> None:
    """The mean of rows; two neighbours along x are the halves of one number of twice the bytes."""
    total, other, bits = wide[0, : len(out)], wide[1, : len(out)], 8 * out.dtype.itemsize
    total[:] = 0
    for part in parts:
        if factor_x == 2:
            pairs = part.view(wide.dtype)
            np.right_shift(pairs, bits, out=other)
            total += other
            np.bitwise_and(pairs, (1 << bits) - 1, out=other)
            total += other
        else:
            total += part
    _divide(total, len(parts) * factor_x, other)
    out[:] = total


def _divide(total: np.ndarray, count: int, room: np.ndarray | None = None) -> None:
    """Divide sums by a power of two in place, to the nearest whole number and halves to the even one."""
    if count == 1:
        return
    shift = count.bit_length() - 1
    # Half of the count, less one where what is above the point is even.
    odd = np.right_shift(total, shift, out=room)
    odd &= 1
    total += odd
    total += (1 << (shift - 1)) - 1
    total >>= shift


def mode_down(
    labels: Num[np.ndarray, "z y x"], factor: Zyx, *, out: Num[np.ndarray, "z2 y2 x2"] | None = None
) -> Num[np.ndarray, "z2 y2 x2"]:
    """The label that a block of 1 or 2 voxels an axis holds most often; the greater of equally frequent ones.

    So a thin object wins over background, which is 0. `out` is an array to fill and return.
    """
    parts, best = _corners(labels, factor), _out(labels, factor, out)
    best[:] = parts[0]
    votes = np.zeros(parts[0].shape, np.uint8)
    for part in parts:
        count = np.zeros(part.shape, np.uint8)
        for other in parts:
            count += part == other
        wins = (count > votes) | ((count == votes) & (part > best))
        best[wins], votes[wins] = part[wins], count[wins]
    return best


def _corners(voxels: Shaped[np.ndarray, "z y x"], factor: Sequence[int]) -> list[np.ndarray]:
    """The first, second … voxel of every block; an odd border is repeated, which changes no mean or mode."""
    voxels = _even(voxels, factor)
    steps = itertools.product(*(range(f) for f in factor))
    return [
        voxels[tuple(slice(at, None, f) for at, f in zip(corner, factor, strict=True))] for corner in steps
    ]


def _even(voxels: np.ndarray, factor: Sequence[int]) -> np.ndarray:
    """The voxels with whole blocks, and rows that lie one voxel after another."""
    assert set(factor) <= {1, 2}
    odd = [n % f for n, f in zip(voxels.shape, factor, strict=True)]
    if any(odd):
        return np.pad(voxels, [(0, pad) for pad in odd], mode="edge")
    return voxels if voxels.strides[2] == voxels.dtype.itemsize else np.ascontiguousarray(voxels)
