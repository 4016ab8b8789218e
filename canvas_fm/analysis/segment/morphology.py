"""Morphology of labelled cells: volume, sphericity, extents, intensity, skeleton."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64, Integer, Num
from scipy.ndimage import convolve, find_objects

from canvas_fm.data.zyx import ZyxUm
from canvas_fm.errors import MissingExtra

COLUMNS = (
    "label", "volume_um3", "sphericity", "extent_z_um", "extent_y_um", "extent_x_um", "elongation",
    "mean_intensity", "max_intensity", "skeleton_ends", "skeleton_branchings", "skeleton_um",
)  # fmt: skip


def measure_cells(
    labels: Integer[np.ndarray, "z y x"],
    image: Num[np.ndarray, "z y x"],
    cells: Int64[np.ndarray, " n"],
    voxel_um: ZyxUm,
    *,
    branches: bool = False,
) -> dict[str, np.ndarray]:
    """A value a cell and column; NaN for labels without voxels, and for skeletons unless `branches`.

    `sphericity` is 1 for a ball (π^⅓ (6 V)^⅔ over the surface by marching cubes), extents are of the box
    around the cell, `elongation` is the longest over the shortest axis of its ellipsoid.
    """
    boxes = find_objects(labels.astype(np.int64)) if len(cells) else []
    table = {name: np.full(len(cells), np.nan) for name in COLUMNS}
    table["label"] = cells.astype(np.float64)
    for row, cell in enumerate(cells):
        box = boxes[cell - 1] if cell <= len(boxes) else None
        if box is None:
            table["volume_um3"][row] = 0
            continue
        for name, value in _one(labels[box] == cell, image[box], np.asarray(voxel_um), branches).items():
            table[name][row] = value
    return table


def _one(inside: np.ndarray, image: np.ndarray, voxel_um: np.ndarray, branches: bool) -> dict[str, float]:
    values = image[inside]
    volume = inside.sum() * float(np.prod(voxel_um))
    um = np.argwhere(inside) * voxel_um
    # A voxel is a box, not a point: its own variance keeps thin cells from having no width.
    spread = np.atleast_2d(np.cov(um.T, bias=True)) + np.diag(voxel_um**2 / 12)
    axes = np.sqrt(np.linalg.eigvalsh(spread))
    z, y, x = (size * um_ for size, um_ in zip(inside.shape, voxel_um, strict=True))
    measured = {
        "volume_um3": volume,
        "sphericity": min(1.0, np.pi ** (1 / 3) * (6 * volume) ** (2 / 3) / _surface(inside, voxel_um)),
        "extent_z_um": z,
        "extent_y_um": y,
        "extent_x_um": x,
        "elongation": float(axes[-1] / axes[0]),
        "mean_intensity": float(values.mean()),
        "max_intensity": float(values.max()),
    }
    return measured | (_skeleton(inside, voxel_um) if branches else {})


def _surface(inside: np.ndarray, voxel_um: np.ndarray) -> float:
    try:
        from skimage.measure import marching_cubes, mesh_surface_area
    except ImportError as problem:
        raise MissingExtra("scikit-image", "segment", "the surface of cells") from problem
    corners, faces, *_ = marching_cubes(np.pad(inside, 1).astype(np.float32), 0.5, spacing=tuple(voxel_um))
    return float(mesh_surface_area(corners, faces))


def _skeleton(inside: np.ndarray, voxel_um: np.ndarray) -> dict[str, float]:
    """Ends (one neighbour), branching points (three or more) and length of the skeleton."""
    from skimage.morphology import skeletonize

    line = np.pad(skeletonize(inside), 1)
    neighbours = convolve(line.astype(np.int32), np.ones((3, 3, 3), np.int32), mode="constant") - 1
    length = 0.0
    for step in np.argwhere(np.ones((3, 3, 3))) - 1:
        if tuple(step) > (0, 0, 0):
            pairs = (line & np.roll(line, tuple(-step), (0, 1, 2))).sum()
            length += float(pairs * np.linalg.norm(step * voxel_um))
    return {
        "skeleton_ends": float((line & (neighbours == 1)).sum()),
        "skeleton_branchings": float((line & (neighbours >= 3)).sum()),
        "skeleton_um": length,
    }
