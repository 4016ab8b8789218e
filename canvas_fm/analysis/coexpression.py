"""Cells of two markers that coincide, per region, against what chance brings together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from scipy.spatial import cKDTree

from canvas_fm.analysis.null_models import MODELS, Box, Domain, Mask, Model, along_curve, p_greater
from canvas_fm.analysis.regions.tree import RegionTree
from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.detection.matching import Matches, match

NULL_CELLS = 50_000  # of which the null models are drawn; the rest of a large population is not moved
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

    `both` is the number of matched pairs (with P(cell) their expected number), `chance` what the null model
    brings together.
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
    the box around all of them. p-values are one-sided, for more coincidences than by chance: of cells of
    the second marker that have one of the first within the tolerance, of 50,000 drawn ones if there are more.
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
    movable = (second.region >= 0) & domain.holds(second.on_grid)
    picked = np.flatnonzero(movable)
    if len(picked) > NULL_CELLS:
        picked = np.sort(random.choice(picked, NULL_CELLS, replace=False))
    scale = by_region(second.region, second.weight) / np.maximum(
        by_region(second.region[picked], second.weight[picked]), 1e-12
    )
    any_cells = len(first.um) > 0
    order = along_curve(first.on_grid) if any_cells else np.zeros(0, np.int64)
    tree_of_first = cKDTree(first.on_grid[order]) if any_cells else None
    weight_of_first = first.weight[order]
    um, weight, region = second.on_grid[picked], second.weight[picked], second.region[picked]

    def hits(positions: np.ndarray) -> np.ndarray:
        if tree_of_first is None or not len(positions):
            return np.zeros(regions + 1)
        turn = along_curve(positions)
        distance, nearest = tree_of_first.query(
            positions[turn], distance_upper_bound=tolerance_um * (1 + 1e-9)
        )
        near = np.isfinite(distance)
        at = turn[near]
        return by_region(region[at], weight[at] * weight_of_first[nearest[near]])

    observed = hits(um)
    for model in models:
        drawn = np.stack([hits(domain.moved(um, model, random)) for _ in range(draws)])
        chance[model], p_value[model] = drawn.mean(0) * scale, p_greater(observed, drawn)
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
