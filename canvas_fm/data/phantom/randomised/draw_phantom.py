"""Randomised phantom brains in memory with exact ground truth, reproducible by seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int32, UInt16
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from canvas_fm.data.phantom.randomised.draw_parameters import (
    BackgroundParameters,
    PhantomParameters,
    draw_background,
    draw_parameters,
)
from canvas_fm.data.phantom.randomised.optics import (
    illumination,
    photograph,
    smooth_noise,
    through_optics,
    tissue,
)
from canvas_fm.data.phantom.randomised.parameter_ranges import CellKind, Families
from canvas_fm.data.phantom.randomised.rendering import (
    Ellipsoids,
    Grid,
    bodies,
    directions,
    keep_apart,
    paint,
    splat,
    walks,
)
from canvas_fm.data.zyx import Zyx, ZyxUm

SHAPE_ZYX: Zyx = (48, 192, 192)
TOLERANCE_UM = {"nuclei": 8.0, "somata": 12.0}
_FEWEST, _MOST = 40, 4000  # cells of one volume, about
_STREAM = 13  # sets these seeds apart from other uses of the same number
_BACKGROUND = 2  # stream of what only the background channel needs: the signal draws as without it


@dataclass(frozen=True)
class RandomPhantom:
    """One phantom brain with its ground truth; cell i has the number i + 1 in the mask.

    With autofluorescence `background` is its second channel, on the same voxels.
    """

    look: PhantomParameters
    voxels: UInt16[np.ndarray, "z y x"]
    mask: Int32[np.ndarray, "z y x"]
    centres_zyx: Float64[np.ndarray, "n 3"]  # in voxels
    diameter_um: Float64[np.ndarray, " n"]
    background: UInt16[np.ndarray, "z y x"] | None = None

    @property
    def tolerance_um(self) -> float:
        """Matching tolerance of this brain's cells, in µm."""
        return TOLERANCE_UM[self.look.kind]


def draw_phantom(
    seed: int,
    *,
    shape_zyx: Zyx = SHAPE_ZYX,
    voxel_um: ZyxUm | None = None,
    kind: CellKind | None = None,
    families: Families | None = None,
) -> RandomPhantom:
    """Draw the phantom brain of a seed; the same arguments give the same voxels and truth.

    `voxel_um` and `kind` are drawn too where they are not given. About a second for the default shape, two
    with autofluorescence; memory is some thirty bytes a voxel.
    """
    families = families or Families()
    random, other_random = (
        np.random.default_rng([_STREAM, seed, *stream]) for stream in ((), (_BACKGROUND,))
    )
    look = draw_parameters(families, random, voxel_um, kind)
    grid = Grid(shape_zyx, look.voxel_um)
    level, inside, lively = tissue(look, grid, random)
    fewest = _FEWEST if families.fewest_cells is None else families.fewest_cells
    centres, diameters = _cells(look, grid, inside * lively, random, fewest)
    shapes = bodies(centres, diameters, look.elongation, random)
    bright = _brightness(look, look.amplitude, shapes, level, grid, random)
    light, mask = np.zeros(shape_zyx, np.float32), np.zeros(shape_zyx, np.int32)
    paint(light, shapes, bright, grid, profile=look.profile, mask=mask)
    if look.processes:
        _grow_processes(light, look, shapes, bright, grid, random)
    cells, behind = light.copy(), None
    _add_distractors(light, look, grid, level, inside, len(centres), random)
    if families.autofluorescence is not None:
        behind = draw_background(families.autofluorescence, look, other_random)
        other = behind.ratio * (light - cells) + behind.bleed_through * cells
        _add_autofluorescence(light, other, behind, look, grid, inside, centres, other_random)
    grain = _grain(look, grid, random)

    def at_camera(emitted: np.ndarray, grain: np.ndarray | float) -> np.ndarray:
        seen = through_optics(emitted, look, grid)
        seen += level * (1 + grain)
        seen *= inside
        seen += look.outside_level * (1 - inside)
        return seen

    signal, lit = at_camera(light, grain), illumination(look, grid, random)
    voxels = photograph(signal * lit, look, random)
    background = None
    if behind is not None:
        shared = behind.texture_shared
        own = _grain(look, grid, other_random)
        seen = at_camera(other, shared * grain + (1 - shared**2) ** 0.5 * own)
        background = photograph(seen * lit, look.of_background(behind), other_random)
    return RandomPhantom(look, voxels, mask, centres / np.asarray(look.voxel_um), diameters, background)


