"""Resampling: constants stay, ramps are exact, and the centre stays in its place."""

from __future__ import annotations

import numpy as np
import pytest

from canvas_fm.data.volume.levels.resample import Resampler, axis_weights

RATIOS = [0.2, 1 / 3, 0.5, 0.9, 4 / 6, 1.62 / 1.8, 1.0, 1.01, 1.11, 1.5, 2.0, 2.7, 3.0, 4.6]


def positions(size: int, ratio: float) -> np.ndarray:
    return (np.arange(size) - size // 2) * ratio


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("size", [1, 7, 16, 32])
def test_constants_stay_and_ramps_are_exact(size: int, ratio: float) -> None:
    offset, matrix = axis_weights(size, ratio)
    voxels = np.arange(matrix.shape[1]) + offset
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(matrix @ voxels, positions(size, ratio), atol=1e-9)
    assert matrix.min() >= 0
    # No voxel is read for nothing.
    assert matrix[:, 0].any()
    assert matrix[:, -1].any()


def test_equal_sizes_are_the_identity() -> None:
    offset, matrix = axis_weights(16, 1.0)
    assert offset == -8
    np.testing.assert_array_equal(matrix, np.eye(16))


def test_coarser_is_the_mean_over_the_samples_extent() -> None:
    # Three voxels a sample, centred on voxel centres: plain means of three.
    offset, matrix = axis_weights(4, 3.0)
    values = np.random.default_rng(0).random(12)
    assert offset == -7
    np.testing.assert_allclose(matrix @ values, values.reshape(4, 3).mean(axis=1))
    # Two voxels a sample, centred on voxel centres: half of each neighbour.
    np.testing.assert_allclose(axis_weights(1, 2.0).matrix, [[0.25, 0.5, 0.25]])


def test_finer_is_linear_interpolation() -> None:
    offset, matrix = axis_weights(5, 0.4)
    values = np.random.default_rng(0).random(matrix.shape[1])
    expected = np.interp(positions(5, 0.4), np.arange(len(values)) + offset, values)
    np.testing.assert_allclose(matrix @ values, expected)


@pytest.mark.parametrize("volume_um", [(4.0, 1.8, 1.8), (6.0, 1.62, 1.62), (2.0, 0.9, 3.1)])
def test_each_axis_has_its_own_ramp(volume_um: tuple[float, float, float]) -> None:
    model_um, crop = (4.0, 1.8, 1.8), (16, 32, 32)
    resampler = Resampler(crop, volume_um, model_um)
    z, y, x = (np.arange(n) + o for n, o in zip(resampler.box_zyx, resampler.offset_zyx, strict=True))
    boxes = (1000 + 9 * z[:, None, None] + 5 * y[:, None] - 2 * x)[None].astype(np.float32)
    z, y, x = (positions(n, m / v) for n, m, v in zip(crop, model_um, volume_um, strict=True))
    expected = 1000 + 9 * z[:, None, None] + 5 * y[:, None] - 2 * x
    got = resampler(boxes)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got[0], expected, rtol=1e-5)
