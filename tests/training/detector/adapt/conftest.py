"""A brain of bright cells and dimmer spots between them, labelled in one half."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from canvas_fm import Volume
from canvas_fm.training.detector.targets import Labelled
from canvas_fm.training.mae.training_crops import VolumeSource

VOXEL_UM = (4.0, 2.0, 2.0)
SHAPE = (24, 64, 64)
ROI = [[0, 0, 0, 24, 64, 40]]


@pytest.fixture(scope="module")
def brain():
    """(volume, cells): bright balls on a grid, and between them dimmer ones that are no cells."""
    random = np.random.default_rng(0)
    grid = np.stack(np.meshgrid([6, 17], range(8, 64, 16), range(8, 64, 16), indexing="ij"), -1).reshape(
        -1, 3
    )
    cells = grid + random.integers(-1, 2, grid.shape)
    image = np.zeros(SHAPE)
    image[tuple(cells.T)] = 1.0
    others = cells + np.array([0, 8, 8])
    image[tuple(others[(others < 58).all(axis=1)].T)] = 0.6
    image = gaussian_filter(image, (0.8, 1.5, 1.5))
    voxels = 100 + 600 * image / image.max() + random.normal(0, 3, SHAPE)
    volume = Volume.from_array(voxels.astype(np.uint16), voxel_um=VOXEL_UM, name="new")
    return volume, cells.astype(float)


def labelled(brain, boxes=ROI) -> Labelled:
    return Labelled(VolumeSource("new", brain[0]), brain[1], np.array(boxes))
