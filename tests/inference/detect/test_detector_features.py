"""A detector's pooled features at points, by tiles and whole."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import maximum_filter

from canvas_fm.inference.detect.detector_features import detector_features
from canvas_fm.models.load_model import load
from tests.inference.detect.nets import SHAPE, make_detector, whole_heat


def test_features_by_tiles_are_those_of_the_whole(detector, volume):
    rng = np.random.default_rng(0)
    points = rng.uniform(0, np.array(SHAPE) - 1, (60, 3))
    options = {"crop_zyx": (8, 16, 16), "device": "cpu"}
    features = detector_features(detector, volume, points, **options)
    tiled = detector_features(detector, volume, points, tile_zyx=(6, 16, 20), **options)
    assert features.shape == (60, 6 * 8)
    np.testing.assert_allclose(tiled, features, atol=1e-5)
    backwards = detector_features(detector, volume, points[::-1].copy(), **options)
    np.testing.assert_allclose(backwards, features[::-1], atol=1e-6)


@pytest.mark.parametrize("tile", [(5, 8, 12), (64, 64, 64)])
def test_the_heat_near_points_is_that_of_the_whole_volume(volume, tmp_path, tile):
    """Reach and smoothing look farther than the crop does."""
    detector = make_detector(tmp_path / "detector", smooth_um=5.0, min_distance_um=15.0)
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.uniform(0, np.array(SHAPE) - 1, (60, 3)), [[0, 0, 0], np.array(SHAPE) - 1]])
    features = detector_features(
        detector, volume, points, crop_zyx=(1, 4, 4), heat=True, tile_zyx=tile, device="cpu"
    )
    # Half of 15 µm is 2 voxels of 4 µm and 4 of 1.8 µm to either side.
    hottest = maximum_filter(whole_heat(detector, volume), (5, 9, 9), mode="nearest")
    near = hottest[tuple(np.floor(points + 0.5).astype(int).T)]
    np.testing.assert_allclose(features[:, -1], np.log((near + 1e-4) / (1 - near + 1e-4)), atol=1e-4)
    assert np.ptp(features[:, -1]) > 0.1


def test_features_of_a_loaded_detector_are_the_same(detector, volume):
    points = np.array([[10.0, 30.0, 30.0]])
    again = load(detector.path)
    assert np.array_equal(
        detector_features(detector, volume, points), detector_features(again, volume, points)
    )
