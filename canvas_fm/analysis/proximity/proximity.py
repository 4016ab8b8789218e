"""Distances between two populations, and K, L and G with the envelope of the null models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import Float64, Integer
from scipy.ndimage import distance_transform_edt, map_coordinates
from scipy.spatial import cKDTree

from canvas_fm.analysis.null_models import (
    Box,
    Domain,
    Lattice,
    Mask,
    Model,
    along_curve,
    p_of_curve,
    p_two_sided,
)
from canvas_fm.analysis.proximity.edges import Edges, edges_of
from canvas_fm.data.zyx import ZyxUm
from canvas_fm.errors import CanvasError

NULL_CELLS = 20_000
PAIRS = 60_000  # pairs of one K function; of more a random part of the cells is taken
Distance = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Proximity:
    """Distances in µm of each cell to the nearest target; functions of the radius with the null's 95 %.

    Mean and quartiles are of the cells `inside` the mask, as the null model is.

    `curves` holds G, and to points K and L: `observed`, and `mean`, `low`, `high` of the null model. p-values
    are two-sided for the mean distance and, for a curve, of its largest deviation.
    """

    distance_um: Float64[np.ndarray, " n"]
    inside: np.ndarray
    radii_um: Float64[np.ndarray, " r"]
    curves: dict[str, dict[str, np.ndarray]]
    null_mean_um: float
    p_value: dict[str, float]
    model: Model
    draws: int
    compared: int  # cells that curves and p-values are of, a random part of larger populations
    targets_outside: int = 0  # targets that the mask leaves out, to which no distance is measured

    def as_dict(self) -> dict[str, Any]:
        """The figures, for people and JSON."""
        compared = self.distance_um[self.inside]  # the null model holds no others
        quartiles = np.percentile(compared, [25, 50, 75])
        return {
            "cells": len(self.distance_um),
            "outside_the_mask": int((~self.inside).sum()),
            "targets_outside_the_mask": self.targets_outside,
            "mean_um": float(compared.mean()),
            "quartiles_um": [float(value) for value in quartiles],
            "null_mean_um": self.null_mean_um,
            "null_model": self.model,
            "draws": self.draws,
            "cells_in_the_null_model": self.compared,
            "p_value": self.p_value,
        }

    def table(self) -> dict[str, np.ndarray]:
        """Columns: radius_um, then observed, mean, low and high of each function."""
        table = {"radius_um": self.radii_um}
        for name, curve in self.curves.items():
            table |= {f"{name}_{part}": values for part, values in curve.items()}
        return table


def to_points(
    from_um: Float64[np.ndarray, "n 3"],
    to_um: Float64[np.ndarray, "m 3"],
    *,
    domain: Domain | None = None,
    radii_um: Sequence[float] | None = None,
    model: Model = "shift",
    draws: int = 99,
    seed: int = 0,
) -> Proximity:
    """Distances from each cell to the nearest of `to_um`; K and L by translation, G by border correction.

    Targets outside the domain are left out, as those beyond the volume are. Without a `domain` it is the box
    around both populations. CanvasError where the two are the same cells.
    """
    if not len(from_um) or not len(to_um):
        raise CanvasError("one of the two populations has no cells; nothing to compare")
    domain = domain if domain is not None else Box.around(from_um, to_um)
    inside_to = to_um[domain.holds(to_um)]
    if not len(inside_to):
        raise CanvasError("no target lies inside the mask; are both in the same volume and voxel size?")
    if np.array_equal(from_um, to_um):
        raise CanvasError(
            f"both populations are the same {len(to_um):,} cells, so each lies on itself; give two"
        )
    tree = cKDTree(inside_to[along_curve(inside_to)])
    result = _proximity(
        from_um, lambda um: tree.query(um)[0], domain, radii_um, model, draws, seed,
        _Pairs(tree, edges_of(domain), len(inside_to)),
    )  # fmt: skip
    return replace(result, targets_outside=len(to_um) - len(inside_to))


def to_labels(
    from_um: Float64[np.ndarray, "n 3"],
    labels: Integer[np.ndarray, "z y x"],
    voxel_um: ZyxUm,
    *,
    domain: Domain | None = None,
    radii_um: Sequence[float] | None = None,
    model: Model = "shift",
    draws: int = 99,
    seed: int = 0,
) -> Proximity:
    """Distances from each cell to the nearest labelled voxel, 0 inside one: vessels, plaques, borders.

    Between voxels' centres they are interpolated. NaN for a cell outside the label volume.
    """
    if not len(from_um):
        raise CanvasError("there are no cells; nothing to compare")
    if not labels.any():
        raise CanvasError("the label volume is empty: no voxel of it is above 0")
    far = distance_transform_edt(labels == 0, sampling=voxel_um).astype(np.float32)
    size = np.asarray(voxel_um)
    z, y, x = (float(length) for length in np.asarray(labels.shape) * size)
    grid = Box((0.0, 0.0, 0.0), (z, y, x))
    if isinstance(domain, Mask):
        _check_inside(domain, grid, size)

    def distance(um: np.ndarray) -> np.ndarray:
        apart = map_coordinates(far, (um / size - 0.5).T, order=1, mode="nearest", output=np.float64)
        index = np.clip(um // size, 0, np.asarray(labels.shape) - 1).astype(np.int64)
        apart[labels[tuple(index.T)] != 0] = 0.0
        return apart

    result = _proximity(from_um, distance, domain or grid, radii_um, model, draws, seed, None)
    lost = ~result.inside & ~grid.holds(from_um)
    return replace(result, distance_um=np.where(lost, np.nan, result.distance_um))


def _check_inside(mask: Mask, grid: Box, size: np.ndarray) -> None:
    """CanvasError where the null model would move cells to where the label volume says nothing."""
    held = [np.flatnonzero((mask.region >= 0).any(axis)) for axis in ((1, 2), (0, 2), (0, 1))]
    reach = np.array([planes.max(initial=-1) + 1 for planes in held]) * np.asarray(mask.voxel_um)
    if (reach > grid.size_um + np.maximum(size, mask.voxel_um)).any():  # less is rounding of the grid
        spans = [" × ".join(f"{length:.4g}" for length in um) for um in (reach, grid.size_um)]
        raise CanvasError(
            f"the mask reaches to {spans[0]} µm in z, y, x, the label volume to {spans[1]} µm; expected a "
            "mask of the same volume: do both have this voxel size (--labels-voxel-um)?"
        )


@dataclass(frozen=True)
class _Pairs:
    """Pairs of a target and a cell, for K."""

    tree: cKDTree
    edges: Edges
    targets: int

    def k(self, um: np.ndarray, radii: np.ndarray, volume: float, random: np.random.Generator) -> np.ndarray:
        """Cross-K by translation correction (Ohser): V² / (n m) Σ 1 / |W ∩ W shifted by the pair|."""
        sampled = um[:: max(1, len(um) // 1000)]
        expected = self.tree.query_ball_point(sampled, radii[-1], return_length=True).mean() * len(um)
        if expected > PAIRS:
            part = random.choice(len(um), max(1, int(len(um) * PAIRS / expected)), replace=False)
            um = um[np.sort(part)]
        neighbours = self.tree.query_ball_point(um, radii[-1])
        cell = np.repeat(np.arange(len(um)), [len(indices) for indices in neighbours])
        apart = um[cell] - self.tree.data[np.fromiter(chain.from_iterable(neighbours), np.int64, len(cell))]
        overlap = self.edges.overlap_um3(apart)
        weight = np.where(overlap > 0, volume**2 / np.maximum(overlap, 1e-9), 0) / (len(um) * self.targets)
        at = np.searchsorted(radii, np.linalg.norm(apart, axis=1) * (1 - 1e-12))
        return np.cumsum(np.bincount(at, weight, len(radii) + 1)[: len(radii)])


def _proximity(
    from_um: np.ndarray,
    distance: Distance,
    domain: Domain,
    radii_um: Sequence[float] | None,
    model: Model,
    draws: int,
    seed: int,
    pairs: _Pairs | None,
) -> Proximity:
    if draws < 19:
        raise CanvasError(f"{draws} draws allow no p-value under {1 / (1 + draws):.2g}; give 19 or more")
    random = np.random.default_rng(seed)
    inside = domain.holds(from_um)
    if not inside.any():
        raise CanvasError("no cell lies inside the mask; are both in the same volume and voxel size?")
    order = along_curve(from_um)
    every = np.empty(len(from_um))
    every[order] = distance(from_um[order])
    um = from_um[inside]
    if len(um) > NULL_CELLS:
        um = um[random.choice(len(um), NULL_CELLS, replace=False)]
    radii = _radii(radii_um, every[inside])
    edges = pairs.edges if pairs is not None else edges_of(domain)

    def measure(positions: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
        positions = positions[along_curve(positions)]
        near = distance(positions)
        curves = {"G": _g(near, edges.to_border_um(positions), radii)}
        if pairs is not None:
            curves["K"] = pairs.k(positions, radii, domain.volume_um3, random)
            curves["L"] = np.cbrt(curves["K"] * 3 / (4 * np.pi))
        return float(near.mean()), curves

    observed, shown = measure(um)
    lattice = Lattice.of(from_um[inside])
    null = [measure(lattice.nearest(domain.moved(um, model, random))) for _ in range(draws)]
    means = np.array([mean for mean, _ in null])
    p_value = {"mean_distance": float(p_two_sided(np.float64(observed), means))}
    curves = {}
    for name, curve in shown.items():
        drawn = np.stack([simulated[name] for _, simulated in null])
        low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
        curves[name] = {"observed": curve, "mean": drawn.mean(0), "low": low, "high": high}
        if name != "K":  # L is K on a scale on which radii compare
            p_value[name] = p_of_curve(curve, drawn)
    return Proximity(every, inside, radii, curves, float(means.mean()), p_value, model, draws, len(um))


def _radii(radii_um: Sequence[float] | None, distance: np.ndarray) -> Float64[np.ndarray, " r"]:
    if radii_um is None:
        return np.linspace(0, max(float(np.percentile(distance, 95)), 1e-3), 21)[1:]
    radii = np.sort(np.asarray(radii_um, np.float64))
    if not len(radii) or not (np.isfinite(radii) & (radii > 0)).all():
        raise CanvasError(f"radii are {list(radii_um)}; expected lengths in µm above 0")
    return radii


def _g(near: np.ndarray, border: np.ndarray, radii: np.ndarray) -> Float64[np.ndarray, " r"]:
    """G(r): share of the cells that have a target within r, of those that are r or more from the border."""
    inner = np.array([(border >= radius).sum() for radius in radii], np.float64)
    near_count = np.array([((near <= radius) & (border >= radius)).sum() for radius in radii], np.float64)
    every = np.array([(near <= radius).mean() for radius in radii])
    # Where no cell is that far from the border all of them are counted, which is a lower bound.
    return np.where(inner > 0, near_count / np.maximum(inner, 1), every)
