"""Null models of where cells lie: moved together (toroidal shifts), or redrawn one by one in box or region.

A shift keeps how the cells lie to each other and breaks how they lie to the other population; a shuffle keeps
nothing but their number. Both keep every cell in its box or region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64, Int64, Integer

from canvas_fm.data.zyx import ZyxUm
from canvas_fm.errors import CanvasError

Model = Literal["shift", "shuffle"]
MODELS: tuple[Model, ...] = ("shift", "shuffle")
_KNOWN = 20  # points from which distances tell a lattice
_ROUNDING = 1e-6  # µm
_MORTON = 8_000_000  # voxels up to which neighbours are kept together along all axes, not along x alone


@dataclass(frozen=True)
class Lattice:
    """The voxels' centres on which detections lie: what a null model moves has to lie there too.

    Between such points not every distance occurs. Draws at any position have fewer pairs within 8 µm than
    points of 6 × 1.62 × 1.62 µm: of 40 pairs of independent populations 10 had p ≤ .05.
    """

    origin_um: Float64[np.ndarray, " 3"]
    spacing_um: Float64[np.ndarray, " 3"]  # NaN for an axis along which the points lie anywhere

    @classmethod
    def of(cls, um: Float64[np.ndarray, "n 3"]) -> Lattice:
        """That of the points, found by their distances along each axis; of under 20 points none is known."""
        spacing = np.full(3, np.nan)
        if len(um) < _KNOWN:
            return cls(np.zeros(3), spacing)
        for axis in range(3):
            apart = np.diff(np.unique(um[:, axis]))
            apart = apart[apart > _ROUNDING]  # of one position, told in two floats
            steps = apart / apart.min() if len(apart) > 1 else np.array([0.5])
            if (np.abs(steps - np.rint(steps)) <= 1e-3).all():
                # Of many steps the mean is exact where one is rounded.
                spacing[axis] = apart.sum() / np.rint(steps).sum()
        return cls(um.min(0), spacing)

    def nearest(self, um: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "n 3"]:
        """The lattice's point at each position."""
        known = np.isfinite(self.spacing_um)
        spacing = np.where(known, self.spacing_um, 1.0)
        return np.where(known, self.origin_um + np.rint((um - self.origin_um) / spacing) * spacing, um)


@dataclass(frozen=True)
class Box:
    """A box in µm; shifts leave at one side and come in at the other."""

    low_um: tuple[float, float, float]
    high_um: tuple[float, float, float]

    @classmethod
    def around(cls, *populations: Float64[np.ndarray, "_ 3"]) -> Box:
        """The smallest box that holds all points, which have to span each axis or lie in one plane.

        Of points at voxels' centres it holds the whole voxels.
        """
        um = np.concatenate(populations)
        if not len(um):
            raise CanvasError("there are no cells; nothing to compare")
        voxel = np.nan_to_num(Lattice.of(um).spacing_um)
        low, high = um.min(0) - voxel / 2, um.max(0) + voxel / 2
        z, y, x = ((float(a), float(b if b > a else a + 1.0)) for a, b in zip(low, high, strict=True))
        return cls((z[0], y[0], x[0]), (z[1], y[1], x[1]))

    @property
    def size_um(self) -> Float64[np.ndarray, " 3"]:
        return np.subtract(self.high_um, self.low_um)

    @property
    def volume_um3(self) -> float:
        return float(np.prod(self.size_um))

    def holds(self, um: Float64[np.ndarray, "n 3"]) -> np.ndarray:
        """Which points lie inside, the border counted in."""
        return np.all((um >= self.low_um) & (um <= self.high_um), axis=1)

    def moved(
        self, um: Float64[np.ndarray, "n 3"], model: Model, random: np.random.Generator
    ) -> Float64[np.ndarray, "n 3"]:
        """One draw of the null model."""
        if model == "shuffle":
            return np.asarray(self.low_um) + random.random(um.shape) * self.size_um
        step = random.random(3) * self.size_um
        return np.asarray(self.low_um) + np.mod(um - self.low_um + step, self.size_um)


