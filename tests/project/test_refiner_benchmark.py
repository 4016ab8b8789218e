"""The benchmark of refiners: what a cube is scored by has not seen it."""

from __future__ import annotations

import numpy as np

from tests.benchmarks.refinement import shape_trees
from tests.benchmarks.refinement.shape_trees import Scored, held_out_f1


def brain(name: str, random: np.random.Generator) -> Scored:
    is_cell = random.random(60) < 0.5
    own = is_cell + random.normal(0, 0.3, 60)
    return Scored(name, "microglia", is_cell, 0, own, own, np.zeros((60, 1), np.float32), np.zeros(60, int))


def test_trees_of_a_cube_and_of_its_threshold_have_not_seen_it(monkeypatch):
    calls: list[tuple[frozenset[str], str]] = []

    def trees_of(cubes):
        seen = frozenset(cube.name for cube in cubes)

        def score(brain: Scored) -> np.ndarray:
            calls.append((seen, brain.name))
            return brain.own

        return score

    monkeypatch.setattr(shape_trees, "trees_of", trees_of)
    random = np.random.default_rng(0)
    names = {"a", "b", "c", "7095"}
    f1 = held_out_f1([brain(name, random) for name in sorted(names)])
    assert f1["trees"].keys() == names
    fitted_on = names - {"7095"}
    for seen, name in calls:
        assert name not in seen
        assert "7095" not in seen
    # Without one cube: its own score, and its part in the threshold of 7095. All else is without two.
    without_one = sorted(name for seen, name in calls if name != "7095" and len(seen) == len(fitted_on) - 1)
    assert without_one == ["a", "a", "b", "b", "c", "c"]
