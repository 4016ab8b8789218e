"""Scores that take in a blob's brightness: the same by tiles, higher where it is brighter, read back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, maximum_filter

from canvas_fm.data.volume.volume import Volume, WindowRule
from canvas_fm.inference.detect.detect import detect
from canvas_fm.inference.detect.maxima.blob_amplitude import Amplitude
from canvas_fm.inference.detect.maxima.laplacian import log_response
from canvas_fm.models.detector.convmixer import ConvMixerConfig, HeatMapNet
from canvas_fm.models.load_model import AmplitudeConfig, load, save_detector

VOXEL_UM = (4.0, 2.0, 2.0)
CONFIG = AmplitudeConfig(sigma_um=4.0, weight=0.5, unit=64.0)


def blobs(seed: int = 0) -> Volume:
    random = np.random.default_rng(seed)
    field = np.zeros((24, 72, 72), np.float32)
    field[tuple(random.integers(3, n - 3, 40) for n in field.shape)] = random.uniform(1, 6, 40)
    voxels = 100 * (1 + 60 * gaussian_filter(field, (1, 2, 2))) + random.normal(0, 3, field.shape)
    return Volume.from_array(np.rint(voxels).astype(np.uint16), voxel_um=VOXEL_UM)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    torch.manual_seed(0)
    net = HeatMapNet(ConvMixerConfig(dim=8, depth=1, kernel_zyx=(3, 3, 3)), prior=0.3)
    torch.nn.init.normal_(net.head.weight, std=0.5)
    folder = tmp_path_factory.mktemp("d") / "detector"
    rule = WindowRule("median", 0.0, 64.0)
    save_detector(
        folder, net, voxel_um=VOXEL_UM, threshold=0.1, min_distance_um=8.0, smooth_um=3.0, window_rule=rule,
        amplitude=CONFIG,
    )  # fmt: skip
    return load(folder, kind="detector")


def test_the_config_is_read_back(detector):
    assert detector.config.amplitude == CONFIG


def test_tiles_give_what_the_whole_gives(detector):
    volume = blobs()
    whole = detect(detector, volume, show=False)
    tiled = detect(detector, volume, tile_zyx=(8, 24, 24), show=False)
    assert len(whole) > 5
    np.testing.assert_array_equal(tiled.zyx, whole.zyx)
    np.testing.assert_allclose(tiled.columns["score"], whole.columns["score"], rtol=1e-4)


def test_a_higher_threshold_only_leaves_rows_out(detector):
    volume = blobs()
    low = detect(detector, volume, threshold=0.06, show=False)
    middle = float(np.median(low.columns["score"]))
    high = detect(detector, volume, threshold=middle, show=False)
    keep = low.columns["score"] >= np.float32(middle)
    assert 0 < keep.sum() < len(low)
    np.testing.assert_array_equal(high.zyx, low.zyx[keep])


def test_the_score_rises_with_the_blob_and_stands_still_at_amplitude_one():
    amplitude = Amplitude(CONFIG, VOXEL_UM)
    heat = np.full(3, 0.3, np.float32)
    joined = amplitude.join(heat, np.array([0.25, 1.0, 4.0], np.float32))
    np.testing.assert_allclose(joined[1], 0.3, rtol=1e-5)
    odds = joined / (1 - joined)
    np.testing.assert_allclose(odds / odds[1], [0.5, 1.0, 2.0], rtol=1e-4)


def test_amplitude_is_in_medians_and_looks_no_farther_than_it_says():
    amplitude = Amplitude(CONFIG, VOXEL_UM)
    voxels = np.zeros((40, 60, 60), np.float32)
    voxels[20, 30, 30] = 1.0
    everywhere = np.argwhere(np.ones_like(voxels))

    def near(field: np.ndarray) -> np.ndarray:
        return amplitude.near(field, everywhere).reshape(field.shape)

    single = near(gaussian_filter(voxels, (1, 2, 2)) / 64)
    double = near(gaussian_filter(2 * voxels, (1, 2, 2)) / 64)
    np.testing.assert_allclose(double.max(), 2 * single.max(), rtol=1e-5)
    assert np.unravel_index(single.argmax(), single.shape)[0] in (19, 20, 21)
    z, y, x = amplitude.reach_zyx
    far = near(voxels)
    far[20 - z : 21 + z, 30 - y : 31 + y, 30 - x : 31 + x] = 0
    assert not far.any()


def test_amplitude_at_places_is_that_of_the_whole_response():
    amplitude, random = Amplitude(CONFIG, VOXEL_UM), np.random.default_rng(0)
    voxels = random.random((70, 40, 44), np.float32)
    whole = maximum_filter(64 * log_response(voxels, 4.0, VOXEL_UM), (3, 5, 5), mode="nearest")
    corners = np.argwhere(np.ones((2, 2, 2))) * (np.array(voxels.shape) - 1)
    places = np.concatenate([corners, random.integers(0, voxels.shape, (50, 3))])
    np.testing.assert_allclose(amplitude.near(voxels, places), whole[tuple(places.T)], atol=1e-4)
