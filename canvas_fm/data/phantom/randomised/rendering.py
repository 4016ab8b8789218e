"""Vectorised rendering of cells, processes, fibres and vessels of a randomised phantom on one grid.

Positions and lengths are micrometres from the centre of the first voxel, order z, y, x.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int32
from scipy.spatial import cKDTree

from canvas_fm.data.phantom.fields import overlap
from canvas_fm.data.zyx import Zyx, ZyxUm

_STEP_UM = 1.2
_CHUNK = 4_000_000  # values that are worked out at once
_EDGE_UM = 0.8  # a surface is this soft


class Ellipsoids(NamedTuple):
    """Ellipsoids of revolution: centres, half axes along and across, directions."""

    centre_um: Float64[np.ndarray, "n 3"]
    long_um: Float64[np.ndarray, " n"]
    wide_um: Float64[np.ndarray, " n"]
    along: Float64[np.ndarray, "n 3"]


class Grid(NamedTuple):
    """The voxel grid of a rendering."""

    shape_zyx: Zyx
    voxel_um: ZyxUm

    @property
    def extent_um(self) -> np.ndarray:
        return np.asarray(self.shape_zyx) * self.voxel_um


def keep_apart(places_um: Float64[np.ndarray, "n 3"], least_um: Float64[np.ndarray, " n"]) -> np.ndarray:
    """Greedy thinning: keep positions at least the mean of two spacings apart, first come first served."""
    kept = np.ones(len(places_um), bool)
    if not len(places_um):
        return kept
    pairs = cKDTree(places_um).query_pairs(float(least_um.max()), output_type="ndarray")
    apart = np.linalg.norm(places_um[pairs[:, 0]] - places_um[pairs[:, 1]], axis=1)
    pairs = pairs[apart < least_um[pairs].mean(axis=1)]
    for first, second in pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))].tolist():
        if kept[first]:
            kept[second] = False
    return kept


def bodies(
    centre_um: Float64[np.ndarray, "n 3"],
    diameter_um: Float64[np.ndarray, " n"],
    elongation: float,
    random: np.random.Generator,
) -> Ellipsoids:
    """Ellipsoids of given mean diameters, stretched by up to `elongation` in random directions."""
    stretch = random.uniform(1, elongation, len(centre_um)) if elongation > 1 else np.ones(len(centre_um))
    radius = diameter_um / 2
    return Ellipsoids(
        centre_um,
        radius * stretch ** (2 / 3),
        radius * stretch ** (-1 / 3),
        directions(len(centre_um), random),
    )


def directions(n: int, random: np.random.Generator) -> Float64[np.ndarray, "n 3"]:
    """Random unit vectors, uniform over the sphere."""
    drawn = random.standard_normal((n, 3))
    return drawn / np.maximum(np.linalg.norm(drawn, axis=1, keepdims=True), 1e-9)


def paint(
    light: Float32[np.ndarray, "z y x"],
    shapes: Ellipsoids,
    brightness: Float64[np.ndarray, " n"],
    grid: Grid,
    *,
    profile: str = "solid",
    mask: Int32[np.ndarray, "z y x"] | None = None,
) -> None:
    """Add ellipsoids to the light, thick planes averaged over depth; number them from 1 in `mask`.

    A voxel is in a cell's mask where at least half of it lies inside, and each cell has its centre's voxel.
    """
    if not len(brightness):
        return
    voxel = np.asarray(grid.voxel_um)
    reach_um = float(shapes.long_um.max()) + 2 * _EDGE_UM
    fine = max(1, int(np.ceil(voxel[0] / 2.0)))
    half = np.ceil(reach_um / voxel).astype(int)
    size = 2 * half + 1
    depths = (np.arange(size[0] * fine) - (size[0] * fine - 1) / 2) / fine * voxel[0]
    rows, columns = ((np.arange(size[a]) - half[a]) * voxel[a] for a in (1, 2))
    at = np.floor(shapes.centre_um / voxel + 0.5).astype(int)
    remainder_um = shapes.centre_um - at * voxel
    step = max(1, _CHUNK // int(fine * size.prod()))
    for start in range(0, len(brightness), step):
        part = slice(start, start + step)
        away = [
            axis.astype(np.float32) - remainder_um[part, a, None].astype(np.float32)
            for a, axis in enumerate((depths, rows, columns))
        ]
        inside = _depth_inside(away, shapes, part)
        body = np.clip(inside / _EDGE_UM + 0.5, 0, 1)
        covered = body.reshape(len(body), size[0], fine, size[1], size[2]).mean(axis=2)
        if profile != "solid":
            body *= _radial(inside, shapes.wide_um[part], profile)
            lit = body.reshape(len(body), size[0], fine, size[1], size[2]).mean(axis=2)
        else:
            lit = covered
        for k in range(len(body)):
            number = start + k
            into, of = overlap(grid.shape_zyx, size, at[number] - half)
            light[into] += lit[k][of] * np.float32(brightness[number])
            if mask is not None:
                window = mask[into]
                window[(covered[k][of] >= 0.5) & (window == 0)] = number + 1
    if mask is not None:
        inner = np.all((at >= 0) & (at < grid.shape_zyx), axis=1)
        mask[tuple(at[inner].T)] = np.flatnonzero(inner) + 1


def _depth_inside(away: list[np.ndarray], shapes: Ellipsoids, part: slice) -> Float32[np.ndarray, "n z y x"]:
    """Approximate depth below each ellipsoid's surface, in µm (negative outside)."""
    z, y, x = away[0][:, :, None, None], away[1][:, None, :, None], away[2][:, None, None, :]
    a, b, c = (shapes.along[part, axis].astype(np.float32)[:, None, None, None] for axis in range(3))
    wide, long = (r[part].astype(np.float32)[:, None, None, None] for r in (shapes.wide_um, shapes.long_um))
    lengthwise = a * z + b * y + c * x
    lengthwise *= lengthwise
    reduced = z * z + y * y + x * x
    reduced = reduced + lengthwise * ((wide / long) ** 2 - 1)
    np.sqrt(np.maximum(reduced, 0, out=reduced), out=reduced)
    return wide - reduced


