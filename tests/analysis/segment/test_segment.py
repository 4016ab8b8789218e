"""Balls of known size are segmented, across tiles too, and measured."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import ndimage

from canvas_fm.analysis.segment.morphology import measure_cells
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.metrics.segmentation import panoptic_quality

pytest.importorskip("skimage")
VOXEL_UM = (2.0, 1.0, 1.0)
SHAPE = (30, 60, 150)
# z, y, x in voxels, radius in µm, brightness; the last two touch, one pair lies across the border of a tile
BALLS = [
    (8, 15, 20, 6, 9000), (20, 40, 30, 8, 900), (15, 30, 127, 7, 3000), (8, 15, 60, 5, 500),
    (15, 20, 90, 6, 4000), (15, 31, 90, 6, 4000),
]  # fmt: skip


@pytest.fixture(scope="module")
def phantom():
    """An image of balls on a background of 100, and the labels that are true."""
    grid = np.stack(np.indices(SHAPE), -1) * VOXEL_UM
    image, truth = np.full(SHAPE, 100.0), np.zeros(SHAPE, np.int64)
    for label, (z, y, x, radius, bright) in enumerate(BALLS, 1):
        inside = np.linalg.norm(grid - np.array([z, y, x]) * VOXEL_UM, axis=-1) <= radius
        image[inside], truth[inside] = bright, label
    image += np.random.default_rng(0).normal(0, 3, SHAPE)
    return image.astype(np.uint16), truth


def test_balls_come_out_across_tiles(phantom, tmp_path):
    from canvas_fm.analysis.segment.watershed import segment

    image, truth = phantom
    volume = Volume.from_array(image, voxel_um=VOXEL_UM)
    cells = segment(
        volume, Points(np.array([ball[:3] for ball in BALLS], float)), tmp_path / "l.zarr", max_radius_um=10
    )
    labels = Volume.open(tmp_path / "l.zarr").read((0, 0, 0), SHAPE)
    quality = panoptic_quality(labels, truth)
    assert (quality.tp, quality.fp, quality.fn) == (6, 0, 0)
    assert quality.pq > 0.85
    assert np.array_equal(cells.columns["label"], np.arange(1, 7))
    assert cells.columns["volume_um3"] == pytest.approx(np.bincount(labels.ravel())[1:] * 2.0)
    with pytest.raises(CanvasError, match="have a column 'label' already"):
        segment(volume, cells, tmp_path / "m.zarr")


def test_a_seed_darker_than_the_background_stays_one_voxel(phantom, tmp_path):
    """A false detection in a dark place was a ball of the largest radius."""
    from canvas_fm.analysis.segment.watershed import segment

    image = phantom[0].copy()
    image[25, 9, 131] = 20
    volume = Volume.from_array(image, voxel_um=VOXEL_UM)
    seeds = Points(np.array([[25.0, 9, 131], [20, 40, 30]]))
    cells = segment(volume, seeds, tmp_path / "l.zarr", max_radius_um=10)
    assert cells.columns["volume_um3"][0] == np.prod(VOXEL_UM)
    assert cells.columns["volume_um3"][1] > 1000


def test_morphology_of_known_shapes():
    labels = np.zeros((40, 60, 60), np.int64)
    index = np.indices(labels.shape)
    ball = sum((axis - 15) ** 2 for axis in index) <= 100
    labels[ball] = 1
    labels[30:33, 5:45, 30:33] = 2  # a rod
    labels[35, 30:50, 10] = labels[35, 40, 2:20] = 3  # a cross of lines
    image = np.where(labels == 2, 7, 5)
    found = measure_cells(labels, image, np.array([1, 2, 3, 9]), (1.0, 1.0, 1.0), branches=True)
    assert found["volume_um3"].tolist() == [ball.sum(), 360, 37, 0]
    assert found["sphericity"][0] > 0.9
    assert found["sphericity"][1] < 0.7
    assert found["extent_y_um"][:2].tolist() == [21, 40]
    assert found["elongation"][0] == pytest.approx(1, abs=0.05)
    assert found["elongation"][1] == pytest.approx(40 / 3, rel=0.05)
    assert found["mean_intensity"][:2].tolist() == [5, 7]
    assert found["skeleton_ends"][2] == 4
    assert found["skeleton_branchings"][2] >= 1
    assert found["skeleton_ends"][1] == 2
    assert np.isnan(found["sphericity"][3])


def test_on_the_command_line(phantom, tmp_path, capsys, caplog):
    from canvas_fm.cli import main

    image, truth = phantom
    for name, voxels in (("image", image), ("truth", truth.astype(np.uint16))):
        with Volume.create(tmp_path / f"{name}.zarr", SHAPE, voxel_um=VOXEL_UM) as writer:
            writer.write((0, 0, 0), voxels)
    Points(np.array([ball[:3] for ball in BALLS], float)).write(tmp_path / "cells.csv")
    paths = {
        name: str(tmp_path / name) for name in ("image.zarr", "cells.csv", "l.zarr", "m.csv", "truth.zarr")
    }
    words = [
        "segment",
        paths["image.zarr"],
        paths["cells.csv"],
        "--out",
        paths["l.zarr"],
        "--table",
        paths["m.csv"],
    ]
    assert main([*words, "--max-radius-um", "10", "--branches", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cells"] == 6
    assert "skeleton_ends" in Points.read(paths["m.csv"]).columns
    assert main(["evaluate-segmentation", paths["l.zarr"], paths["truth.zarr"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pq"] > 0.85
    with Volume.create(tmp_path / "mask.zarr", SHAPE, voxel_um=VOXEL_UM) as writer:
        writer.write((0, 0, 0), (truth > 0).astype(np.uint16))
    mask = ["evaluate-segmentation", paths["l.zarr"], str(tmp_path / "mask.zarr"), "--json"]
    assert main(mask) == 0
    assert json.loads(capsys.readouterr().out)["tp"] == 0
    assert "the true labels are one object where the predicted ones are 6" in caplog.text
    caplog.clear()
    assert main([*mask, "--components", "truth"]) == 0
    counts = json.loads(capsys.readouterr().out)
    pieces = ndimage.label(truth > 0, np.ones((3, 3, 3)))[1]
    assert counts["tp"] + counts["fn"] == pieces > 1
    assert not caplog.text