@dataclass(frozen=True)
class Mask:
    """Regions on a grid: each voxel holds the number of its region, negative for none.

    A shift moves the cells of a region along a curve through its voxels (in Morton order), so that they stay
    inside whatever its form; neighbours mostly stay neighbours.
    """

    region: Integer[np.ndarray, "z y x"]
    voxel_um: ZyxUm

    @cached_property
    def _order(self) -> Int64[np.ndarray, " v"]:
        """Flat indices of all voxels of regions, by region and then along the curve."""
        flat = self.region.ravel()
        inside = np.flatnonzero(flat >= 0)
        if not len(inside):
            raise CanvasError("the mask is empty: no voxel of it belongs to a region")
        if len(inside) <= _MORTON:
            inside = inside[np.argsort(morton(inside, self.region.shape), kind="stable")]
        return inside[np.argsort(flat[inside], kind="stable")]

    @cached_property
    def _bounds(self) -> Int64[np.ndarray, " k"]:
        """Index of each region's first voxel in the order, and the end."""
        sizes = np.bincount(self.region.ravel()[self._order])
        return np.concatenate([[0], np.cumsum(sizes)])

    @cached_property
    def _place(self) -> Int64[np.ndarray, " n"]:
        """Place in the order of each voxel of the grid, -1 outside."""
        place = np.full(self.region.size, -1, np.int64)
        place[self._order] = np.arange(len(self._order))
        return place

    @property
    def volume_um3(self) -> float:
        return len(self._order) * float(np.prod(self.voxel_um))

    def at(self, um: Float64[np.ndarray, "n 3"]) -> Int64[np.ndarray, " n"]:
        """Flat index of the voxel of each point, -1 outside the grid."""
        index = np.floor(um / np.asarray(self.voxel_um)).astype(np.int64)
        inside = np.all((index >= 0) & (index < self.region.shape), axis=1)
        flat = np.full(len(um), -1, np.int64)
        flat[inside] = np.ravel_multi_index(tuple(index[inside].T), self.region.shape)
        return flat

    def holds(self, um: Float64[np.ndarray, "n 3"]) -> np.ndarray:
        """Which points lie in a region."""
        flat = self.at(um)
        return (flat >= 0) & (self.region.ravel()[flat] >= 0)

    def moved(
        self, um: Float64[np.ndarray, "n 3"], model: Model, random: np.random.Generator
    ) -> Float64[np.ndarray, "n 3"]:
        """One draw of the null model, of points that lie in regions."""
        flat = self.at(um)
        assert (flat >= 0).all()
        region = self.region.ravel()[flat].astype(np.int64)
        start = self._bounds[region]
        size = self._bounds[region + 1] - start
        if model == "shift":
            rank = self._place[flat] - start
            # One step for all regions, as a share of each: its cells move together.
            rank = (rank + (random.random() * size).astype(np.int64)) % size
            offset = um / np.asarray(self.voxel_um)
            offset = np.mod(offset - np.floor(offset) + random.random(3), 1.0)
        else:
            rank = (random.random(len(um)) * size).astype(np.int64)
            offset = random.random(um.shape)
        voxel = np.stack(np.unravel_index(self._order[start + rank], self.region.shape), axis=1)
        return (voxel + offset) * np.asarray(self.voxel_um)


Domain = Box | Mask


def along_curve(um: Float64[np.ndarray, "n 3"]) -> Int64[np.ndarray, " n"]:
    """An order in which neighbours follow each other, so that searches find in the cache what they read."""
    low = um.min(0)
    cell = np.minimum((um - low) / np.maximum(um.max(0) - low, 1e-9) * 64, 63).astype(np.int64)
    return np.argsort(morton(np.ravel_multi_index(tuple(cell.T), (64, 64, 64)), (64, 64, 64)))


def morton(flat: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Interleaved bits of z, y, x: near in this order is mostly near in space."""
    key = np.zeros(len(flat), np.int64)
    for axis, index in enumerate(np.unravel_index(flat, tuple(shape))):
        for bit in range(int(max(shape)).bit_length()):
            key |= ((index >> bit) & 1) << (3 * bit + 2 - axis)
    return key


def p_greater(observed: Any, draws: Float64[np.ndarray, "k ..."]) -> Any:
    """One-sided p-values: how often a draw is at least as large, the observation among the draws."""
    return (1 + (draws >= observed - 1e-9).sum(0)) / (1 + len(draws))


def p_two_sided(observed: Any, draws: Float64[np.ndarray, "k ..."]) -> Any:
    """Two-sided p-values: twice the smaller tail, at most 1."""
    least = np.minimum((draws >= observed - 1e-9).sum(0), (draws <= observed + 1e-9).sum(0))
    return np.minimum(1.0, 2 * (1 + least) / (1 + len(draws)))


def p_of_curve(observed: Float64[np.ndarray, " r"], draws: Float64[np.ndarray, "k r"]) -> float:
    """p-value of a whole curve: its largest deviation, in deviations of the null curves at that radius."""
    curves = np.concatenate([observed[None], draws])
    spread = np.maximum(curves.std(0), 1e-12)
    deviation = np.nanmax(np.abs(curves - curves.mean(0)) / spread, axis=1)
    return float((deviation[1:] >= deviation[0] - 1e-9).sum() + 1) / len(curves)
