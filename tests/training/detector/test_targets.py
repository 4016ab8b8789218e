"""Labels of a detector's training: painted voxels, crops by share of cells and hard spots."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from canvas_fm.data.volume.window import WindowRule
from canvas_fm.errors import CanvasError
from canvas_fm.training.detector import targets
from canvas_fm.training.detector.targets import (
    BACKGROUND,
    CELL,
    UNLABELLED,
    TargetPainter,
    draw_labelled,
    hard_places,
    shares,
)
from tests.training.detector.cubes import SHAPE, VOXEL_UM, labels_of, write_cube


def test_labels_are_the_ellipsoids_of_a_loop_over_voxels(labelled_cubes):
    boxes = [[0, 0, 0, 20, 48, 40], [20, 10, 0, 24, 48, 48]]
    labelled = labels_of(labelled_cubes[0], boxes)
    painter = TargetPainter(labelled, SHAPE, 5.0)
    painted = painter.paint(np.zeros(3, np.int64))
    places = np.stack(np.indices(SHAPE).reshape(3, -1), axis=1)
    away = np.linalg.norm((places[:, None] - labelled.points_zyx[None]) * VOXEL_UM, axis=2).min(axis=1)
    inside = np.zeros(SHAPE, bool)
    for z0, y0, x0, z1, y1, x1 in boxes:
        inside[z0:z1, y0:y1, x0:x1] = True
    expected = np.where(inside, np.where(away.reshape(SHAPE) <= 5.0, CELL, BACKGROUND), UNLABELLED)
    assert np.array_equal(painted, expected)
    assert set(np.unique(painted)) == {UNLABELLED, BACKGROUND, CELL}


def test_around_what_may_be_a_cell_or_not_nothing_is_labelled_but_the_cells_themselves(labelled_cubes):
    labelled = labels_of(labelled_cubes[0])
    known, doubtful = labelled.points_zyx[1:], labelled.points_zyx[:1]
    start = np.zeros(3, np.int64)
    painted = TargetPainter(replace(labelled, points_zyx=known, ignored_zyx=doubtful), SHAPE, 5.0).paint(
        start
    )
    without = TargetPainter(replace(labelled, points_zyx=known), SHAPE, 5.0).paint(start)
    places = np.stack(np.indices(SHAPE).reshape(3, -1), axis=1)
    near = np.linalg.norm((places - doubtful[0]) * VOXEL_UM, axis=1).reshape(SHAPE) <= 7.5
    expected = np.where(near & (without == BACKGROUND), UNLABELLED, without)
    assert (expected == UNLABELLED).sum() > 10
    assert np.array_equal(painted, expected)


def test_a_crops_labels_are_its_part_of_the_whole(labelled_cubes):
    labelled = labels_of(labelled_cubes[0], [[2, 3, 5, 20, 40, 44]])
    whole = TargetPainter(labelled, SHAPE, 5.0).paint(np.zeros(3, np.int64))
    painter = TargetPainter(labelled, (8, 16, 16), 5.0)
    for start in ([0, 0, 0], [16, 32, 32], [7, 11, 30]):
        z, y, x = start
        assert np.array_equal(painter.paint(np.array(start)), whole[z : z + 8, y : y + 16, x : x + 16])


def test_labels_of_resampled_crops_lie_on_the_cells_of_the_image(labelled_cubes):
    """At twice the voxel size every cell's centre is still labelled, and bright."""
    coarse = (8.0, 4.0, 4.0)
    labelled = labels_of(labelled_cubes[0], resample_to=coarse)
    crop = (8, 16, 16)
    reader = labelled.source.reader(crop, 2**20)
    start = np.array([[2, 6, 6]])
    image = reader.read(start)[0]
    painted = TargetPainter(labelled, crop, 7.0).paint(start[0])
    assert (painted == CELL).sum() > 20
    assert image[painted == CELL].mean() > 3 * image[painted == BACKGROUND].mean()


def test_a_cell_smaller_than_a_voxel_keeps_its_own_voxel(labelled_cubes):
    labelled = labels_of(labelled_cubes[0])
    painted = TargetPainter(labelled, SHAPE, 0.1).paint(np.zeros(3, np.int64))
    assert np.array_equal(
        np.argwhere(painted == CELL), labelled.points_zyx[np.lexsort(labelled.points_zyx.T[::-1])]
    )


