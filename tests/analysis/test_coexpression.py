"""Coincidences of phantoms with known truth."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from canvas_fm.analysis.coexpression import Population, coexpress, mask_of_tree
from canvas_fm.analysis.marker_cells import read_population
from canvas_fm.analysis.null_models import Mask
from canvas_fm.analysis.regions.tree import Region, RegionTree
from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError

TREE = RegionTree.of([Region(1, "brain", "B"), Region(2, "left", "L", 1), Region(3, "right", "R", 1)])


def population(name, um, weight=None):
    """Left of x = 500 µm is region 2, right of it 3."""
    weight = np.ones(len(um)) if weight is None else weight
    return Population(name, um, weight, np.where(um[:, 2] < 500, 1, 2))


@pytest.fixture
def two():
    """Every third cell of the left has a partner 3 µm away; on the right there are only strangers."""
    random = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(25, 1000, 50.0)] * 3, indexing="ij"), -1).reshape(-1, 3)
    first = grid[random.permutation(len(grid))[:1500]]
    left = first[first[:, 2] < 500]
    partner = np.add(left[::3], (0, 3, 0))
    strangers = np.stack([random.random(700), random.random(700), 0.51 + random.random(700) * 0.49], 1) * 1000
    return population("a", first), population("b", np.concatenate([partner, strangers])), len(left[::3])


def test_pairs_per_region_are_the_planted_ones(two):
    first, second, planted = two
    mask = mask_of_tree(
        np.where(np.arange(100)[None, None] < 50, 2, 3) * np.ones((100, 100, 1), int), TREE, (10, 10, 10)
    )
    (pair,) = coexpress([first, second], tolerance_um=8, tree=TREE, domain=mask)
    table = pair.table(TREE)
    assert table["region"].tolist() == ["brain", "left", "right", "all regions"]
    both = dict(zip(table["region"], table["both"], strict=True))
    assert both["left"] == planted
    assert both["brain"] == both["all regions"] == both["left"] + both["right"]
    for model in ("shift", "shuffle"):
        p = dict(zip(table["region"], table[f"p_{model}"], strict=True))
        assert p["left"] == 0.01
        assert p["right"] > 0.01
        chance = dict(zip(table["region"], table[f"chance_{model}"], strict=True))
        # 700 strangers among about 750 cells of 8 µm in half a mm³
        expected = 700 * (first.um[:, 2] >= 500).sum() * 4 / 3 * np.pi * 8**3 / 0.5e9
        assert chance["right"] == pytest.approx(expected, rel=0.35)
        corrected = table[f"corrected_{model}"][1]
        assert corrected == pytest.approx(planted / min(table["cells_first"][1], planted), rel=0.05)


def test_one_to_one_and_by_p_cell():
    first = population("a", np.array([[0.0, 0, 0], [0, 0, 4]]), np.array([0.5, 1.0]))
    second = population("b", np.array([[0.0, 0, 1], [0, 0, 2], [0, 0, 90]]), np.array([0.8, 1.0, 1.0]))
    (pair,) = coexpress([first, second], tolerance_um=3, draws=19)
    assert pair.both.tolist() == [0.5 * 0.8 + 1.0]  # (0, 1) and (4, 2), and none twice
    assert (pair.cells_first[0], pair.cells_second[0]) == (1.5, 2.8)


def test_three_markers_are_three_pairs(two):
    first, second, _ = two
    pairs = coexpress([first, second, population("c", first.um)], tolerance_um=1, draws=19)
    assert [(one.first.name, one.second.name) for one in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert pairs[1].both[0] == len(first.um)


def test_a_p_cell_that_is_no_probability_is_refused(tmp_path):
    for at, p in enumerate(([0.5, 3.0], [np.nan, 0.5], ["yes", "no"])):
        Points(np.zeros((2, 3)), {"p_cell": np.array(p)}).write(tmp_path / f"{at}.csv")
        with pytest.raises(CanvasError, match="more than numbers from 0 to 1"):
            read_population(tmp_path / f"{at}.csv", voxel_um=(1, 1, 1))


def test_one_marker_is_refused(two):
    with pytest.raises(CanvasError, match="two markers or more"):
        coexpress([two[0]], tolerance_um=1)


def test_on_the_command_line(tmp_path, two, capsys):
    import pandas

    from canvas_fm.cli import main

    for one in two[:2]:
        Points(one.um / 10 - 0.5).write(tmp_path / f"{one.name}.csv")
    files = [str(tmp_path / f"{name}.csv") for name in ("a", "b", "out", "pairs")]
    flags = ["--tolerance-um", "8", "--voxel-um", "10", "10", "10", "--draws", "19", "--json"]
    assert main(["coexpress", *files[:2], "--out", files[2], "--cells-out", files[3], *flags]) == 0
    printed = json.loads(capsys.readouterr().out)
    table, pairs = pandas.read_csv(files[2]), pandas.read_csv(files[3])
    assert table["both"][0] == len(pairs) == printed["pairs"][0]["both"]
    assert two[0].um[pairs.row_first - 1][:, 1] + 3 == pytest.approx(
        two[1].um[pairs.row_second - 1][:, 1], abs=12
    )
    assert main(["coexpress", *files[:1], files[0], "--out", files[2], "--overwrite", *flags]) == 1
    assert "--channels" in capsys.readouterr().err


def test_the_closest_pair_does_not_take_a_partner_that_two_pairs_need():
    """At 0, 6 and 5, 11 µm: greedily one pair (6 with 5), one to one for the most pairs two."""
    first, second = (np.array([[500.0, 500.0, x] for x in line]) for line in ((0, 6), (5, 11)))
    (pair,) = coexpress(
        [population("a", first), population("b", second)], tolerance_um=6, tree=TREE, draws=19
    )
    table = pair.table(TREE)
    assert table["both"][table["region"].tolist().index("all regions")] == 2


def strangers(first, second, side=120.0, seed=0):
    """Two populations in a cube that do not know of each other."""
    random = np.random.default_rng(seed)
    return [
        Population(name, random.random((cells, 3)) * side, np.ones(cells), np.zeros(cells, np.int64))
        for name, cells in (("a", first), ("b", second))
    ]


@pytest.mark.parametrize("sizes", [(20, 1700), (1700, 20), (800, 800)])
def test_chance_is_of_pairs_one_to_one_where_cells_are_crowded(sizes):
    """Twenty cells have at most twenty partners, however many others lie near them by chance."""
    (pair,) = coexpress(strangers(*sizes), tolerance_um=8, draws=19)
    for model in ("shift", "shuffle"):
        assert pair.chance[model][0] == pytest.approx(pair.both[0], rel=0.12)
        assert pair.chance[model][0] <= min(sizes)


def test_chance_of_crowded_cells_of_which_a_part_is_moved(monkeypatch):
    monkeypatch.setattr("canvas_fm.analysis.coexpression.NULL_CELLS", 100)
    (pair,) = coexpress(strangers(800, 800), tolerance_um=8, draws=19)
    assert pair.chance["shuffle"][0] == pytest.approx(pair.both[0], rel=0.1)


def test_chance_is_within_the_tolerance_of_the_brain_where_the_atlas_has_another_size():
    """Positions in the atlas are half of those in the brain; without a transform chance is the same."""
    first, second = strangers(400, 400)
    half = [replace(one, grid_um=one.um / 2) for one in (first, second)]
    in_brain, in_atlas = (coexpress(two, tolerance_um=8, draws=19)[0] for two in ((first, second), half))
    assert in_atlas.chance["shuffle"] == pytest.approx(in_brain.chance["shuffle"], rel=0.05)


def test_cells_whose_position_in_the_atlas_is_not_known_are_left_out():
    first, second = strangers(100, 100)
    lost = [np.where(np.arange(100)[:, None] < 5, np.nan, one.um) for one in (first, second)]
    region = np.where(np.arange(100) < 5, -1, 0)
    two = [replace(one, grid_um=um, region=region) for one, um in zip((first, second), lost, strict=True)]
    mask = Mask(np.zeros((12, 12, 12), np.int8), (10.0, 10.0, 10.0))
    (pair,) = coexpress(two, tolerance_um=8, draws=19, domain=mask)
    assert (pair.cells_first[0], pair.cells_second[0]) == (95, 95)
