"""One plane of a brain with the cells near to it, as a PNG."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import Float

from canvas_fm.data.volume.levels.pyramid import open_pyramid
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import counted

_WIDEST = 1000  # voxels: of a larger plane a coarser level is shown
_NEAR_UM = 20.0  # cells this near to the plane are drawn


def section_png(volume: Volume, zyx: Float[np.ndarray, "n 3"]) -> tuple[bytes, str]:
    """The plane that halves the cells (of the volume, where there are none), and what it shows in words."""
    z = int(np.median(zyx[:, 0])) if len(zyx) else volume.shape_zyx[0] // 2
    levels = open_pyramid(volume, smallest=_WIDEST)
    level = next(candidate for candidate in levels if max(candidate.shape_zyx[1:]) <= _WIDEST)
    scale = np.asarray(volume.shape_zyx) / np.asarray(level.shape_zyx)
    at = min(int(z / scale[0]), level.shape_zyx[0] - 1)
    plane = level.read((at, 0, 0), (at + 1, *level.shape_zyx[1:]))[0]
    near = np.abs(zyx[:, 0] - z) * volume.voxel_um[0] <= _NEAR_UM
    words = f"plane {z}: {near.sum():,} of {counted(len(zyx), 'cell')} within {_NEAR_UM:g} µm"
    return _draw(plane, volume, zyx[near], (z + 0.5) * volume.voxel_um[0] / 1e3), words


def _draw(plane: np.ndarray, volume: Volume, zyx: np.ndarray, depth_mm: float) -> bytes:
    from matplotlib.figure import Figure

    height, width = (n * um / 1e3 for n, um in zip(volume.shape_zyx[1:], volume.voxel_um[1:], strict=True))
    figure = Figure(figsize=(5.2, 0.5 + 4.6 * height / width), layout="constrained")
    axes = figure.subplots()
    low, high = np.percentile(plane, (0.5, 99.8))
    axes.imshow(plane, cmap="gray", vmin=low, vmax=max(high, low + 1), extent=(0, width, height, 0))
    mm = (zyx[:, 1:] + 0.5) * np.asarray(volume.voxel_um[1:]) / 1e3
    axes.scatter(mm[:, 1], mm[:, 0], s=14, facecolors="none", edgecolors="#ff9d2e", linewidths=0.8)
    axes.set(xlim=(0, width), ylim=(height, 0), xlabel="mm", title=f"z = {depth_mm:.3f} mm")
    axes.tick_params(labelsize=7)
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=120)
    return held.getvalue()