def _radial(
    inside: Float32[np.ndarray, "n z y x"], wide_um: np.ndarray, profile: str
) -> Float32[np.ndarray, "n z y x"]:
    """Radial brightness profile: `domed` is brightest in the middle, a `ring` has a dimmer core."""
    depth = np.clip(inside / wide_um.astype(np.float32)[:, None, None, None], 0, 1)
    return 0.45 + 0.75 * depth if profile == "domed" else 1.1 - 0.55 * np.clip(2 * depth - 0.6, 0, 1)


def walks(
    starts_um: Float64[np.ndarray, "n 3"],
    heading: Float64[np.ndarray, "n 3"],
    length_um: Float64[np.ndarray, " n"],
    curl: float,
    random: np.random.Generator,
) -> tuple[Float64[np.ndarray, "n steps 3"], np.ndarray]:
    """Random-walk paths from each start, and the mask of samples within each path's length."""
    steps = int(np.ceil(length_um.max() / _STEP_UM)) + 1 if len(length_um) else 1
    turns = np.cumsum(random.standard_normal((len(length_um), steps, 3)) * curl * np.sqrt(_STEP_UM), axis=1)
    along = heading[:, None, :] + turns
    along /= np.maximum(np.linalg.norm(along, axis=2, keepdims=True), 1e-9)
    course = starts_um[:, None, :] + np.cumsum(along, axis=1) * _STEP_UM
    return course, np.arange(steps)[None, :] * _STEP_UM <= length_um[:, None]


def splat(
    light: Float32[np.ndarray, "z y x"],
    places_um: Float64[np.ndarray, "m 3"],
    amount: Float64[np.ndarray, " m"],
    grid: Grid,
) -> None:
    """Add light (brightness × µm³) at positions to the eight voxels around each, by trilinear weights."""
    place = places_um / np.asarray(grid.voxel_um)
    inside = np.all((place >= 0) & (place < np.asarray(grid.shape_zyx) - 1), axis=1)
    place, amount = place[inside], amount[inside] / np.prod(grid.voxel_um)
    cell = np.floor(place).astype(np.int64)
    part = place - cell
    index = np.ravel_multi_index(tuple(cell.T), grid.shape_zyx) if len(cell) else np.empty(0, np.int64)
    strides = (grid.shape_zyx[1] * grid.shape_zyx[2], grid.shape_zyx[2], 1)
    for corner in itertools.product((0, 1), repeat=3):
        share = amount * np.prod(np.where(np.array(corner), part, 1 - part), axis=1)
        shift = sum(c * s for c, s in zip(corner, strides, strict=True))
        light += (
            np.bincount(index + shift, share, minlength=light.size).reshape(light.shape).astype(np.float32)
        )
