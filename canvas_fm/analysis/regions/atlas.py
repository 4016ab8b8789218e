"""An atlas: labels of regions on a grid, their tree, hemispheres, and what brings positions there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64, Integer

from canvas_fm.analysis.regions.deformation import (
    ANNOTATION,
    DeformationField,
)
from canvas_fm.analysis.regions.tree import RegionTree
from canvas_fm.data.zyx import ZyxUm, check_voxel_um
from canvas_fm.errors import CanvasError

LEFT, RIGHT = 1, 2  # BrainGlobe's convention of a volume of hemispheres
Kind = Literal["labels", "brainglobe", "brainreg", "brainglobe-registration"]


@dataclass(frozen=True)
class Atlas:
    """Labels z, y, x with voxel size and tree of regions.

    `orientation` says in three letters where its axes begin (None: not known), `hemispheres` holds 1 left, 2
    right on the same grid. Of a registration the grid lies in the sample and is turned to the atlas;
    `sample_orientation` and `sample_voxel_um` are the raw volume's as its settings tell, `to_atlas` brings
    positions on.
    """

    name: str
    kind: Kind
    labels: Integer[np.ndarray, "z y x"]
    voxel_um: ZyxUm
    tree: RegionTree
    orientation: str | None = None
    hemispheres: Integer[np.ndarray, "z y x"] | None = field(default=None, repr=False)
    sample_orientation: str | None = None
    sample_voxel_um: ZyxUm | None = None
    to_atlas: DeformationField | None = field(default=None, repr=False)
    files: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        check_voxel_um(self.voxel_um)
        if self.hemispheres is not None and self.hemispheres.shape != self.labels.shape:
            raise CanvasError(
                f"the hemispheres have shape {self.hemispheres.shape}, the labels {self.labels.shape}; "
                "both are of one grid"
            )

    @property
    def on_sample(self) -> bool:
        """Whether the grid is the sample's, from which `to_atlas` leads on, not the atlas' own."""
        return any(file.name == ANNOTATION for file in self.files)

    @property
    def turned_extent_um(self) -> Float64[np.ndarray, " 3"]:
        """Size in µm of the volume whose positions are turned: the sample's grid of a registration."""
        return self.extent_um if self.to_atlas is None else self.to_atlas.extent_um

    @property
    def extent_um(self) -> Float64[np.ndarray, " 3"]:
        """Size of the grid in µm."""
        return np.asarray(self.labels.shape) * np.asarray(self.voxel_um)

    def side_at(self, index: Int64[np.ndarray, "n 3"]) -> Int64[np.ndarray, " n"]:
        """Hemisphere of voxels inside: 1 left, 2 right, 0 where it is not known."""
        if self.hemispheres is not None:
            return self.hemispheres[tuple(index.T)].astype(np.int64)
        side = self.side_of_planes()
        return np.zeros(len(index), np.int64) if side is None else side[1][index[:, side[0]]]

    def side_of_planes(self) -> tuple[int, Int64[np.ndarray, " k"]] | None:
        """The axis from left to right and the side of each of its planes, by the orientation alone."""
        if self.orientation is None:
            return None
        axis = next(at for at, letter in enumerate(self.orientation) if letter in "lr")
        size = self.labels.shape[axis]
        first, second = (LEFT, RIGHT) if self.orientation[axis] == "l" else (RIGHT, LEFT)
        return axis, np.where(np.arange(size) < size / 2, first, second)
