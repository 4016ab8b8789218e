"""Shapes of phantom cells, fibres and baskets: solid somas, processes sampled along their paths."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy.ndimage import label

from canvas_fm.data.phantom.cells import Kind, Processes
from canvas_fm.data.zyx import Zyx

_STEP_UM = 0.7
POLAR_AXIS = np.array(
    [0.14, 0.93, 0.34]
)  # common to all cells of a marker: a nucleus' dendrites run side by side


class Samples(NamedTuple):
    """Light samples along thin structures: positions in µm, and brightness × µm³ of each."""

    um: Float64[np.ndarray, "m 3"]
    light: Float64[np.ndarray, " m"]


class Shape(NamedTuple):
    """One cell rasterised: `solid` is the soma's brightness, `mask` its voxels; both start at `origin`."""

    origin: np.ndarray
    solid: Float64[np.ndarray, "z y x"]
    mask: np.ndarray
    samples: Samples


class Local(NamedTuple):
    """Conversion between a patch's voxels and micrometres from the cell's centre."""

    centre_um: np.ndarray
    voxel_um: np.ndarray
    origin: np.ndarray

    def away(self, voxel: np.ndarray) -> np.ndarray:
        return (voxel + self.origin) * self.voxel_um - self.centre_um

    def voxel(self, away_um: np.ndarray) -> np.ndarray:
        return np.rint((away_um + self.centre_um) / self.voxel_um).astype(np.int64) - self.origin


def draw_cell(
    kind: Kind, centre_um: np.ndarray, voxel_um: np.ndarray, shape_zyx: Zyx, random: np.random.Generator
) -> Shape:
    """A cell around a centre in a volume, rasterised whole; reproducible by random stream.

    Its mask lies inside the volume and is in one piece (corners count), whatever the border cuts off.
    """
    counts = kind.counts * random.lognormal(0, kind.spread)
    reach_um = max(kind.territory_um if kind.mask_processes else 0, kind.reach_um) + 1
    origin = np.floor((centre_um - reach_um) / voxel_um).astype(np.int64)
    size = np.ceil((centre_um + reach_um) / voxel_um).astype(np.int64) - origin + 1
    local = Local(centre_um, voxel_um, origin)
    z, y, x = (
        ((np.arange(n) + o) * v - c).reshape([-1 if at == axis else 1 for at in range(3)])
        for axis, (n, o, v, c) in enumerate(zip(size, origin, voxel_um, centre_um, strict=True))
    )
    distance = np.sqrt(z * z + y * y + x * x)
    depth = _depth(kind, z, y, x, distance, random)
    solid = counts * kind.soma * np.clip(depth / 1.2 + 0.5, 0, 1)
    for spot in _directions(random.poisson(kind.dark_spots), random):
        a, b, c = spot * random.uniform(0, 0.5) * kind.radius_um[0]
        falloff = [np.exp((axis - at) ** 2 / (-2 * 1.3**2)) for axis, at in ((z, a), (y, b), (x, c))]
        solid *= 1 - random.uniform(0.25, 0.5) * falloff[0] * falloff[1] * falloff[2]
    mask = (depth >= 0) & (distance <= kind.territory_um)
    mask[tuple(local.voxel(np.zeros(3)))] = True
    if kind.processes is None:
        _keep_piece(mask, local, shape_zyx)
        return Shape(origin, solid, mask, Samples(np.empty((0, 3)), np.empty(0)))
    courses, radii = _arbour(kind.processes, float(np.mean(kind.radius_um)), random)
    if kind.mask_processes:
        _mark_courses(mask, courses, radii, local, kind.territory_um)
    _keep_piece(mask, local, shape_zyx)
    um, light = [], []
    for course, radius in zip(courses, radii, strict=True):
        live = (radius > 0) & (np.linalg.norm(course, axis=2) < kind.processes.reach_um)
        width = radius[live]
        uneven = np.abs(1 + 0.25 * random.standard_normal(width.shape))
        um.append(course[live] + random.standard_normal((len(width), 3)) * (0.4 * width[:, None]) + centre_um)
        light.append(counts * kind.processes.gain * np.pi * _STEP_UM * width**2 * uneven)
    return Shape(origin, solid, mask, Samples(np.concatenate(um), np.concatenate(light)))


