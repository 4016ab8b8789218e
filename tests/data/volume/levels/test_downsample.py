"""Coarser levels against means that are taken of each block by itself."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from canvas_fm.data.volume.levels.downsample import mean_down

FACTORS = list(itertools.product((1, 2), repeat=3))


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", ">u2", "i2", "i4", "f4"])
@pytest.mark.parametrize("shape", [(4, 6, 8), (5, 7, 9), (1, 3, 2)])
def test_every_type_factor_and_odd_border(dtype, shape):
    """Rounded to the nearest, halves to the even one; the greatest values do not overflow."""
    random = np.random.default_rng(0)
    top = 1 if dtype == "f4" else np.iinfo(dtype).max
    voxels = (random.random((shape[0], shape[1] + 1, shape[2] + 1)) * top).astype(dtype)
    voxels[0] = top
    voxels = voxels[:, 1:, 1:]  # rows that do not follow one another
    for factor in FACTORS:
        coarse = mean_down(voxels, factor)
        assert coarse.dtype == voxels.dtype
        for place in np.ndindex(coarse.shape):
            block = voxels[tuple(slice(p * f, (p + 1) * f) for p, f in zip(place, factor, strict=True))]
            mean = block.mean(dtype=np.float64)
            assert coarse[place] == (np.rint(mean) if voxels.dtype.kind != "f" else mean.astype("f4")), factor


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
def test_sums_that_just_fit_the_type_and_that_just_do_not(dtype):
    """Small values are added in their own type: up to the greatest for which a block's sum is held by it."""
    for factor in FACTORS:
        fits = (np.iinfo(dtype).max + 1) // int(np.prod(factor)) - 1
        for top in (fits, min(fits + 1, np.iinfo(dtype).max)):
            voxels = np.random.default_rng(0).integers(0, top + 1, (4, 6, 8)).astype(dtype)
            voxels[:2] = top
            blocks = voxels.reshape(
                *(m for n, f in zip(voxels.shape, factor, strict=True) for m in (n // f, f))
            )
            expected = np.rint(blocks.mean(axis=(1, 3, 5), dtype=np.float64))
            np.testing.assert_array_equal(mean_down(voxels, factor), expected, str(factor))


def test_means_fill_an_array_that_is_given():
    voxels = np.arange(4 * 6 * 8, dtype=np.uint16).reshape(4, 6, 8)
    room = np.zeros((2, 3, 4), np.uint16)
    assert mean_down(voxels, (2, 2, 2), out=room) is room
    np.testing.assert_array_equal(room, mean_down(voxels, (2, 2, 2)))