def test_a_small_cell_between_voxels_keeps_the_nearest_one(labelled_cubes):
    labelled = replace(labels_of(labelled_cubes[0]), points_zyx=np.array([[10.4, 20.4, 19.6]]))
    painted = TargetPainter(labelled, SHAPE, 0.1).paint(np.zeros(3, np.int64))
    assert np.argwhere(painted == CELL).tolist() == [[10, 20, 20]]


def test_hard_places_are_bright_and_no_cells(labelled_cubes):
    labelled = labels_of(labelled_cubes[0])
    spots = hard_places(labelled, tolerance_um=6.0, rule=WindowRule(), random=np.random.default_rng(0))
    away = np.linalg.norm((spots[:, None] - labelled.points_zyx[None]) * VOXEL_UM, axis=2).min(axis=1)
    assert len(spots) > 3
    assert away.min() > 6.0


def test_crops_lie_where_the_recipe_says(labelled_cubes):
    boxes = [[0, 0, 0, 24, 48, 30]]
    labelled = labels_of(labelled_cubes[0], boxes)
    options = {"tolerance_um": 6.0, "rule": WindowRule(), "seed": 3}
    starts = draw_labelled(labelled, (8, 16, 16), 200, cells=0.5, hard=0.2, **options)
    again = draw_labelled(labelled, (8, 16, 16), 200, cells=0.5, hard=0.2, **options)
    assert np.array_equal(starts, again)
    assert (starts >= 0).all()
    assert (starts + np.array([8, 16, 16]) <= SHAPE).all()
    inner = labelled.inner_zyx
    holds = np.all((inner >= starts[:, None]) & (inner < starts[:, None] + [8, 16, 16]), axis=2).any(axis=1)
    assert holds.mean() > 0.5
    nothing = draw_labelled(labelled, (8, 16, 16), 200, cells=0.0, hard=0.0, **options)
    assert starts[:, 2].mean() < 24
    assert not np.array_equal(nothing, starts)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_shorter_than_a_crop_along_one_axis_is_refused(labelled_cubes, axis):
    crop = [8, 16, 12]
    crop[axis] = SHAPE[axis] + 2
    options = {"cells": 0.0, "hard": 0.0, "tolerance_um": 6.0, "rule": WindowRule(), "seed": 0}
    with pytest.raises(CanvasError, match="crop"):
        draw_labelled(labels_of(labelled_cubes[0]), tuple(crop), 4, **options)


def test_boxes_without_cells_give_crops_unless_a_share_asks_for_cells(labelled_cubes):
    options = {"hard": 0.0, "tolerance_um": 6.0, "rule": WindowRule(), "seed": 0}
    labelled = replace(labels_of(labelled_cubes[0]), points_zyx=np.empty((0, 3)))
    assert draw_labelled(labelled, (8, 16, 16), 5, cells=0.0, **options).shape == (5, 3)
    with pytest.raises(CanvasError, match="no cells inside its labelled boxes"):
        draw_labelled(labelled, (8, 16, 16), 5, cells=0.2, **options)


def test_shares_of_the_crops_hold_cells_and_hard_spots_in_their_middle_four_fifths(
    labelled_cubes, monkeypatch
):
    """One cell, and one spot outside the labelled box, so that only its own share can hold it."""
    cell, spot, crop = np.array([[10.0, 14.0, 14.0]]), np.array([[14.0, 34.0, 34.0]]), (10, 10, 10)
    labelled = replace(labels_of(labelled_cubes[0], [[0, 0, 0, 24, 20, 20]]), points_zyx=cell)
    monkeypatch.setattr(targets, "hard_places", lambda *_, **__: spot)
    starts = draw_labelled(
        labelled, crop, 400, cells=0.5, hard=0.25, tolerance_um=6.0, rule=WindowRule(), seed=0
    )
    inside = [((place - starts >= 0) & (place - starts < crop)).all(axis=1) for place in (cell, spot)]
    assert inside[1].sum() == 100
    assert inside[0].sum() >= 200
    within = spot - starts[inside[1]]
    assert (within.min(), within.max()) == (1, 9)
    assert not np.array_equal(np.sort(inside[1]), inside[1])  # in random order


def test_every_marker_gives_as_many_crops(tmp_path):
    cubes = {marker: write_cube(tmp_path, marker, seed=0, marker=marker) for marker in ("IBA1", "cFos")}
    iba1, cfos = labels_of(cubes["IBA1"]), labels_of(cubes["cFos"])
    assert shares([iba1, cfos, iba1, iba1], 20) == [4, 10, 3, 3]
    assert shares([iba1, iba1, iba1], 20) == [7, 7, 6]