def _cells(
    look: PhantomParameters, grid: Grid, inside: np.ndarray, random: np.random.Generator, fewest: int
) -> tuple[Float64[np.ndarray, "n 3"], Float64[np.ndarray, " n"]]:
    """Cell centres inside the tissue at varying density, at the look's least spacing."""
    expected = max(look.density_mm3 * grid.extent_um.prod() * 1e-9, fewest)
    n = random.poisson(min(expected, 1.5 * _MOST))
    places = random.random((max(n, 1), 3)) * (grid.extent_um - 1e-6) - np.asarray(grid.voxel_um) / 2
    diameters = look.diameter_um * np.exp(look.size_spread * random.standard_normal(len(places)))
    voxel = _voxels(places, grid)
    keep = inside[voxel] > 0.7
    if look.patchiness:
        dense = smooth_noise(grid, (90.0, 90.0, 90.0), random)[voxel]
        keep &= random.random(len(places)) > look.patchiness / (1 + np.exp(-2.5 * dense))
    places, diameters = places[keep], diameters[keep]
    keep = keep_apart(places, look.apart_um * diameters / look.diameter_um)
    return places[keep][:_MOST], diameters[keep][:_MOST]


def _brightness(
    look: PhantomParameters,
    amplitude: float,
    shapes: Ellipsoids,
    level: np.ndarray,
    grid: Grid,
    random: np.random.Generator,
) -> Float64[np.ndarray, " n"]:
    """Brightness of each soma such that its blurred peak is `amplitude` on average.

    Where tissue is brighter cells mostly are too: by a power of the level that is drawn once a volume.
    """
    n = len(shapes.long_um)
    spread = np.exp(look.amplitude_spread * random.standard_normal(n))
    follow = level[_voxels(shapes.centre_um, grid)] ** random.uniform(0, 1) if n else np.empty(0)
    return amplitude * spread * follow / _peak_share(look.diameter_um, look)


def _grow_processes(
    light: np.ndarray,
    look: PhantomParameters,
    shapes: Ellipsoids,
    bright: np.ndarray,
    grid: Grid,
    random: np.random.Generator,
) -> None:
    """Two to eight tapering processes for each soma."""
    owner = np.repeat(np.arange(len(bright)), random.integers(2, 9, len(bright)))
    heading = directions(len(owner), random)
    starts = shapes.centre_um[owner] + heading * shapes.wide_um[owner, None] * 0.8
    length = look.process_um * random.uniform(0.4, 1.3, len(owner))
    course, live = walks(starts, heading, length, 0.12, random)
    taper = 1 - 0.7 * np.arange(course.shape[1])[None, :] / np.maximum(live.sum(axis=1, keepdims=True), 1)
    radius = random.uniform(0.7, 1.8) * taper
    amount = look.processes * bright[owner, None] * np.pi * radius**2 * 2.4
    splat(light, course[live], amount[live], grid)


