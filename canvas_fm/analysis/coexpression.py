"""Cells of two markers that coincide, per region, against what chance brings together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import cKDTree

from canvas_fm.analysis.null_models import MODELS, Box, Domain, Lattice, Mask, Model, along_curve, p_greater
from canvas_fm.analysis.regions.tree import RegionTree
from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.detection.matching import Matches, match

NULL_CELLS = 50_000  # of which the null models are drawn; the rest of a large population is not moved
_CROWDED = 0.02  # matched by chance for each cell of the first marker, from which partners become scarce
_FULL_DRAWS = 5
_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Population:
    """Cells of one marker: positions in µm, the weight of each (1, or P(cell)), and its region (-1: none).

    `grid_um` are the same positions on the grid of the regions, where they differ from `um`.
    """

    name: str
    um: Float64[np.ndarray, "n 3"]
    weight: Float64[np.ndarray, " n"]
    region: Int64[np.ndarray, " n"]
    grid_um: Float64[np.ndarray, "n 3"] | None = None

    @property
    def on_grid(self) -> Float64[np.ndarray, "n 3"]:
        return self.um if self.grid_um is None else self.grid_um


@dataclass(frozen=True)
class Coexpression:
    """Coincidences of two markers; arrays are by region, children counted in, and last over all regions.

    `both` is the number of matched pairs (with P(cell) their expected number), `chance` that number in the
    null model, matched one to one too.
    """

    first: Population
    second: Population
    matches: Matches
    cells_first: Float64[np.ndarray, " r"]
    cells_second: Float64[np.ndarray, " r"]
    both: Float64[np.ndarray, " r"]
    variance: Float64[np.ndarray, " r"]
    chance: Mapping[Model, Float64[np.ndarray, " r"]]
    p_value: Mapping[Model, Float64[np.ndarray, " r"]]

    def whole(self) -> dict[str, Any]:
        """The figures over all cells that lie in a region, for people and JSON."""
        both, first, second = (float(sums[-1]) for sums in (self.both, self.cells_first, self.cells_second))
        return {
            "markers": f"{self.first.name} {self.second.name}",
            "cells": [first, second],
            "both": both,
            "chance": {model: float(values[-1]) for model, values in self.chance.items()},
            "p_value": {model: float(values[-1]) for model, values in self.p_value.items()},
        }

    def rows(self) -> dict[str, np.ndarray]:
        """Columns of one row a matched pair: rows of both files, counted from 1, and their distance."""
        n = len(self.matches.pred_index)
        return {
            "first": np.full(n, self.first.name),
            "second": np.full(n, self.second.name),
            "row_first": self.matches.pred_index + 1,
            "row_second": self.matches.truth_index + 1,
            "distance_um": self.matches.distance,
        }

    def table(self, tree: RegionTree | None = None) -> dict[str, np.ndarray]:
        """Columns of a row a region that holds cells of either marker."""
        rows = np.flatnonzero(self.cells_first + self.cells_second > 0)
        first, second, both = self.cells_first[rows], self.cells_second[rows], self.both[rows]
        names = [(region.id, region.name) for region in tree.regions] if tree is not None else []
        names.append((0, "all regions" if names else "all"))
        low, high = _share_interval(both, first, self.variance[rows])
        table = {
            "first": np.full(len(rows), self.first.name),
            "second": np.full(len(rows), self.second.name),
            "id": np.array([names[row][0] for row in rows], np.int64),
            "region": np.array([names[row][1] for row in rows], np.str_),
            "cells_first": first,
            "cells_second": second,
            "both": both,
            "share_of_first": _share(both, first),
            "share_low": low,
            "share_high": high,
            "share_of_second": _share(both, second),
        }
        for model in self.chance:
            chance = self.chance[model][rows]
            table |= {
                f"chance_{model}": chance,
                f"corrected_{model}": _share(both - chance, np.minimum(first, second) - chance),
                f"p_{model}": self.p_value[model][rows],
            }
        return table


def coexpress(
    populations: Sequence[Population],
    *,
    tolerance_um: float,
    tree: RegionTree | None = None,
    domain: Domain | None = None,
    draws: int = 99,
    seed: int = 0,
    models: Sequence[Model] = MODELS,
) -> list[Coexpression]:
    """Coincidences of each pair of markers: matched one to one, as many as possible, within the tolerance.

    Regions are rows of `tree`, and `domain` a mask of the same rows; without, the null models move cells in
    the box around all of them. p-values are one-sided, for more pairs matched one to one than by chance; of
    a second marker with more than 50,000 cells so many drawn ones are moved.
    """
    if len(populations) < 2:
        raise CanvasError("co-expression is of two markers or more; give two files of cells")
    if draws < 19:
        raise CanvasError(f"{draws} draws allow no p-value under {1 / (1 + draws):.2g}; give 19 or more")
    place = domain if domain is not None else Box.around(*(population.on_grid for population in populations))
    random = np.random.default_rng(seed)
    return [
        _pair(first, second, tolerance_um, tree, place, draws, random, models)
        for first, second in combinations(populations, 2)
    ]


def _pair(
    first: Population,
    second: Population,
    tolerance_um: float,
    tree: RegionTree | None,
    domain: Domain,
    draws: int,
    random: np.random.Generator,
    models: Sequence[Model],
) -> Coexpression:
    regions = 0 if tree is None else len(tree)

    def by_region(region: np.ndarray, weight: np.ndarray) -> np.ndarray:
        inside = region >= 0
        every = weight[inside].sum(keepdims=True)
        if tree is None:
            return every
        own = np.bincount(region[inside], weight[inside], regions).astype(np.float64)
        return np.concatenate([tree.with_children(own), every])

    matches = match(first.um, second.um, tolerance=tolerance_um, optimal=True)
    together = first.weight[matches.pred_index] * second.weight[matches.truth_index]
    where = first.region[matches.pred_index]
    chance, p_value = {}, {}
    placed = np.flatnonzero(second.region >= 0)
    movable = placed[domain.holds(second.on_grid[placed])]
    picked = movable
    if len(movable) > NULL_CELLS:
        picked = np.sort(random.choice(movable, NULL_CELLS, replace=False))
    scale = by_region(second.region, second.weight) / np.maximum(
        by_region(second.region[picked], second.weight[picked]), 1e-12
    )
    lattice = Lattice.of(second.on_grid[movable])

    def draw(cells: np.ndarray, model: Model) -> np.ndarray:
        return lattice.nearest(domain.moved(second.on_grid[cells], model, random))

    near = _Neighbours.of(first, tolerance_um * _stretch(first, second))

    def hits(cells: np.ndarray, positions: np.ndarray) -> np.ndarray:
        at, partner = near.matched(positions)
        return by_region(second.region[cells[at]], second.weight[cells[at]] * first.weight[partner])

    observed = hits(picked, second.on_grid[picked])
    for model in models:
        drawn = np.stack([hits(picked, draw(picked, model)) for _ in range(draws)])
        chance[model], p_value[model] = drawn.mean(0) * scale, p_greater(observed, drawn)
        if len(picked) < len(movable) and chance[model][-1] > _CROWDED * len(first.um):
            # Pairs of a part do not tell those of all where cells compete for a partner.
            chance[model] = np.mean([hits(movable, draw(movable, model)) for _ in range(_FULL_DRAWS)], axis=0)
    return Coexpression(
        first,
        second,
        matches,
        by_region(first.region, first.weight),
        by_region(second.region, second.weight),
        by_region(where, together),
        by_region(where, together * (1 - together)),
        chance,
        p_value,
    )


@dataclass(frozen=True)
class _Neighbours:
    """The first marker's cells of all regions in a search tree, in the order of a space-filling curve."""

    tree: cKDTree | None
    order: Int64[np.ndarray, " n"]
    radius_um: float

    @classmethod
    def of(cls, first: Population, tolerance_um: float) -> _Neighbours:
        placed = np.flatnonzero(first.region >= 0)  # of others the position on the grid may not be known
        order = placed[along_curve(first.on_grid[placed])] if len(placed) else placed
        tree = cKDTree(first.on_grid[order]) if len(order) else None
        return cls(tree, order, tolerance_um * (1 + 1e-9))

    def matched(
        self, um: Float64[np.ndarray, "n 3"]
    ) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
        """Rows of `um` and of the first marker, as many as can be matched one to one within the tolerance."""
        if self.tree is None or not len(um):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        turn = along_curve(um)
        distance, _ = self.tree.query(um[turn], distance_upper_bound=self.radius_um)
        row = turn[np.isfinite(distance)]
        neighbours = self.tree.query_ball_point(um[row], self.radius_um)
        sizes = np.array([len(rows) for rows in neighbours], np.int64)
        cell = np.fromiter(chain.from_iterable(neighbours), np.int64, int(sizes.sum()))
        cells, column = np.unique(cell, return_inverse=True)
        if len(cells) == len(cell) == len(row):  # nobody shares a partner
            return row, self.order[cell]
        bounds = np.concatenate([[0], np.cumsum(sizes)])
        edges = csr_array((np.ones(len(cell), bool), column, bounds), shape=(len(row), len(cells)))
        partner = maximum_bipartite_matching(edges, perm_type="column")
        paired = partner >= 0
        return row[paired], self.order[cells[partner[paired]]]


