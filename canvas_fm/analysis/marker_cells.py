"""Cells of one marker from a file: positions in µm, weights, regions of an atlas."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from canvas_fm.analysis.coexpression import Population
from canvas_fm.analysis.regions.atlas import Atlas
from canvas_fm.analysis.regions.atlas_positions import place
from canvas_fm.analysis.regions.cells_per_region import probabilities_of
from canvas_fm.data.points.formats.read_write import voxel_um_of
from canvas_fm.data.points.points import P_CELL, Points, warn_of_repeated
from canvas_fm.data.zyx import ZyxUm, ZyxUmLike, check_voxel_um
from canvas_fm.errors import CanvasError


def voxel_size(points: Points, path: str | Path, voxel_um: ZyxUmLike | None) -> ZyxUm:
    """The given voxel size, else what the points' file states; CanvasError for neither."""
    size = voxel_um if voxel_um is not None else voxel_um_of(points.meta)
    if size is None:
        raise CanvasError(f"{path} does not state the volume's voxel size; give it: --voxel-um Z Y X")
    return check_voxel_um(size)


def read_um(path: str | Path, voxel_um: ZyxUmLike | None = None) -> Float64[np.ndarray, "n 3"]:
    """Positions of a file in µm from the outer corner of the volume's first voxel."""
    points = Points.read(path)
    warn_of_repeated(points.zyx, str(path))
    return (points.zyx + 0.5) * np.asarray(voxel_size(points, path, voxel_um))


def read_population(
    path: str | Path,
    *,
    name: str | None = None,
    voxel_um: ZyxUmLike | None = None,
    atlas: Atlas | None = None,
    by_p_cell: bool = True,
    **placing: Any,
) -> Population:
    """The cells of a file; with a column p_cell each weighs its P(cell), unless `by_p_cell` is off.

    With an atlas each has its region; `placing` are the other arguments of `place`.
    """
    points = Points.read(path)
    warn_of_repeated(points.zyx, str(path))
    size = voxel_size(points, path, voxel_um)
    weight = np.ones(len(points))
    if by_p_cell and P_CELL in points.columns:
        weight = probabilities_of(points)
    um, region, grid = (points.zyx + 0.5) * np.asarray(size), np.zeros(len(points), np.int64), None
    if atlas is not None:
        placed = place(atlas, points.zyx, size, **placing)
        region, grid = placed.row, placed.um
    return Population(name or Path(path).name.partition(".")[0], um, weight, region, grid)


def check_names(names: Sequence[str]) -> None:
    """CanvasError where two populations have one name."""
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise CanvasError(f"two files are called {twice[0]!r}; give each a name: --channels A B")