def _add_distractors(
    light: np.ndarray,
    look: PhantomParameters,
    grid: Grid,
    level: np.ndarray,
    inside: np.ndarray,
    n_cells: int,
    random: np.random.Generator,
) -> None:
    """Distractors: faint shapes, specks, debris, fibres and vessels."""
    millions = light.size / 1e6

    def somewhere(n: float) -> np.ndarray:
        places = random.random((int(n), 3)) * grid.extent_um - np.asarray(grid.voxel_um) / 2
        return places[inside[_voxels(places, grid)] > 0.5]

    def blobs(n: float, diameter_um: float, amplitude: float, profile: str = "solid") -> None:
        places = somewhere(n)
        sizes = diameter_um * np.exp(0.2 * random.standard_normal(len(places)))
        shapes = bodies(places, sizes, 1.5, random)
        share = _peak_share(max(diameter_um, 1.0), look)
        bright = amplitude / share * np.exp(0.5 * random.standard_normal(len(places)))
        paint(light, shapes, bright, grid, profile=profile)

    blobs(
        min(look.faint_share * max(n_cells, 30), _MOST),
        look.diameter_um,
        look.faint * look.amplitude,
        look.profile,
    )
    blobs(look.specks * millions, look.speck_um, look.speck_amplitude * look.amplitude * 0.5)
    blobs(
        random.poisson(look.debris * millions),
        3.0 * look.diameter_um,
        look.amplitude * random.uniform(0.2, 2),
        "domed",
    )
    for n, amplitude, radius, curl in (
        (look.fibres, look.fibre_amplitude, 0.8, 0.03),
        (look.vessels, look.vessel_amplitude, look.vessel_um / 2, 0.02),
    ):
        places = somewhere(random.poisson(n * millions))
        if not len(places):
            continue
        course, live = walks(
            places, directions(len(places), random), random.uniform(60, 320, len(places)), curl, random
        )
        thin = np.zeros_like(light)
        peak = amplitude * look.amplitude if amplitude > 0 else amplitude
        section = np.pi * max(radius, 1.0) ** 2
        splat(thin, course[live], np.full(int(live.sum()), abs(peak) * section * 1.2), grid)
        if radius > 1:
            thin = gaussian_filter(thin, [0.5 * radius / v for v in grid.voxel_um], truncate=3)
        if peak > 0:
            light += thin
        else:
            level *= 1 - 0.9 * np.clip(thin, 0, 1)


def _add_autofluorescence(
    light: np.ndarray,
    other: np.ndarray,
    behind: BackgroundParameters,
    look: PhantomParameters,
    grid: Grid,
    inside: np.ndarray,
    centres_um: Float64[np.ndarray, "n 3"],
    random: np.random.Generator,
) -> None:
    """Bodies that both channels show and that are no cells, apart from every cell."""
    n = min(random.poisson(behind.bodies * max(len(centres_um), 30)), _MOST)
    places = random.random((n, 3)) * grid.extent_um - np.asarray(grid.voxel_um) / 2
    keep = inside[_voxels(places, grid)] > 0.7
    if len(centres_um):
        keep &= cKDTree(centres_um).query(places)[0] > look.apart_um
    sizes = behind.diameter_um * np.exp(look.size_spread * random.standard_normal(n))
    spread = look.amplitude_spread * random.standard_normal(n)
    ratio = behind.ratio * np.exp(behind.ratio_spread * random.standard_normal(n))
    shapes = bodies(places[keep], sizes[keep], 1.5, random)
    bright = behind.amplitude / _peak_share(behind.diameter_um, look) * np.exp(spread)[keep]
    paint(light, shapes, bright, grid, profile="domed")
    paint(other, shapes, bright * ratio[keep], grid, profile="domed")


def _peak_share(diameter_um: float, look: PhantomParameters) -> float:
    """Share of a body's brightness that is left at its peak behind the blur, about."""
    share = np.prod([diameter_um / (diameter_um + 1.5 * blur) for blur in look.blur_um])
    return max(float(share), 0.05)


def _voxels(places_um: Float64[np.ndarray, "n 3"], grid: Grid) -> tuple[np.ndarray, ...]:
    """Indices of the voxels that positions lie in."""
    at = np.floor(places_um / grid.voxel_um + 0.5).astype(int)
    return tuple(np.clip(at, 0, np.asarray(grid.shape_zyx) - 1).T)


def _grain(look: PhantomParameters, grid: Grid, random: np.random.Generator) -> np.ndarray | float:
    """Fine texture of the tissue: its standard deviation is the look's, 0 where that has none."""
    if not look.texture:
        return 0.0
    grain = random.standard_normal(grid.shape_zyx, np.float32)
    sigma = [look.texture_um / 2 / voxel for voxel in grid.voxel_um]
    grain = gaussian_filter(grain, sigma, truncate=3)
    # In this order: voxels of a seed are domains and training data, and stay as they are to the last bit.
    return look.texture * grain / max(float(grain.std()), 1e-9)
