"""FindMaxima: one point a cell from a heat map; non-maximum suppression of points.

A voxel is a *maximum* iff its heat is above the threshold and no voxel of its neighbourhood is hotter: the
paper's maxpool3d(H) == H and H > τ. The neighbourhood is all voxels within the radius, a ball in µm: nothing
is rounded to voxels, and outside the map there is nothing. Maxima in each other's neighbourhood are equally
hot. They, and all that are linked so, form one *plateau*, which gives one point: its voxel nearest to its
centre of mass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Literal

import numpy as np
from jaxtyping import Float, Float64, Int, Int64, Real
from scipy.spatial import cKDTree

from canvas_fm.errors import CanvasError

Radius = Sequence[float] | Float64[np.ndarray, "3"]
Shape = Literal["ball", "box"]
Neighbours = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (voxels, offsets) -> indices (voxels, offsets)
_GATHER = 1 << 15  # neighbours looked at in one go


def neighbourhood(radius_zyx: Radius, shape: Shape = "ball") -> Int64[np.ndarray, "k 3"]:
    """Offsets z, y, x of a voxel's neighbours, nearest first, itself excluded.

    "ball": (dz/rz)² + (dy/ry)² + (dx/rx)² ≤ 1, the paper's d_min taken in µm; "box": |dz| ≤ rz and so on,
    as in a max-pooling window.
    """
    radius = np.asarray(radius_zyx, np.float64)
    if (
        radius.shape != (3,)
        or not np.isfinite(radius).all()
        or (radius <= 0).any()
        or shape not in ("ball", "box")
    ):
        raise CanvasError(
            f"radius_zyx is {radius.tolist()} and shape {shape!r}; expected three positive numbers of "
            "voxels, and ball or box"
        )
    # A radius is a float: 12 µm over 6 µm planes has to reach two planes, whatever the last bit of 12 / 6.
    half_size = np.floor(radius * (1 + 1e-9)).astype(int)
    offsets = np.array(list(product(*(range(-n, n + 1) for n in half_size))), np.int64)
    distance = np.sum((offsets / radius) ** 2, axis=1)
    inside = (distance > 0) & ((distance <= 1 + 1e-9) | (shape == "box"))
    return offsets[inside][np.argsort(distance[inside], kind="stable")]


def find_maxima(
    heat: Float[np.ndarray, "z y x"],
    radius_zyx: Radius,
    threshold: float,
    *,
    shape: Shape = "ball",
) -> tuple[Int64[np.ndarray, "n 3"], Float[np.ndarray, " n"]]:
    """Local maxima above `threshold`, one a plateau: positions and values, sorted by position.

    `radius_zyx` is in voxels, any positive numbers: µm over the voxel size. NaN counts as outside.
    """
    maxima = find_all_maxima(heat, radius_zyx, threshold, shape=shape)
    points = maxima[one_per_plateau(maxima, radius_zyx, shape=shape)]
    return points, heat[tuple(points.T)]


def find_all_maxima(
    heat: Float[np.ndarray, "z y x"],
    radius_zyx: Radius,
    threshold: float,
    *,
    shape: Shape = "ball",
) -> Int64[np.ndarray, "n 3"]:
    """Every voxel that is a local maximum, all voxels of a plateau, sorted by position.

    Few voxels are above the threshold and most of those fall at the first neighbours asked, so neighbours are
    looked at only for the voxels still in the running: 0.5 % foreground costs little more than the threshold.
    """
    if heat.ndim != 3:
        raise CanvasError(f"the heat map has shape {heat.shape}; expected (z, y, x)")
    offsets = neighbourhood(radius_zyx, shape)
    heat = np.ascontiguousarray(heat)
    strides = np.array([heat.shape[1] * heat.shape[2], heat.shape[2], 1])
    flat, last = heat.reshape(-1), np.asarray(heat.shape) - 1
    at = np.flatnonzero(flat > threshold)
    place = np.stack(np.unravel_index(at, heat.shape), axis=1)
    half_size = np.abs(offsets).max(axis=0, initial=0)
    rim = ((place < half_size) | (place > last - half_size)).any(axis=1)

    def inner_neighbours(at: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        return at[:, None] + offsets @ strides

    def rim_neighbours(at: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        # What would lie outside is moved to the border: that is another neighbour of the same voxel, nearer.
        place = np.stack(np.unravel_index(at, heat.shape), axis=1)
        return sum(np.clip(place[:, None, a] + offsets[:, a], 0, last[a]) * strides[a] for a in range(3))

    inner = _without_higher_neighbour(flat, at[~rim], offsets, inner_neighbours)
    flat_index = np.sort(
        np.concatenate([inner, _without_higher_neighbour(flat, at[rim], offsets, rim_neighbours)])
    )
    return np.stack(np.unravel_index(flat_index, heat.shape), axis=1)


def _without_higher_neighbour(
    flat: np.ndarray, at: np.ndarray, offsets: np.ndarray, neighbours: Neighbours
) -> np.ndarray:
    """Mask of voxels `at` without a higher neighbour."""
    first = 0
    while first < len(offsets) and len(at):
        # One neighbour at a time while there are many voxels, all the rest at once when few are left.
        count = min(max(1, _GATHER // len(at)), len(offsets) - first)
        neighbour_values = flat[neighbours(at, offsets[first : first + count])]
        at = at[~(neighbour_values > flat[at][:, None]).any(axis=1)]
        first += count
    return at


def one_per_plateau(
    maxima: Int[np.ndarray, "n 3"], radius_zyx: Radius, *, shape: Shape = "ball"
) -> Int64[np.ndarray, " m"]:
    """Of each plateau keep the voxel nearest to its centre of mass, the first at a tie.

    Maxima of tiles may be put together before: a plateau that crosses tiles is still one.
    """
    if not len(maxima):
        return np.empty(0, np.int64)
    pairs = _linked(maxima, np.asarray(radius_zyx, np.float64), shape)
    n = len(maxima)
    if not len(pairs):
        return np.arange(n)
    from scipy.sparse import coo_array  # plateaus are rare, and half a tenth of a second
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    plateaus, plateau = connected_components(links, directed=False)
    count = np.bincount(plateau, minlength=plateaus)
    # Whole numbers throughout: n·x − Σx has the same order as x − mean, and no rounding decides a tie.
    off = np.stack(
        [count[plateau] * c - np.bincount(plateau, c, plateaus).astype(np.int64)[plateau] for c in maxima.T],
        axis=1,
    )
    far = np.sum(off**2, axis=1)
    order = np.lexsort((*maxima.T[::-1], far, plateau))
    first = np.flatnonzero(np.diff(plateau[order], prepend=-1))
    return np.sort(order[first])


def _linked(maxima: np.ndarray, radius: np.ndarray, shape: Shape) -> np.ndarray:
    """Pairs (i, j) of maxima that suffice to connect each plateau.

    Voxels side by side first. A voxel between two others on every axis adds nothing then, because one beside
    it is nearer to whatever it could be linked to: only the plateaus' surfaces are searched at full radius.
    """
    box = maxima.max(axis=0) - maxima.min(axis=0) + 2
    strides = np.array([box[1] * box[2], box[2], 1])
    key = (maxima - maxima.min(axis=0)) @ strides
    order = np.argsort(key, kind="stable")
    ranked = key[order]
    within = np.ones(len(maxima), bool)
    pairs = []
    for axis in np.flatnonzero(radius >= 1):
        next_to = np.minimum(np.searchsorted(ranked, ranked + strides[axis]), len(ranked) - 1)
        beside = ranked[next_to] == ranked + strides[axis]
        left, right = order[beside], order[next_to[beside]]
        pairs.append(np.stack([left, right], axis=1))
        for side in (left, right):
            has = np.zeros(len(maxima), bool)
            has[side] = True
            within &= has
    surface = np.flatnonzero(~within)
    # Searched slightly wide, then decided exactly as in `neighbourhood`.
    scaled = maxima[surface] / radius
    wide = cKDTree(scaled).query_pairs(1 + 1e-6, p=2.0 if shape == "ball" else np.inf, output_type="ndarray")
    gap = scaled[wide[:, 0]] - scaled[wide[:, 1]]
    adjacent = (
        np.sum(gap**2, axis=1) <= 1 + 1e-9 if shape == "ball" else np.all(np.abs(gap) <= 1 + 1e-9, axis=1)
    )
    return np.concatenate([*pairs, surface[wide[adjacent]]])


def refine_positions(
    heat: Float[np.ndarray, "z y x"], maxima_zyx: Int[np.ndarray, "n 3"]
) -> Float64[np.ndarray, "n 3"]:
    """Sub-voxel positions: vertex of the parabola through a maximum and its neighbours, by axis.

    Moves by at most half a voxel, not at all along an axis where the map ends or does not curve down.
    """
    place = np.asarray(maxima_zyx, np.int64)
    refined = place.astype(np.float64)
    middle = heat[tuple(place.T)].astype(np.float64)
    for axis, size in enumerate(heat.shape):
        inner = (place[:, axis] > 0) & (place[:, axis] < size - 1)
        step = np.zeros(3, np.int64)
        step[axis] = 1
        before, after = (
            np.where(inner, heat[tuple((place + sign * step * inner[:, None]).T)], 0).astype(np.float64)
            for sign in (-1, 1)
        )
        curve = before - 2 * middle + after
        down = inner & (curve < 0)
        shift = np.divide(before - after, 2 * curve, out=np.zeros(len(place)), where=down)
        refined[:, axis] += np.clip(shift, -0.5, 0.5)
    return refined


def suppress(
    points: Real[np.ndarray, "n d"], score: Real[np.ndarray, " n"], radius: float
) -> Int64[np.ndarray, " m"]:
    """Indices of the points that stay after greedy non-maximum suppression within `radius` (≤).

    Positions and radius in the same unit, µm; equal scores go by row. In rounds over the neighbouring pairs:
    a point stays as soon as no better neighbour is undecided, which is what one at a time would give.
    """
    n = len(points)
    if n == 0:
        return np.empty(0, np.int64)
    rank = np.empty(n, np.int64)
    rank[np.argsort(-np.asarray(score), kind="stable")] = np.arange(n)
    pairs = cKDTree(points).query_pairs(radius, output_type="ndarray")
    swapped = rank[pairs[:, 0]] > rank[pairs[:, 1]]
    pairs[swapped] = pairs[swapped, ::-1]
    stays, open_ = np.zeros(n, bool), np.ones(n, bool)
    while open_.any():
        beaten = np.zeros(n, bool)
        beaten[pairs[:, 1]] = True
        now = open_ & ~beaten
        stays |= now
        open_ &= ~now
        open_[pairs[now[pairs[:, 0]], 1]] = False
        pairs = pairs[open_[pairs].all(axis=1)]
    return np.flatnonzero(stays)