def _stretch(first: Population, second: Population) -> float:
    """Stretch of distances on the regions' grid against the brain; 1 without a transform."""
    spread = np.zeros(2)
    for population in (first, second):
        placed = population.region >= 0
        for at, um in enumerate((population.um[placed], population.on_grid[placed])):
            spread[at] += um.var(0).sum() * len(um) if len(um) else 0.0
    return float(np.sqrt(spread[1] / spread[0])) if (spread > 0).all() else 1.0


def mask_of_tree(labels: np.ndarray, tree: RegionTree, voxel_um: tuple[float, float, float]) -> Mask:
    """The mask of an atlas' labels, each voxel its row of the tree, -1 outside."""
    rows = np.empty(labels.shape, np.int16)
    for z in range(len(labels)):
        rows[z] = tree.rows_of(labels[z])
    return Mask(rows, voxel_um)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)


def _share_interval(
    both: np.ndarray, whole: np.ndarray, variance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's 95 % interval of a share, widened by what P(cell) leaves open of the pairs."""
    n = np.where(whole > 0, whole, np.nan)
    share = np.clip(both / n, 0, 1)
    centre = (share + _Z95**2 / (2 * n)) / (1 + _Z95**2 / n)
    half = _Z95 * np.sqrt(share * (1 - share) / n + _Z95**2 / (4 * n**2)) / (1 + _Z95**2 / n)
    half = np.hypot(half, _Z95 * np.sqrt(variance) / n)
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)
