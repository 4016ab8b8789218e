"""Null models stay inside, and their p-values are uniform where there is no effect."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from canvas_fm.analysis.coexpression import Population, coexpress
from canvas_fm.analysis.null_models import Box, Lattice, Mask, p_greater, p_two_sided
from canvas_fm.analysis.proximity.proximity import to_points

SIDE = 400.0
BOX = Box((0.0, 0.0, 0.0), (SIDE, SIDE, SIDE))


@pytest.mark.parametrize("model", ["shift", "shuffle"])
def test_moved_cells_stay_in_their_region(model):
    random = np.random.default_rng(0)
    region = random.integers(-1, 3, (6, 7, 8))
    mask = Mask(region, (10.0, 20.0, 5.0))
    um = random.random((4000, 3)) * (60, 140, 40)
    um = um[mask.holds(um)]
    assert 0.6 < len(um) / 4000 < 0.9

    def regions_of(positions):
        return region[tuple(np.floor(positions / (10, 20, 5)).astype(int).T)]

    moved = mask.moved(um, model, random)
    assert np.array_equal(regions_of(moved), regions_of(um))
    assert np.abs(moved - um).max(1).min() > 0
    in_box = BOX.moved(random.random((500, 3)) * SIDE, model, random)
    assert BOX.holds(in_box).all()


def test_a_shift_of_a_box_keeps_vectors_modulo_its_size():
    random = np.random.default_rng(0)
    um = random.random((50, 3)) * SIDE
    apart = np.mod(BOX.moved(um, "shift", random) - um, SIDE)
    assert np.allclose(np.exp(2j * np.pi * apart / SIDE), np.exp(2j * np.pi * apart[0] / SIDE))


def test_a_shift_of_a_mask_moves_voxels_along_one_curve():
    """Cells of one voxel stay in one voxel, those of different voxels do not meet."""
    random = np.random.default_rng(1)
    mask = Mask(np.zeros((8, 8, 8), int), (1.0, 1.0, 1.0))
    um = np.argwhere(np.ones((8, 8, 8))) + 0.5
    moved = np.floor(mask.moved(um, "shift", random)).astype(int)
    assert len(np.unique(moved, axis=0)) == 512
    steps = np.abs(np.diff(moved, axis=0)).sum(1)
    assert np.median(steps) <= 2  # neighbours mostly stay neighbours


def test_p_values_by_hand():
    draws = np.array([1.0, 2, 3, 4])
    assert p_greater(np.float64(3), draws) == pytest.approx(3 / 5)
    assert p_two_sided(np.float64(5), draws) == pytest.approx(2 / 5)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["shift", "shuffle"])
def test_p_values_are_uniform_without_an_effect(model):
    """200 simulations of independent populations: distances, G and L, and coincidences."""
    found: dict[str, list[float]] = {"mean_distance": [], "G": [], "L": [], "both": []}
    for seed in range(200):
        random = np.random.default_rng((1, seed))
        first, second = random.random((120, 3)) * SIDE, random.random((150, 3)) * SIDE
        close = to_points(first, second, domain=BOX, radii_um=[20, 40, 60], model=model, draws=19, seed=seed)
        for name in ("mean_distance", "G", "L"):
            found[name].append(close.p_value[name])
        a, b = (
            Population(name, um, np.ones(len(um)), np.zeros(len(um), int))
            for name, um in (("a", first), ("b", second))
        )
        (pair,) = coexpress([a, b], tolerance_um=40, domain=BOX, draws=19, seed=seed, models=[model])
        found["both"].append(float(pair.p_value[model][0]))
    for name, values in found.items():
        # p-values are steps, spread evenly over each step before they are compared.
        step = (2 if name == "mean_distance" else 1) / 20
        spread = np.array(values) - np.random.default_rng(0).random(200) * step
        assert kstest(spread, "uniform").pvalue > 0.01, name


def test_an_effect_is_found():
    random = np.random.default_rng(3)
    first = random.random((200, 3)) * SIDE
    second = np.concatenate([first[:60] + random.normal(0, 2, (60, 3)), random.random((140, 3)) * SIDE])
    close = to_points(second, first, domain=BOX, radii_um=[5, 10, 20])
    assert max(close.p_value["G"], close.p_value["L"], close.p_value["mean_distance"]) <= 0.02


def on_voxels(cells, seed):
    """Cells at centres of voxels of 30 × 10 × 10 µm."""
    return (np.random.default_rng(seed).integers(0, (13, 40, 40), (cells, 3)) + 0.5) * (30, 10, 10)


def test_cells_at_voxels_centres_are_moved_to_such():
    """No two of them are 1 to 9 µm apart, so that no draw may be: chance at 1 and at 9 µm is the same."""
    first, second = on_voxels(900, 0), on_voxels(900, 1)
    assert Lattice.of(first).spacing_um == pytest.approx([30, 10, 10])
    assert Box.around(first, second) == Box((0.0, 0.0, 0.0), (390.0, 400.0, 400.0))
    a, b = (
        Population(name, um, np.ones(900), np.zeros(900, int)) for name, um in (("a", first), ("b", second))
    )
    for model in ("shift", "shuffle"):
        near, wide = (
            coexpress([a, b], tolerance_um=um, draws=19, models=[model])[0].chance[model][0] for um in (1, 9)
        )
        assert near == wide > 0
        g = to_points(first, second, radii_um=[1, 9, 11], draws=19, model=model).curves["G"]["mean"]
        assert g[1] == pytest.approx(g[0], rel=0.1)  # the border of 1 and of 9 µm leaves out other cells
        assert g[2] > 2 * g[1]


def test_points_that_lie_anywhere_are_on_no_lattice():
    um = np.random.default_rng(0).random((50, 3)) * SIDE
    um[:, 0] = 7.0  # one plane
    lattice = Lattice.of(um)
    assert np.isnan(lattice.spacing_um).all()
    assert np.array_equal(lattice.nearest(um), um)


@pytest.mark.slow
def test_power_where_a_share_of_the_cells_is_moved_to_the_others():
    """Of 150 cells 8 or 15 lie 3 µm from one of 120 others: the share of 60 brains with p ≤ .05."""
    power = {}
    for moved in (8, 15):
        found = {"both": [], "mean_distance": [], "G": [], "L": []}
        for seed in range(60):
            random = np.random.default_rng((2, seed))
            first, second = random.random((120, 3)) * SIDE, random.random((150, 3)) * SIDE
            second[:moved] = np.clip(first[:moved] + random.normal(0, 3 / np.sqrt(3), (moved, 3)), 0, SIDE)
            close = to_points(second, first, domain=BOX, radii_um=[5, 10, 20], draws=39, seed=seed)
            for name in ("mean_distance", "G", "L"):
                found[name].append(close.p_value[name] <= 0.05)
            a, b = (
                Population(name, um, np.ones(len(um)), np.zeros(len(um), int))
                for name, um in (("a", first), ("b", second))
            )
            (pair,) = coexpress([a, b], tolerance_um=8, domain=BOX, draws=39, seed=seed, models=["shift"])
            found["both"].append(pair.p_value["shift"][0] <= 0.05)
        power[moved] = {name: float(np.mean(hits)) for name, hits in found.items()}
    print(power)
    assert power[8]["both"] > 0.9
    assert min(power[15][name] for name in ("both", "G", "L")) > 0.9
