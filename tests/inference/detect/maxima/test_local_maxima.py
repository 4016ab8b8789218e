"""FindMaxima against its definition written as loops, and greedy suppression against one at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from canvas_fm.errors import CanvasError
from canvas_fm.inference.detect.maxima.local_maxima import (
    find_all_maxima,
    find_maxima,
    neighbourhood,
    one_per_plateau,
    refine_positions,
    suppress,
)


def maxima_by_definition(heat, radius_zyx, threshold, shape):
    """Every voxel beside every other: maxima, then plateaus linked one by one, then the central voxel."""
    places = np.array(list(np.ndindex(heat.shape)))
    gap = (places[:, None] - places[None]) / np.asarray(radius_zyx)
    distance = np.sqrt((gap**2).sum(-1)) if shape == "ball" else np.abs(gap).max(-1)
    near = distance <= 1 + 1e-9
    value = heat.reshape(-1)
    highest = np.where(near, value[None], -np.inf).max(axis=1)
    maxima = np.flatnonzero((value == highest) & (value > threshold))
    points, left = [], set(maxima.tolist())
    while left:
        plateau = [left.pop()]
        for member in plateau:
            linked = {other for other in left if near[member, other]}
            left -= linked
            plateau += linked
        members = places[sorted(plateau)]
        off = ((len(members) * members - members.sum(axis=0)) ** 2).sum(axis=1)
        points.append(members[np.argmin(off)])
    return np.array(sorted(map(tuple, points)), np.int64).reshape(-1, 3)


@pytest.mark.parametrize(
    "block", [*range(4), *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 10))]
)
def test_the_fast_path_gives_what_the_definition_gives(block):
    """100 random maps: few values, so that ties and plateaus abound; every radius, borders included."""
    for seed in range(100 * block, 100 * block + 100):
        rng = np.random.default_rng(seed)
        heat = rng.integers(0, rng.integers(2, 6), rng.integers(1, 8, 3)).astype(np.float32)
        if seed % 3 == 0:
            heat = np.round(gaussian_filter(rng.random((6, 7, 8)), 1) * 12).astype(np.float32)
        radius = rng.uniform(0.6, 4.0, 3) if seed % 2 else rng.integers(1, 4, 3).astype(float)
        threshold = float(rng.integers(-1, 3))
        shape = "ball" if seed % 5 else "box"
        points, scores = find_maxima(heat, radius, threshold, shape=shape)
        expected = maxima_by_definition(heat, radius, threshold, shape)
        assert np.array_equal(points, expected), seed
        assert np.array_equal(scores, heat[tuple(expected.T)]), seed


def test_with_a_box_it_is_max_pooling():
    heat = gaussian_filter(np.random.default_rng(0).random((20, 30, 40)), 1.5).astype(np.float32)
    tensor = torch.from_numpy(heat)[None, None]
    pooled = torch.nn.functional.max_pool3d(tensor, (5, 9, 7), stride=1, padding=(2, 4, 3))
    expected = torch.nonzero((pooled == tensor)[0, 0] & (tensor[0, 0] > 0.5)).numpy()
    points, _ = find_maxima(heat, (2, 4, 3), 0.5, shape="box")
    assert len(points) > 20
    assert np.array_equal(points, expected)


def test_the_radius_is_exact_in_micrometres():
    """Two cells 12 µm apart in z, in planes of 6 µm: apart at 11.9 µm, one at 12 µm."""
    heat = np.zeros((9, 9, 9), np.float32)
    heat[2, 4, 4], heat[4, 4, 4] = 0.9, 0.8
    for radius_um, expected in ((11.9, 2), (12.0, 1)):
        points, _ = find_maxima(heat, [radius_um / um for um in (6.0, 1.62, 1.62)], 0.5)
        assert len(points) == expected


def test_points_of_different_plateaus_are_farther_apart_than_the_radius():
    heat = np.random.default_rng(3).integers(0, 40, (16, 16, 16)).astype(np.float32)
    radius = np.array([1.7, 2.9, 2.3])
    points, _ = find_maxima(heat, radius, 0)
    gaps = (points[:, None] - points[None]) / radius
    distance = np.sqrt((gaps**2).sum(-1))[~np.eye(len(points), dtype=bool)]
    assert len(points) > 1
    assert distance.min() > 1


def test_a_whole_map_of_one_value_is_one_cell_at_its_middle():
    points, scores = find_maxima(np.full((40, 41, 43), 0.7, np.float32), (4, 4, 4), 0.5)
    assert points.tolist() == [[19, 20, 21]]
    assert scores.tolist() == [np.float32(0.7)]


def test_two_equally_hot_voxels_within_the_radius_are_one_cell():
    heat = np.zeros((5, 5, 12), np.float32)
    heat[2, 2, [3, 6]] = 1
    points, _ = find_maxima(heat, (1, 1, 3), 0.5)
    assert points.tolist() == [[2, 2, 3]]
    assert len(find_maxima(heat, (1, 1, 2.9), 0.5)[0]) == 2


def test_what_is_at_the_threshold_is_no_maximum():
    heat = np.full((3, 3, 3), 0.5, np.float32)
    assert len(find_maxima(heat, (1, 1, 1), 0.5)[0]) == 0
    assert len(find_maxima(heat, (1, 1, 1), float(np.nextafter(np.float32(0.5), np.float32(0))))[0]) == 1


def test_nothing_is_found_in_nothing_and_nan_is_outside():
    assert len(find_maxima(np.zeros((4, 4, 4), np.float32), (2, 2, 2), 0.5)[0]) == 0
    heat = np.full((3, 3, 3), np.nan, np.float32)
    heat[1, 1, 1] = 0.8
    assert find_maxima(heat, (2, 2, 2), 0.5)[0].tolist() == [[1, 1, 1]]


def test_maxima_of_halves_put_together_give_the_plateaus_of_the_whole():
    heat = np.random.default_rng(5).integers(0, 3, (20, 12, 12)).astype(np.float32)
    radius, halo = (2.5, 2.5, 2.5), 2
    first = find_all_maxima(heat[: 10 + halo], radius, 0)
    second = find_all_maxima(heat[10 - halo :], radius, 0) + np.array([10 - halo, 0, 0])
    both = np.concatenate([first[first[:, 0] < 10], second[second[:, 0] >= 10]])
    assert np.array_equal(both[one_per_plateau(both, radius)], find_maxima(heat, radius, 0)[0])


def test_positions_between_voxels_find_the_top_of_a_parabola():
    z, y, x = np.indices((9, 9, 9)).astype(np.float64)
    heat = 5 - (z - 4.3) ** 2 - 0.5 * (y - 3.8) ** 2 - 0.25 * (x - 4.0) ** 2
    points, _ = find_maxima(heat, (3, 3, 3), 0)
    assert refine_positions(heat, points) == pytest.approx(np.array([[4.3, 3.8, 4.0]]))


def test_positions_stay_at_the_border_and_on_plateaus():
    heat = np.zeros((4, 4, 4), np.float32)
    heat[0, 1:3, 1] = 1
    points, _ = find_maxima(heat, (2, 2, 2), 0.5)
    assert refine_positions(heat, points).tolist() == [[0.0, 1.5, 1.0]]
    ends, _ = find_maxima(heat[::-1, :, ::-1], (2, 2, 2), 0.5)
    assert refine_positions(heat[::-1, :, ::-1], ends).tolist() == [[3.0, 1.5, 2.0]]


def test_suppression_is_one_at_a_time_best_first():
    rng = np.random.default_rng(7)
    for _ in range(10):
        points, score = rng.uniform(0, 20, (80, 3)), rng.integers(0, 20, 80)
        kept: list[int] = []
        for row in np.argsort(-score, kind="stable"):
            if all(np.linalg.norm(points[row] - points[other]) > 4 for other in kept):
                kept.append(int(row))
        assert suppress(points, score, 4).tolist() == sorted(kept)


def test_suppression_reaches_exactly_its_radius():
    points = np.array([[0.0, 0, 0], [8.0, 0, 0], [16.1, 0, 0]])
    assert suppress(points, np.array([3, 2, 1]), 8).tolist() == [0, 2]


@pytest.mark.parametrize("radius", [(0, 1, 1), (1, 1), (1, np.inf, 1), (-1, 1, 1)])
def test_a_radius_that_is_none_is_refused(radius):
    with pytest.raises(CanvasError, match="three positive numbers"):
        neighbourhood(radius)
