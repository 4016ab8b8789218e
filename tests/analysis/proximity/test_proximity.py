"""Distances and functions against brute force, and edge correction in a box and in a mask."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile

from canvas_fm.analysis.null_models import Box, Mask
from canvas_fm.analysis.proximity import proximity
from canvas_fm.analysis.proximity.edges import BoxEdges, MaskEdges
from canvas_fm.analysis.proximity.proximity import to_labels, to_points
from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError

BOX = Box((0.0, 0.0, 0.0), (200.0, 300.0, 250.0))


def uniform(n, seed=0):
    return np.random.default_rng(seed).random((n, 3)) * BOX.high_um


def test_distances_are_those_of_brute_force():
    first, second = uniform(80), uniform(90, 1)
    far = np.linalg.norm(first[:, None] - second[None], axis=2)
    found = to_points(first, second, domain=BOX, draws=19)
    assert np.allclose(found.distance_um, far.min(1))
    assert found.as_dict()["mean_um"] == pytest.approx(far.min(1).mean())


def test_k_is_the_formula_pair_by_pair():
    first, second, radii = uniform(60), uniform(70, 1), [20.0, 45.0, 80.0]
    k = to_points(first, second, domain=BOX, radii_um=radii, draws=19).curves["K"]["observed"]
    volume = 200.0 * 300 * 250
    for radius, value in zip(radii, k, strict=True):
        total = 0.0
        for a in first:
            for b in second:
                if np.linalg.norm(a - b) <= radius:
                    total += volume**2 / np.prod(np.array(BOX.high_um) - np.abs(a - b)) / (60 * 70)
        assert value == pytest.approx(total)


def test_g_counts_cells_away_from_the_border():
    first, second, radii = uniform(200), uniform(50, 1), [15.0, 40.0]
    g = to_points(first, second, domain=BOX, radii_um=radii, draws=19).curves["G"]["observed"]
    near = np.linalg.norm(first[:, None] - second[None], axis=2).min(1)
    border = np.minimum(first, np.array(BOX.high_um) - first).min(1)
    for radius, value in zip(radii, g, strict=True):
        inner = border >= radius
        assert value == pytest.approx((near[inner] <= radius).mean())


def test_large_populations_are_compared_by_a_random_part_of_cells_and_pairs(monkeypatch):
    first, second, radii = uniform(900), uniform(800, 1), [30.0, 45.0]
    whole = to_points(first, second, domain=BOX, radii_um=radii, draws=19)
    monkeypatch.setattr(proximity, "NULL_CELLS", 600)
    monkeypatch.setattr(proximity, "PAIRS", 4000)
    part = to_points(first, second, domain=BOX, radii_um=radii, draws=19)
    assert [one.as_dict()["cells_in_the_null_model"] for one in (whole, part)] == [900, 600]
    assert np.array_equal(part.distance_um, whole.distance_um)
    assert part.curves["K"]["observed"] == pytest.approx(whole.curves["K"]["observed"], rel=0.15)
    assert (part.curves["K"]["observed"] != whole.curves["K"]["observed"]).all()


def test_edge_correction_leaves_k_of_independent_cells_unbiased_in_any_mask():
    """A ball: without a correction K at half its radius would be a third too small."""
    index = np.indices((40, 40, 40)) - 19.5
    inside = (index**2).sum(0) < 18**2
    mask = Mask(inside.astype(int) - 1, (5.0, 5.0, 5.0))
    random, ratio = np.random.default_rng(0), []
    for _ in range(6):
        first, second = (um[mask.holds(um)] for um in random.random((2, 2500, 3)) * 200)
        k = to_points(first, second, domain=mask, radii_um=[20, 45], draws=19).curves["K"]["observed"]
        ratio.append(k / (4 / 3 * np.pi * np.array([20, 45]) ** 3))
    assert np.mean(ratio, axis=0) == pytest.approx([1, 1], abs=0.04)


def test_the_mask_of_a_box_corrects_as_the_box():
    mask, apart = Mask(np.zeros((40, 60, 50), int), (5.0, 5.0, 5.0)), uniform(200) / 3 * [[1, -1, 1]]
    assert MaskEdges(mask).overlap_um3(apart) == pytest.approx(BoxEdges(BOX).overlap_um3(apart), rel=1e-4)
    um = uniform(300, 2)
    assert MaskEdges(mask).to_border_um(um) == pytest.approx(BoxEdges(BOX).to_border_um(um), abs=5)


def test_distances_to_a_mask_of_vessels():
    labels = np.zeros((20, 30, 25), np.uint8)
    labels[:, 10, 12] = 7  # a vessel along z
    um = (np.argwhere(np.ones(labels.shape)) + 0.5) * (4, 2, 2)
    found = to_labels(um, labels, (4.0, 2.0, 2.0), draws=19)
    expected = np.hypot(um[:, 1] - 21, um[:, 2] - 25)
    assert found.distance_um == pytest.approx(expected, abs=1e-3)
    assert "K" not in found.curves


def test_bad_input_is_refused():
    with pytest.raises(CanvasError, match="19 or more"):
        to_points(uniform(5), uniform(5, 1), draws=5)
    with pytest.raises(CanvasError, match="has no cells"):
        to_points(uniform(0), uniform(5))
    with pytest.raises(CanvasError, match="no cell lies inside the mask"):
        to_points(uniform(5) + 1000, uniform(5), domain=BOX)
    with pytest.raises(CanvasError, match="no voxel of it is above 0"):
        to_labels(uniform(5), np.zeros((3, 3, 3), int), (1.0, 1.0, 1.0))


def test_on_the_command_line(tmp_path, capsys):
    import pandas

    from canvas_fm.cli import main

    Points(uniform(60) / 10 - 0.5).write(tmp_path / "a.csv")
    Points(uniform(50, 1) / 10 - 0.5).write(tmp_path / "b.csv")
    tifffile.imwrite(tmp_path / "mask.tif", np.ones((20, 30, 25), np.uint8))
    words = ["proximity", str(tmp_path / "a.csv"), str(tmp_path / "b.csv"), "--voxel-um", "10", "10", "10"]
    words += [
        "--out",
        str(tmp_path / "k.csv"),
        "--figure",
        str(tmp_path / "k.png"),
        "--draws",
        "19",
        "--json",
    ]
    words += ["--distances-out", str(tmp_path / "d.csv"), "--mask", str(tmp_path / "mask.tif")]
    assert main([*words, "--labels-voxel-um", "10", "10", "10"]) == 0, capsys.readouterr().err
    printed = json.loads(capsys.readouterr().out)
    assert (printed["cells"], printed["outside_the_mask"]) == (60, 0)
    assert pandas.read_csv(tmp_path / "d.csv").distance_um.mean() == pytest.approx(
        printed["mean_um"], abs=1e-2
    )
    assert {"radius_um", "G_observed", "K_low", "L_mean"} <= set(pandas.read_csv(tmp_path / "k.csv").columns)
    assert (tmp_path / "k.png").read_bytes().startswith(b"\x89PNG")
    assert main([*words[:2], str(tmp_path / "mask.tif"), *words[3:-2], "--overwrite"]) == 1
    assert "--labels-voxel-um" in capsys.readouterr().err


def test_a_population_is_not_compared_with_itself():
    cells = np.random.default_rng(0).random((20, 3)) * 100
    with pytest.raises(CanvasError, match="the same 20 cells, so each lies on itself"):
        to_points(cells, cells.copy())


def test_mean_and_quartiles_are_of_the_cells_that_the_null_model_moves():
    """Half of the cells lie far outside the mask, which say nothing about chance inside it."""
    mask = Mask(np.zeros((10, 10, 10), np.int8), (20.0, 30.0, 25.0))
    inside, targets = uniform(200), uniform(200, 1)
    both = np.concatenate([inside, np.add(inside, (900.0, 0, 0))])
    found, alone = (to_points(cells, targets, domain=mask, draws=19).as_dict() for cells in (both, inside))
    assert found["mean_um"] == pytest.approx(alone["mean_um"])
    assert found["quartiles_um"] == pytest.approx(alone["quartiles_um"])
    assert found["outside_the_mask"] == 200


def test_targets_outside_the_mask_are_counted():
    mask = Mask(np.zeros((10, 10, 10), np.int8), (20.0, 30.0, 25.0))
    found = to_points(uniform(50), np.concatenate([uniform(50, 1), uniform(7) + 900]), domain=mask, draws=19)
    assert found.as_dict()["targets_outside_the_mask"] == 7


def test_a_cell_anywhere_in_a_labelled_voxel_is_at_no_distance():
    labels = np.zeros((12, 20, 20), np.uint8)
    labels[5, 10, 10] = 1
    corner = np.add([[5, 10, 10]], [[0.02], [0.5], [0.98]]) * (4.0, 2.0, 2.0)
    found = to_labels(np.concatenate([corner, [[2.0, 1, 1]]]), labels, (4.0, 2.0, 2.0), draws=19)
    assert found.distance_um[:3].tolist() == [0, 0, 0]
    assert found.distance_um[3] > 15


def test_a_cell_outside_the_label_volume_has_no_distance():
    labels = np.zeros((12, 20, 20), np.uint8)
    labels[5, 10, 10] = 1
    found = to_labels(np.array([[-60.0, 5, 5], [8.0, 5, 5]]), labels, (4.0, 2.0, 2.0), draws=19)
    assert np.isnan(found.distance_um).tolist() == [True, False]
    assert found.as_dict()["mean_um"] == found.distance_um[1]


def test_a_mask_that_reaches_beyond_the_label_volume_is_refused():
    labels = np.ones((12, 20, 20), np.uint8)
    mask = Mask(np.zeros((12, 20, 20), np.int8), (8.0, 2.0, 2.0))
    with pytest.raises(CanvasError, match="96 × 40 × 40 µm in z, y, x, the label volume to 48 × 40 × 40"):
        to_labels(uniform(5), labels, (4.0, 2.0, 2.0), domain=mask)
