"""Densities of regions and their cells on the outline of an atlas in three planes, as a PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64, Integer

from canvas_fm.analysis.regions.atlas import Atlas

_PLANES = {
    "a": "coronal",
    "p": "coronal",
    "s": "horizontal",
    "i": "horizontal",
    "l": "sagittal",
    "r": "sagittal",
}
_SLAB = 0.1  # of the axis: cells this near to the plane are shown


def planes_png(
    atlas: Atlas,
    um: Float64[np.ndarray, "n 3"],
    density: Mapping[int, float] | None = None,
    most: float | None = None,
) -> bytes:
    """The middle plane of tissue of each axis: borders of regions, cells within a tenth of the axis.

    `density` in cells per mm³ by the id of a region colours its voxels, from 0 to `most` (its largest).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    size = np.asarray(atlas.voxel_um)
    most = largest_density(density or {}) if most is None else most
    dot = float(np.clip(90 / np.sqrt(len(um) + 1), 1.5, 5))
    shaded = None
    panels = figure.subplots(1, 3)
    for axis, axes in enumerate(panels):
        filled = np.flatnonzero(_tissue(atlas.labels, axis))
        at = int(filled[len(filled) // 2]) if len(filled) else atlas.labels.shape[axis] // 2
        plane = np.take(atlas.labels, at, axis=axis)
        down, across = (other for other in range(3) if other != axis)
        extent = (0, plane.shape[1] * size[across] / 1e3, plane.shape[0] * size[down] / 1e3, 0)
        if density is not None and most > 0:
            shaded = axes.imshow(
                densities_of(plane, density), cmap="YlGnBu", vmin=0, vmax=most, extent=extent,
                interpolation="nearest", alpha=0.75,
            )  # fmt: skip
        edge = np.ma.masked_equal(_borders(plane), 0)
        axes.imshow(edge, cmap="Greys", vmin=0, vmax=2.5, extent=extent, interpolation="nearest")
        half = max(_SLAB / 2 * atlas.extent_um[axis], size[axis])
        near = np.abs(um[:, axis] - (at + 0.5) * size[axis]) <= half
        mm = um[near] / 1e3
        axes.plot(mm[:, across], mm[:, down], "o", ms=dot, color="#d9480f", mec="white", mew=dot / 8)
        axes.set_title(
            f"{plane_name(atlas, axis)}, {(at + 0.5) * size[axis] / 1e3:.2f} mm: {near.sum():,} cells",
            fontsize=9,
        )
        axes.set_xlabel("mm", fontsize=8)
        axes.tick_params(labelsize=7)
    if shaded is not None:
        figure.colorbar(shaded, ax=panels, label="cells per mm³", shrink=0.7)
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=130)
    return held.getvalue()


def plane_name(atlas: Atlas, axis: int) -> str:
    """Name of a plane across this axis; by the axis where the atlas states no orientation."""
    return f"plane across {'zyx'[axis]}" if atlas.orientation is None else _PLANES[atlas.orientation[axis]]


def largest_density(density: Mapping[int, float]) -> float:
    """The largest of the densities; 0 where none is known."""
    return max((value for value in density.values() if np.isfinite(value)), default=0.0)


def densities_of(
    plane: Integer[np.ndarray, "y x"], density: Mapping[int, float]
) -> Float64[np.ndarray, "y x"]:
    """The density of each voxel's region; NaN outside, and where a region has none."""
    ids, inverse = np.unique(plane, return_inverse=True)
    values = np.array([density.get(int(label), np.nan) if label else np.nan for label in ids])
    return values[inverse].reshape(plane.shape)


def _tissue(labels: np.ndarray, axis: int) -> np.ndarray:
    return (labels != 0).any(axis=tuple(other for other in range(3) if other != axis))


def _borders(plane: np.ndarray) -> np.ndarray:
    """1 where a neighbour to the right or below is another region."""
    edge = np.zeros(plane.shape, np.uint8)
    edge[:, :-1] |= plane[:, :-1] != plane[:, 1:]
    edge[:-1] |= plane[:-1] != plane[1:]
    return edge
