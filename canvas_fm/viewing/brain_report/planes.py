"""Cells on the outline of an atlas in three planes, as a PNG."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import Float64

from canvas_fm.analysis.regions.atlas import Atlas

_NAMES = ("first axis", "second axis", "third axis")
_SLAB = 0.1  # of the axis: cells this near to the plane are shown


def planes_png(atlas: Atlas, um: Float64[np.ndarray, "n 3"]) -> bytes:
    """The middle plane of tissue of each axis: borders of regions, cells within a tenth of the axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    size = np.asarray(atlas.voxel_um)
    for axis, axes in enumerate(figure.subplots(1, 3)):
        filled = np.flatnonzero(_tissue(atlas.labels, axis))
        at = int(filled[len(filled) // 2]) if len(filled) else atlas.labels.shape[axis] // 2
        plane = np.take(atlas.labels, at, axis=axis)
        down, across = (other for other in range(3) if other != axis)
        extent = (0, plane.shape[1] * size[across] / 1e3, plane.shape[0] * size[down] / 1e3, 0)
        axes.imshow(_borders(plane), cmap="Greys", vmax=2.5, extent=extent, interpolation="nearest")
        half = max(_SLAB / 2 * atlas.extent_um[axis], size[axis])
        near = np.abs(um[:, axis] - (at + 0.5) * size[axis]) <= half
        axes.plot(um[near, across] / 1e3, um[near, down] / 1e3, ".", ms=1.5, color="#c2410c", alpha=0.6)
        axes.set_title(
            f"{_NAMES[axis]}, {(at + 0.5) * size[axis] / 1e3:.2f} mm: {near.sum():,} cells", fontsize=9
        )
        axes.set_xlabel("mm", fontsize=8)
        axes.tick_params(labelsize=7)
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=130)
    return held.getvalue()


def _tissue(labels: np.ndarray, axis: int) -> np.ndarray:
    return (labels != 0).any(axis=tuple(other for other in range(3) if other != axis))


def _borders(plane: np.ndarray) -> np.ndarray:
    """1 where a neighbour to the right or below is another region."""
    edge = np.zeros(plane.shape, np.uint8)
    edge[:, :-1] |= plane[:, :-1] != plane[:, 1:]
    edge[:-1] |= plane[:-1] != plane[1:]
    return edge
