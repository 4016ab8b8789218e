"""Places: bright blobs at the boxes' centres, everything inside the volume."""

from __future__ import annotations

import numpy as np
import pytest

from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.volume.window import WindowRule
from canvas_fm.errors import CanvasError
from canvas_fm.training.joint.blob_positions import draw_positions

RULE = WindowRule()
BOX = (6, 12, 12)
BALLS = np.array([[10, 20, 20], [40, 100, 40], [20, 60, 150]])


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    """Three balls, in blocks of their own, on a noisy ground."""
    shape = (50, 130, 170)
    voxels = np.random.default_rng(0).normal(100, 3, shape)
    grid = np.indices(shape).reshape(3, -1).T * (4.0, 1.8, 1.8)
    for ball in BALLS:
        away = np.linalg.norm(grid - ball * (4.0, 1.8, 1.8), axis=1).reshape(shape)
        voxels += 900 * np.exp(-(away**2) / 60)
    path = tmp_path_factory.mktemp("balls") / "raw.zarr"
    with Volume.create(path, shape, voxel_um=(4.0, 1.8, 1.8), chunk_zyx=(25, 64, 64)) as writer:
        writer.write((0, 0, 0), voxels.clip(0).astype(np.uint16))
    return Volume.open(path)


def draw(volume: Volume, n: int, blobs: float, seed: int = 0) -> np.ndarray:
    return draw_positions(volume, BOX, n, blobs=blobs, blob_um=5.0, rule=RULE, seed=seed)


def test_blobs_lie_at_the_centre_voxel_of_their_boxes(volume: Volume) -> None:
    centres = draw(volume, 60, 1.0) + np.array(BOX) // 2
    nearest = np.abs(centres[:, None] - BALLS).max(axis=2)
    assert (nearest.min(axis=1) <= 1).all()
    assert set(nearest.argmin(axis=1)) == {0, 1, 2}


def test_the_rest_lies_anywhere_inside(volume: Volume) -> None:
    starts = draw(volume, 400, 0.25)
    assert (starts >= 0).all()
    assert (starts + BOX <= volume.shape_zyx).all()
    centres = starts + np.array(BOX) // 2
    on_blob = (np.abs(centres[:, None] - BALLS).max(axis=2) <= 1).any(axis=1)
    assert 0.2 < on_blob.mean() < 0.3


def test_the_same_seed_gives_the_same_places(volume: Volume) -> None:
    np.testing.assert_array_equal(draw(volume, 20, 0.5), draw(volume, 20, 0.5))
    assert (draw(volume, 20, 0.5) != draw(volume, 20, 0.5, seed=1)).any()


def test_a_box_larger_than_the_volume_is_refused(volume: Volume) -> None:
    with pytest.raises(CanvasError, match="larger than"):
        draw_positions(volume, (60, 12, 12), 4, blobs=0.5, blob_um=5.0, rule=RULE, seed=0)
