"""Matching against a plain loop and scipy's dense assignment, on small sets full of ties and duplicates."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.detection import matching
from canvas_fm.evaluation.detection import pairs as pairing
from canvas_fm.evaluation.detection.matching import greedy_of, match, optimal_of_small
from canvas_fm.evaluation.detection.pairs import find_pairs


def loop(pred, truth, tolerance, scale):
    """The definition: every pair by (distance, prediction, truth), kept while both are free."""
    pairs = []
    for i, p in enumerate(pred):
        for j, t in enumerate(truth):
            d = [((a - b) * s) ** 2 for a, b, s in zip(p, t, scale, strict=True)]
            pairs.append(((d[0] + d[1] + d[2]) ** 0.5, i, j))
    free_i, free_j, kept = set(range(len(pred))), set(range(len(truth))), []
    for d, i, j in sorted(pairs):
        if d <= tolerance and i in free_i and j in free_j:
            free_i.remove(i)
            free_j.remove(j)
            kept.append((i, j))
    return sorted(kept)


def dense(pred, truth, tolerance, scale):
    """How many can be matched, and at what least sum of distances."""
    distance = np.linalg.norm((pred[:, None] - truth[None]) * np.asarray(scale), axis=2)
    near = distance <= tolerance
    rows, columns = linear_sum_assignment(np.where(near, distance, 1e6))
    kept = near[rows, columns]
    return int(kept.sum()), float(distance[rows, columns][kept].sum())


def draw(seed):
    """Two small sets; whole coordinates make ties and duplicates, fractions do not."""
    random = np.random.default_rng(seed)
    n, m = random.integers(0, 25, 2)
    side = random.choice([3, 6, 12])
    pred, truth = random.random((n, 3)) * side, random.random((m, 3)) * side
    if seed % 3:
        pred, truth = np.round(pred), np.round(truth)
    scale = ((1, 1, 1), (4.0, 1.8, 1.8), (6, 1.62, 1.62))[seed % 4 % 3]
    return pred, truth, float(random.choice([1.0, 2.5, 5.0])) * max(scale) / 2 + 0.01, scale


@pytest.mark.parametrize("rounds", [40, 1, 0])
def test_greedy_is_the_loop(rounds, monkeypatch):
    monkeypatch.setattr(matching, "_ROUNDS", rounds)
    for seed in range(100):
        pred, truth, tolerance, scale = draw(seed)
        found = match(pred, truth, tolerance=tolerance, scale_zyx=scale)
        assert list(zip(*map(np.ndarray.tolist, found[:2]), strict=True)) == loop(
            pred, truth, tolerance, scale
        ), seed


@pytest.mark.parametrize("dense_up_to", [400, 0])
def test_optimal_is_scipys_dense_assignment(dense_up_to, monkeypatch):
    monkeypatch.setattr(matching, "_DENSE", dense_up_to)
    for seed in range(100):
        pred, truth, tolerance, scale = draw(seed)
        found = match(pred, truth, tolerance=tolerance, scale_zyx=scale, optimal=True)
        count, total = dense(pred, truth, tolerance, scale) if len(pred) and len(truth) else (0, 0.0)
        assert len(found.pred_index) == count, seed
        assert found.distance.sum() == pytest.approx(total, abs=1e-9), seed


@pytest.mark.parametrize("optimal", [False, True])
def test_one_to_one_within_tolerance_and_distances_true(optimal):
    for seed in range(40):
        pred, truth, tolerance, scale = draw(seed)
        i, j, distance = match(pred, truth, tolerance=tolerance, scale_zyx=scale, optimal=optimal)
        assert len(set(i.tolist())) == len(i)
        assert len(set(j.tolist())) == len(j)
        assert (np.diff(i) > 0).all()
        assert (distance <= tolerance * (1 + 1e-9)).all()
        np.testing.assert_allclose(distance, np.linalg.norm((pred[i] - truth[j]) * scale, axis=1))


def test_a_chain_is_what_greedy_and_optimal_differ_on():
    pred, truth = np.array([[0, 0, 0], [0, 0, 3.0]]), np.array([[0, 0, 2], [0, 0, 7.0]])
    assert match(pred, truth, tolerance=4).truth_index.tolist() == [0]
    assert match(pred, truth, tolerance=4).pred_index.tolist() == [1]
    assert match(pred, truth, tolerance=4, optimal=True).truth_index.tolist() == [0, 1]


def test_a_long_chain_of_ever_closer_neighbours_is_still_the_loop():
    gaps = np.linspace(3, 1, 301)
    places = np.zeros((302, 3))
    places[1:, 2] = np.cumsum(gaps)
    pred, truth = places[::2], places[1::2]
    found = match(pred, truth, tolerance=3.5)
    assert list(zip(*map(np.ndarray.tolist, found[:2]), strict=True)) == loop(pred, truth, 3.5, (1, 1, 1))


def test_the_tolerance_is_in_voxels_or_in_micrometres_by_the_scale():
    pred, truth = np.array([[2.0, 0, 0], [0, 30, 2.0]]), np.array([[0.0, 0, 0], [0, 30, 0.0]])
    assert match(pred, truth, tolerance=2).pred_index.tolist() == [0, 1]
    assert match(pred, truth, tolerance=4, scale_zyx=(4.0, 1.8, 1.8)).pred_index.tolist() == [1]


def test_a_distance_equal_to_the_tolerance_is_a_match_in_spite_of_rounding():
    for steps in range(1, 40):
        for start in (0.0, 7.0, 4321.0):
            pred, truth = np.array([[start, 0, 0]]), np.array([[start + steps, 0, 0]])
            assert len(
                match(pred, truth, tolerance=float(f"{steps * 1.62:.4f}"), scale_zyx=(1.62, 1, 1)).pred_index
            )
    assert not len(match(pred, truth, tolerance=39 * 1.62 - 1e-4, scale_zyx=(1.62, 1, 1)).pred_index)


def test_equally_close_ones_go_to_the_first_rows():
    pred, truth = np.array([[0, 0, 0], [0, 0, 0.0]]), np.array([[0, 0, 1], [0, 0, -1.0]])
    assert match(pred, truth, tolerance=2).truth_index.tolist() == [0, 1]
    assert match(pred[:1], truth, tolerance=2).truth_index.tolist() == [0]


@pytest.mark.parametrize("optimal", [False, True])
@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (3, 0)])
def test_nothing_matches_nothing(n, m, optimal):
    assert len(match(np.zeros((n, 3)), np.zeros((m, 3)), tolerance=1, optimal=optimal).pred_index) == 0


def test_groups_are_counted_by_their_predictions():
    pred = np.array([[0, 0, 0], [0, 0, 3], [0, 0, 100.0]])
    truth = np.array([[0, 0, 1.5], [0, 0, 101.0]])
    pairs = find_pairs(pred, truth, tolerance=2, scale_zyx=(1, 1, 1))
    assert optimal_of_small(pairs, 1) is None
    assert len(optimal_of_small(pairs, 2).pred) == 2
    assert len(greedy_of(pairs, 3, 2).pred) == 2


@pytest.mark.parametrize("table", [1, 2, 64, 1 << 24])
def test_pairs_do_not_depend_on_the_table_of_occupied_cells(table, monkeypatch):
    rng = np.random.default_rng(table)
    pred, truth = rng.integers(0, 60, (300, 3)).astype(float), rng.integers(0, 60, (400, 3)).astype(float)
    monkeypatch.setattr(pairing, "_OCCUPIED", table)
    pairs = find_pairs(pred, truth, tolerance=3, scale_zyx=(2, 1, 1))
    apart = np.sqrt((((pred[:, None] - truth[None]) * (2, 1, 1)) ** 2).sum(axis=2))
    expected = list(zip(*np.nonzero(apart <= 3), strict=True))
    assert sorted(zip(pairs.pred.tolist(), pairs.truth.tolist(), strict=True)) == expected


def test_it_refuses_what_is_no_tolerance_no_scale_or_no_position():
    some = np.zeros((1, 3))
    for tolerance in (0, -1, np.nan, np.inf):
        with pytest.raises(CanvasError, match=r"tolerance is .*; expected a number above 0"):
            match(some, some, tolerance=tolerance)
    with pytest.raises(CanvasError, match="voxel size is"):
        match(some, some, tolerance=1, scale_zyx=(1, 0, 1))
    with pytest.raises(CanvasError, match=r"row 1 .* is not finite"):
        match(some, some * np.nan, tolerance=1)


def test_a_tolerance_that_pairs_everything_is_refused_before_memory_is_gone(monkeypatch):
    monkeypatch.setattr(pairing, "MOST_PAIRS", 1000)
    many = np.random.default_rng(0).random((100, 3))
    with pytest.raises(CanvasError, match="about 1e\\+04 pairs of 100 predictions and 100 true cells"):
        match(many, many, tolerance=5)


@pytest.mark.parametrize("side", [3.0, 40.0, 4000.0])
@pytest.mark.parametrize("scale", [(1.0, 1.0, 1.0), (5.0, 1.62, 1.62)])
def test_pairs_by_cells_are_those_of_every_distance(side: float, scale: tuple[float, float, float]) -> None:
    """Positions on a grid too, where many distances equal the tolerance, and on both sides of 0."""
    rng = np.random.default_rng(5)
    pred, truth = (rng.uniform(-side, side, (150, 3)) for _ in range(2))
    pred[::2], truth[::3] = np.round(pred[::2]), np.round(truth[::3])
    truth[:40] = pred[:40] + rng.choice([-5.0, 0.0, 5.0], (40, 3)) * [0, 1, 1]
    apart = np.sqrt((((pred[:, None] - truth[None]) * scale) ** 2).sum(axis=2))
    tolerance = 5 * scale[1]
    every = set(zip(*np.nonzero(apart <= tolerance * (1 + 1e-9)), strict=True))
    assert len(every) > 3
    for pairs in (
        pairing._pairs_by_cells(pred, truth, tolerance * (1 + 1e-9), np.array(scale)),
        pairing._pairs_by_trees(pred, truth, tolerance, np.array(scale)),
    ):
        if pairs is None:  # all in each other's reach
            assert side == 3.0
            continue
        assert len(pairs.pred) == len(every)
        assert set(zip(pairs.pred, pairs.truth, strict=True)) == every
        np.testing.assert_allclose(pairs.distance, apart[pairs.pred, pairs.truth], rtol=1e-12)


def test_positions_too_far_for_a_grid_are_matched_all_the_same() -> None:
    near = np.array([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    far = np.array([[1e12, 0.0, 0.0]])
    cells = np.concatenate([near, far])
    assert pairing._pairs_by_cells(cells, cells, 1.0, np.ones(3)) is None
    assert match(cells, cells, tolerance=1.0).truth_index.tolist() == [0, 1, 2]


@pytest.mark.parametrize("most", [1, 7, 500, 2**40, 2**61])
def test_numbers_are_ordered_and_ranked_as_numpy_does_it(most: int) -> None:
    numbers = np.random.default_rng(most).integers(0, most, 300)
    np.testing.assert_array_equal(pairing.stable_order(numbers), np.argsort(numbers, kind="stable"))
    if most < 1000:
        count, rank = matching._numbered(numbers)
        present, expected = np.unique(numbers, return_inverse=True)
        assert count == len(present)
        np.testing.assert_array_equal(rank, expected)


def test_a_grid_of_more_cells_than_have_numbers_is_left_to_trees():
    edge = (1 << 20) * (1 + 1e-6)
    truth = np.array([[1.4 - edge] * 3, [edge - 0.6] * 3, [0.0] * 3])
    pairs = find_pairs(truth, truth, tolerance=1, scale_zyx=(1, 1, 1))
    assert sorted(zip(pairs.pred, pairs.truth, strict=True)) == [(0, 0), (1, 1), (2, 2)]
