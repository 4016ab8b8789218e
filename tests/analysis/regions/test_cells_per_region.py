"""Counts, volumes and densities per region equal independent sums."""

from __future__ import annotations

import numpy as np
import pytest

from canvas_fm.analysis.regions.cells_per_region import count_regions, region_volumes
from canvas_fm.analysis.regions.read_atlas import open_atlas
from canvas_fm.data.points.points import Points
from canvas_fm.heads.refine.counts.count_interval import CountSpread, Recall, expected_count
from tests.analysis.regions.conftest import PARTS


def points_inside(labels: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """Points in voxels of 10 µm, uniform over the labelled voxels of 100 µm."""
    random = np.random.default_rng(seed)
    at = np.argwhere(labels > 0)
    voxel = at[random.integers(0, len(at), n)]
    return (voxel + random.uniform(0.001, 0.999, (n, 3))) * 10 - 0.5


@pytest.fixture
def atlas(small):
    return open_atlas(
        small.labels_path, table=small.table, atlas_voxel_um=(100, 100, 100), atlas_orientation="asr"
    )


def by(table: dict, side: str) -> dict[int, int]:
    """Row of each region of a side."""
    return {int(table["id"][row]): row for row in np.flatnonzero(table["hemisphere"] == side)}


def test_each_region_is_counted_point_by_point(small, atlas):
    zyx = points_inside(small.labels, 3000)
    table = count_regions(Points(zyx), atlas, voxel_um=(10, 10, 10)).table()
    expected: dict[tuple[int, str], int] = {}
    for point in zyx:
        z, y, x = (int((value + 0.5) // 10) for value in point)
        for side in ("both", "right" if x < 6 else "left"):  # asr: x begins at the right
            key = int(small.labels[z, y, x]), side
            expected[key] = expected.get(key, 0) + 1
    for side in ("both", "left", "right"):
        for region, row in by(table, side).items():
            own = expected.get((region, side), 0)
            children = sum(expected.get((part, side), 0) for part in PARTS.get(region, ()))
            assert (table["own_count"][row], table["count"][row]) == (own, own + children)


def test_volumes_and_densities_are_those_of_the_voxels(small, atlas):
    table = count_regions(Points(points_inside(small.labels, 500)), atlas, voxel_um=(10, 10, 10)).table()
    for side, part in (("both", slice(None)), ("right", slice(0, 6)), ("left", slice(6, None))):
        for region, row in by(table, side).items():
            own = (small.labels[:, :, part] == region).sum() * 1e-3
            whole = np.isin(small.labels[:, :, part], (region, *PARTS.get(region, ()))).sum() * 1e-3
            assert table["own_volume_mm3"][row] == pytest.approx(own)
            assert table["volume_mm3"][row] == pytest.approx(whole)
            assert table["density"][row] == pytest.approx(table["count"][row] / whole)


def test_the_hemispheres_file_wins_over_the_orientation(small, atlas):
    import tifffile

    sides = np.where(np.arange(10)[:, None, None] < 4, 1, 2) * np.ones(small.labels.shape, int)
    tifffile.imwrite(small.folder / "sides.tif", sides.astype(np.uint8))
    split = open_atlas(
        small.labels_path, table=small.table, atlas_voxel_um=(100, 100, 100),
        hemispheres=small.folder / "sides.tif",
    )  # fmt: skip
    zyx = points_inside(small.labels, 900)
    table = count_regions(Points(zyx), split, voxel_um=(10, 10, 10)).table()
    assert table["count"][by(table, "left")[997]] == (zyx[:, 0] + 0.5 < 40).sum()
    assert region_volumes(split)[:, 1].sum() == pytest.approx((small.labels[:4] > 0).sum() * 1e-3)


@pytest.mark.parametrize("recall", [None, Recall(0.8, 0.05, 3)])
def test_sums_of_p_cell_have_the_intervals_of_expected_count(small, atlas, recall):
    zyx = points_inside(small.labels, 400)
    p = np.random.default_rng(1).random(400)
    spread = CountSpread(shared=0.1, factor=1.9, regions=5, log_odds=0.2)
    counts = count_regions(
        Points(zyx, {"p_cell": p}), atlas, voxel_um=(10, 10, 10), spread=spread, recall=recall
    )
    table = counts.table()
    index = np.floor((zyx + 0.5) / 10).astype(int)
    label = small.labels[tuple(index.T)]
    for region, row in by(table, "both").items():
        of = expected_count(p[np.isin(label, (region, *PARTS.get(region, ())))], spread, recall)
        assert table["count"][row] == pytest.approx(of.value, abs=1e-3)
        assert table["count_low"][row] == pytest.approx(of.low)
        assert table["count_high"][row] >= of.high - 1e-9


def test_counts_are_of_all_cells_where_the_file_states_the_recall_of_its_candidates(small, atlas):
    zyx, p = points_inside(small.labels, 400), np.random.default_rng(1).random(400)
    stated = {"candidate_recall": "0.8000", "candidate_recall_spread": "0.0500 3"}

    def total(meta, columns=True):
        points = Points(zyx, {"p_cell": p} if columns else {}, meta)
        table = count_regions(points, atlas, voxel_um=(10, 10, 10)).table()
        row = by(table, "both")[997]
        return table["count"][row], table["count_low"][row] if columns else None, table["count_of"][row]

    of = expected_count(p, CountSpread(), Recall(0.8, 0.05, 3))
    assert total(stated) == (pytest.approx(of.value, abs=1e-3), pytest.approx(of.low), "all cells")
    unsure = "all cells if the recall of the training brains holds here"
    assert total(stated | {"count_of": unsure})[2] == unsure
    for meta in ({}, stated | {"cells_only": "yes"}):
        count, _, words = total(meta)
        assert (count, words) == (pytest.approx(p.sum(), abs=1e-3), "cells among the candidates")
    assert total(stated, columns=False) == (400, None, "rows")


def test_intervals_hold_the_truth_of_phantoms(small, atlas):
    """At 90 %, at least 88 % of the counts of 200 phantoms whose P(cell) are calibrated."""
    volumes, held, all_ = region_volumes(atlas), 0, 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        zyx, p = points_inside(small.labels, 600, seed), random.beta(0.4, 0.4, 600)
        is_cell = random.random(600) < p
        of_p = count_regions(Points(zyx, {"p_cell": p}), atlas, voxel_um=(10, 10, 10), volume_mm3=volumes)
        true = count_regions(Points(zyx[is_cell]), atlas, voxel_um=(10, 10, 10), volume_mm3=volumes)
        table, truth = of_p.table(), true.table()
        wanted = {(a, b): c for a, b, c in zip(truth["id"], truth["hemisphere"], truth["count"], strict=True)}
        for row in range(len(table["id"])):
            count = wanted.get((table["id"][row], table["hemisphere"][row]), 0)
            held += table["count_low"][row] <= count <= table["count_high"][row]
            all_ += 1
    assert all_ > 3000
    assert held / all_ >= 0.88


def test_points_outside_are_told_apart(small, atlas):
    zyx = np.concatenate([points_inside(small.labels, 200), [[-3, 0, 0], [0, 500, 0], [2, 2, 2]]])
    placed = count_regions(Points(zyx), atlas, voxel_um=(10, 10, 10)).placed
    assert (placed.outside, placed.unlabelled) == (2, 1)
