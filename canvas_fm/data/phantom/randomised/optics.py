"""Image formation of a randomised phantom: tissue background, light sheet, optics and camera."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, UInt16
from scipy.ndimage import gaussian_filter

from canvas_fm.data.phantom.randomised.draw_parameters import PhantomParameters
from canvas_fm.data.phantom.randomised.rendering import Grid

Field = Float32[np.ndarray, "z y x"]
_SHOT = 40.0  # electrons from which Poisson noise is taken as normal


def smooth_noise(grid: Grid, pitch_um: tuple[float, float, float], random: np.random.Generator) -> Field:
    """Gaussian noise of mean 0 and variance about 1, interpolated from a lattice of the given pitch."""
    lattice = []
    for n, voxel, pitch in zip(grid.shape_zyx, grid.voxel_um, pitch_um, strict=True):
        nodes = int(np.ceil(n * voxel / pitch)) + 3
        apart = np.arange(n)[:, None] * voxel / pitch - (np.arange(nodes)[None, :] - 1)
        weight = np.exp(-(apart**2) / 0.72)
        lattice.append((weight / np.linalg.norm(weight, axis=1, keepdims=True)).astype(np.float32))
    field = random.standard_normal([part.shape[1] for part in lattice]).astype(np.float32)
    return np.einsum("abc,za,yb,xc->zyx", field, *lattice, optimize=True).astype(np.float32, copy=False)


def tissue(look: PhantomParameters, grid: Grid, random: np.random.Generator) -> tuple[Field, Field, Field]:
    """Tissue background (about 1), and the tissue and cell-layer fractions of each voxel, 0 to 1."""
    level, lively = np.ones(grid.shape_zyx, np.float32), np.ones(grid.shape_zyx, np.float32)
    depth = _depth(grid, random)
    if look.layers > 1:
        edges = np.sort(random.uniform(depth.min(), depth.max(), look.layers - 1))
        steps = look.layer_contrast ** random.uniform(-0.5, 0.5, look.layers)
        wavy = depth + 8 * smooth_noise(grid, (60, 60, 60), random)
        has_cells = (np.arange(look.layers) >= look.silent_layers)[random.permutation(look.layers)] * 1.0
        level *= steps[0]
        lively *= has_cells[0]
        for number, edge in enumerate(edges):
            beyond = _soft(wavy - np.float32(edge), 4.0)
            level += np.float32(steps[number + 1] - steps[number]) * beyond
            lively += np.float32(has_cells[number + 1] - has_cells[number]) * beyond
    if look.cloud:
        pitch = (look.cloud_um,) * 3
        level *= np.exp(look.cloud * 0.6 * smooth_noise(grid, pitch, random))
    inside = np.ones(grid.shape_zyx, np.float32)
    if look.outside:
        depth = _depth(grid, random)
        border = np.quantile(depth[::4, ::8, ::8], look.outside)
        inside = _soft(depth + 10 * smooth_noise(grid, (80, 80, 80), random) - np.float32(border), 2.0)
    return level, inside, lively


def _depth(grid: Grid, random: np.random.Generator) -> Field:
    """Depth of each voxel along a random direction, in µm."""
    along = random.standard_normal(3) * (2.0, 1.0, 1.0)
    along /= np.linalg.norm(along)
    z, y, x = (
        (np.arange(n) * voxel * part).astype(np.float32)
        for n, voxel, part in zip(grid.shape_zyx, grid.voxel_um, along, strict=True)
    )
    return z[:, None, None] + y[:, None] + x


def _soft(depth_um: Field, width_um: float) -> Field:
    return np.float32(0.5) + np.float32(0.5) * np.tanh(depth_um / np.float32(width_um))


def through_optics(light: Field, look: PhantomParameters, grid: Grid) -> Field:
    """Light convolved with the point spread function, plus out-of-focus haze."""
    sharp = gaussian_filter(
        light, [b / v for b, v in zip(look.blur_um, grid.voxel_um, strict=True)], truncate=3
    )
    if look.haze:
        sharp += look.haze * _wide(light, look.haze_um, grid)
    return sharp


def _wide(light: Field, sigma_um: float, grid: Grid) -> Field:
    """A wide Gaussian blur, computed on coarser voxels; the mean is preserved."""
    coarse = [max(1, int(sigma_um / 3 / voxel)) for voxel in grid.voxel_um]
    spread = light
    for axis, (n, factor) in enumerate(zip(light.shape, coarse, strict=True)):
        edges = np.arange(0, n, factor)
        counts = np.diff(np.append(edges, n)).astype(np.float32)
        shape = [-1 if a == axis else 1 for a in range(3)]
        spread = np.add.reduceat(spread, edges, axis=axis) / counts.reshape(shape)
    spread = gaussian_filter(
        spread, [sigma_um / v / f for v, f in zip(grid.voxel_um, coarse, strict=True)], truncate=3
    )
    for axis, (n, factor) in enumerate(zip(light.shape, coarse, strict=True)):
        place = np.clip((np.arange(n) + 0.5) / factor - 0.5, 0, spread.shape[axis] - 1)
        low = np.minimum(place.astype(int), max(spread.shape[axis] - 2, 0))
        part = (place - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        high = np.minimum(low + 1, spread.shape[axis] - 1)
        spread = spread.take(low, axis) * (1 - part) + spread.take(high, axis) * part
    return spread


def illumination(look: PhantomParameters, grid: Grid, random: np.random.Generator) -> Field:
    """Multiplicative illumination field: attenuation, shading, stripes, flickering planes, tile seams."""
    factor = np.ones(grid.shape_zyx, np.float32)
    along = [np.linspace(0, 1, n, dtype=np.float32) for n in grid.shape_zyx]
    if random.random() < 0.5:
        along = [part[::-1] for part in along]
    factor *= _on(np.exp(-look.attenuation * along[look.attenuation_axis]), look.attenuation_axis)
    for axis in (1, 2) if look.shading else ():
        factor *= _on(1 - look.shading * (along[axis] - random.uniform(0.2, 0.8)) ** 2 * 2, axis)
    if look.stripes:
        pitch = [max(6.0, grid.voxel_um[0]), look.stripe_um, look.stripe_um]
        pitch[look.stripe_axis] = 600.0
        rows = smooth_noise(grid, (pitch[0], pitch[1], pitch[2]), random)
        factor *= np.clip(1 - look.stripes * rows, 0.2, 1.8)
    if look.flicker:
        factor *= _on(1 + look.flicker * random.standard_normal(grid.shape_zyx[0]), 0)
    if look.seam:
        axis = int(random.integers(1, 3))
        n = grid.shape_zyx[axis]
        side = np.where(np.arange(n) < random.integers(n // 4, 3 * n // 4), 1.0, 1.0 - look.seam)
        factor *= _on(side, axis)
    return factor


def _on(values: np.ndarray, axis: int) -> np.ndarray:
    return np.asarray(values, np.float32).reshape([-1 if a == axis else 1 for a in range(3)])


def photograph(
    light: Field, look: PhantomParameters, random: np.random.Generator
) -> UInt16[np.ndarray, "z y x"]:
    """Camera counts: photon and read noise, offset, saturation and bit depth; 1 is the tissue's level."""
    electrons = np.maximum(light, 0) * np.float32(look.photons)
    if look.photons < _SHOT:
        caught = random.poisson(electrons).astype(np.float32)
    else:
        caught = electrons + np.sqrt(electrons) * random.standard_normal(light.shape, np.float32)
    counts = caught * np.float32(look.level_counts / look.photons)
    counts += look.offset_counts + look.camera_noise * random.standard_normal(light.shape, np.float32)
    top = float(2**look.bits - 1)
    if look.bits == 8:  # a file that someone scaled to 8 bits
        counts *= np.float32(top / max(float(np.quantile(counts[::2, ::3, ::3], 0.9999)), 1.0))
    if look.saturation:
        top = min(top, max(float(np.quantile(counts[::2, ::3, ::3], 1 - look.saturation)), 1.0))
    return np.clip(np.rint(counts), 0, top).astype(np.uint16)