def _depth(
    kind: Kind, z: np.ndarray, y: np.ndarray, x: np.ndarray, distance: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Depth below the soma's surface in µm (negative outside); the surface is an ellipsoid with bumps."""
    radius = random.uniform(*kind.radius_um)
    longest = random.uniform(1, kind.elongation)
    along = _directions(1, random)[0]
    if kind.processes is not None and kind.processes.polar:
        along = along + 2.5 * POLAR_AXIS
        along /= np.linalg.norm(along)
    # An ellipsoid of revolution of unchanged volume: q = |a|² / w² + (a · along)² (1 / l² − 1 / w²).
    wide, long = longest ** (-1 / 3), longest ** (2 / 3)
    lengthwise = along[0] * z + along[1] * y + along[2] * x
    reduced = np.sqrt(np.clip((distance / wide) ** 2 + lengthwise**2 * (long**-2 - wide**-2), 0, None))
    if not kind.roughness:
        return radius - reduced
    outline = np.ones_like(distance)
    for bump in _directions(4, random) * kind.roughness ** (1 / 3):
        toward = (bump[0] * z + bump[1] * y + bump[2] * x) / np.maximum(distance, 1e-9)
        outline += random.standard_normal() * toward * toward * toward
    return radius * np.clip(outline, 0.7, 1.3) - reduced


def _directions(n: int, random: np.random.Generator) -> np.ndarray:
    drawn = random.standard_normal((n, 3))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def _arbour(
    processes: Processes, soma_um: float, random: np.random.Generator
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """By generation: paths (p, steps, 3) in µm from the centre, radii (p, steps), 0 beyond the end."""
    count = int(random.integers(processes.count[0], processes.count[1] + 1))
    heading = _spread_directions(count, random)
    if processes.polar:
        side = np.sign(heading @ POLAR_AXIS)[:, None]
        heading = (1 - processes.polar) * heading + processes.polar * side * POLAR_AXIS
    length = random.uniform(*processes.length_um, count)
    start = heading / np.linalg.norm(heading, axis=1, keepdims=True) * soma_um * 0.5
    root = np.full(count, processes.radius_um)
    courses, radii = [], []
    for twigs in (*processes.branches, 0.0):
        course, radius = _grow(start, heading, length, root, processes.curl, random)
        courses.append(course)
        radii.append(radius)
        children = random.poisson(twigs, len(length)) if twigs else np.zeros(len(length), int)
        parent = np.repeat(np.arange(len(length)), children)
        if not len(parent):
            break
        at = (length[parent] * random.uniform(0.25, 0.85, len(parent)) / _STEP_UM).astype(int)
        start = course[parent, at]
        forward = course[parent, at] - course[parent, np.maximum(at - 2, 0)]
        forward /= np.maximum(np.linalg.norm(forward, axis=1, keepdims=True), 1e-9)
        heading = forward + 0.9 * _directions(len(parent), random)
        root = radius[parent, at]
        length = length[parent] * random.uniform(0.4, 0.75, len(parent))
    return courses, radii


def _spread_directions(n: int, random: np.random.Generator) -> np.ndarray:
    """Well-separated directions: the best of each of n groups."""
    chosen = _directions(1, random)
    while len(chosen) < n:
        tried = _directions(6, random)
        chosen = np.concatenate([chosen, tried[[np.argmin((tried @ chosen.T).max(axis=1))]]])
    return chosen


def _grow(
    start: np.ndarray,
    heading: np.ndarray,
    length: np.ndarray,
    root_um: np.ndarray,
    curl: float,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Random-walk paths along headings with tapering radii, zero beyond each path's length."""
    steps = int(np.ceil(length.max() / _STEP_UM)) + 1
    turns = np.cumsum(random.standard_normal((len(length), steps, 3)) * curl * np.sqrt(_STEP_UM), axis=1)
    along = heading[:, None, :] / np.linalg.norm(heading, axis=1)[:, None, None] + turns
    along /= np.linalg.norm(along, axis=2, keepdims=True)
    along[:, 0] = 0
    course = start[:, None, :] + np.cumsum(along, axis=1) * _STEP_UM
    done = np.arange(steps)[None, :] * _STEP_UM / length[:, None]
    return course, np.where(done <= 1, root_um[:, None] * (1 - 0.5 * np.clip(done, 0, 1)), 0.0)


def _mark_courses(
    mask: np.ndarray, courses: list[np.ndarray], radii: list[np.ndarray], local_um: Local, territory_um: float
) -> None:
    """Mark the voxels along processes, up to where each leaves the cell's territory."""
    for course, radius in zip(courses, radii, strict=True):
        voxel = local_um.voxel(course)
        inside = (np.linalg.norm(local_um.away(voxel), axis=-1) <= territory_um) & (radius > 0)
        inside[:, 0] &= mask[tuple(np.where(inside[:, :1], voxel[:, 0], 0).T)]
        inside = np.logical_and.accumulate(inside, axis=1)
        mask[tuple(voxel[inside].T)] = True


def _keep_piece(mask: np.ndarray, local: Local, shape_zyx: Zyx) -> None:
    """Clip the mask to the volume and keep the connected component that holds the centre."""
    low, high = -local.origin, np.asarray(shape_zyx) - local.origin
    if (low <= 0).all() and (high >= mask.shape).all():
        return
    inside = np.zeros_like(mask)
    box = tuple(slice(max(a, 0), max(b, 0)) for a, b in zip(low, high, strict=True))
    inside[box] = mask[box]
    pieces, _ = label(inside, np.ones((3, 3, 3)))
    mask[...] = pieces == pieces[tuple(local.voxel(np.zeros(3)))]


def draw_fibres(
    centres_um: Float64[np.ndarray, "n 3"], counts: float, random: np.random.Generator
) -> Samples:
    """A thin fibre through each centre, within 75 µm of it, with a bead every few micrometres."""
    n = len(centres_um)
    heading = _directions(n, random) * np.array([0.5, 1.0, 1.0])
    both = np.concatenate([heading, -heading])
    course, radius = _grow(
        np.zeros((2 * n, 3)), both, random.uniform(30, 75, 2 * n), np.ones(2 * n), 0.035, random
    )
    phase = np.arange(course.shape[1]) * _STEP_UM + random.uniform(0, 9, (2 * n, 1))
    beads = 0.35 + 2.2 * np.clip(np.sin(2 * np.pi * phase / random.uniform(5, 8, (2 * n, 1))), 0, 1) ** 6
    course += np.concatenate([centres_um, centres_um])[:, None, :]
    live = radius > 0
    return Samples(course[live], counts * _STEP_UM * beads[live])


def draw_baskets(
    centres_um: Float64[np.ndarray, "n 3"], counts: float, random: np.random.Generator
) -> Samples:
    """Boutons around a dark cell body at each centre."""
    owner = np.repeat(np.arange(len(centres_um)), random.integers(14, 30, len(centres_um)))
    radius = random.uniform(5.5, 7.5, len(centres_um))[owner] * random.uniform(0.92, 1.08, len(owner))
    shell = _directions(len(owner), random) * radius[:, None]
    return Samples(centres_um[owner] + shell, counts * random.lognormal(0, 0.4, len(owner)) * 4.0)
