"""The Laplacian of a Gaussian: its response, its tiles, the blobs that it finds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, gaussian_laplace

from canvas_fm.data.volume.window import WindowRule
from canvas_fm.inference.detect.detect import log_job
from canvas_fm.inference.detect.maxima.laplacian import log_reach, log_response
from canvas_fm.inference.detect.tiles.tiled_detection import run
from tests.inference.detect.nets import VOXEL_UM, blobs, write


def test_the_response_is_scipys_with_lengths_in_micrometres():
    voxels = blobs().astype(np.float32)
    ours = log_response(voxels, 3.6, (1.8, 1.8, 1.8))
    np.testing.assert_allclose(ours, -4 * gaussian_laplace(voxels, 2.0), rtol=1e-3, atol=1)


def test_a_blob_gives_the_same_response_in_finer_planes():
    """A Gaussian of σ 6 µm in planes of 1.5 and of 3 µm."""
    peaks = []
    for um in (1.5, 3.0):
        size = [int(60 / um) | 1, 41, 41]
        axes = [(np.arange(n) - n // 2) * step for n, step in zip(size, (um, 1.8, 1.8), strict=True)]
        squared = sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij"))
        peaks.append(log_response(np.exp(-squared / 72).astype(np.float32), 6.0, (um, 1.8, 1.8)).max())
    assert peaks[0] == pytest.approx(peaks[1], rel=0.02)


def test_the_baseline_by_tiles_is_the_baseline_whole(volume):
    options = {"sigma_um": 4.0, "threshold": 0.05, "min_distance_um": 9.0}
    whole_volume = run(log_job(volume, **options))
    tiled = run(log_job(volume, tile_zyx=(12, 40, 40), **options))
    assert len(whole_volume) > 10
    assert np.array_equal(whole_volume.zyx, tiled.zyx)
    assert np.array_equal(whole_volume.columns["score"], tiled.columns["score"])
    gaps = (whole_volume.zyx[:, None] - whole_volume.zyx[None]) * VOXEL_UM
    assert np.sqrt((gaps**2).sum(-1))[~np.eye(len(gaps), dtype=bool)].min() > 9.0


def test_the_baseline_finds_the_blobs(tmp_path):
    shape, truth = (30, 60, 60), np.array([[8, 15, 15], [8, 40, 44], [20, 20, 40], [22, 45, 12]])
    voxels = np.zeros(shape)
    voxels[tuple(truth.T)] = 1e6
    volume = write(tmp_path / "b.zarr", (gaussian_filter(voxels, (1, 2.5, 2.5)) + 100).astype(np.uint16))
    found = run(log_job(volume, sigma_um=4.0, threshold=0.2, window_rule=WindowRule("percentiles", 0, 100)))
    assert np.array_equal(found.zyx, truth[np.lexsort(truth.T[::-1])])


def test_the_reach_covers_what_the_response_depends_on():
    voxels = np.zeros((41, 41, 41), np.float32)
    voxels[20, 20, 20] = 1
    reached = np.argwhere(log_response(voxels, 4.0, VOXEL_UM))
    assert np.abs(reached - 20).max(axis=0).tolist() == list(log_reach(4.0, VOXEL_UM))
