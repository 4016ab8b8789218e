"""From positions in a volume to positions in an atlas: orientation, affine matrices, displacement fields."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Shaped
from scipy.ndimage import map_coordinates

from canvas_fm.analysis.regions.label_volume import read_array
from canvas_fm.data.zyx import ZyxUm, check_voxel_um
from canvas_fm.errors import CanvasError

_AXES = ("ap", "si", "lr")


# A map of positions (n, 3), z, y, x in µm.
Transform = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Reorientation:
    """Axes of the atlas taken from those of the volume: axis k is `axes[k]`, `flips[k]` from its far end.

    `extent_um` is the size of the volume along its own axes.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    extent_um: tuple[float, float, float]

    def __call__(self, um: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "n 3"]:
        turned = um[:, list(self.axes)]
        extent = np.asarray(self.extent_um)[list(self.axes)]
        return np.where(self.flips, extent - turned, turned)


def reorientation(source: str, target: str) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Axes and flips from one orientation to another; each is three letters that say where an axis begins.

    BrainGlobe's convention: `asr` begins anterior, superior, right, along z, y, x.
    """
    from_, to = check_orientation(source), check_orientation(target)
    kinds = [_kind(letter) for letter in from_]
    axes = tuple(kinds.index(_kind(letter)) for letter in to)
    flips = tuple(from_[axis] != letter for axis, letter in zip(axes, to, strict=True))
    return (axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2])


def check_orientation(letters: str) -> str:
    """Three letters of a/p, s/i and l/r, each axis once; in lower case."""
    lower = letters.lower()
    if sorted(_kind(letter) for letter in lower) != sorted(_AXES):
        raise CanvasError(
            f"orientation is {letters!r}; expected where z, y and x begin, as three letters of a or p, "
            "s or i, l or r: asr begins anterior, superior, right"
        )
    return lower


def _kind(letter: str) -> str:
    return next((axis for axis in _AXES if letter and letter in axis), "")


@dataclass(frozen=True)
class Affine:
    """A matrix (3, 4): z, y, x in µm of the volume and 1 to z, y, x in µm of the atlas."""

    matrix: Float64[np.ndarray, "3 4"]

    def __call__(self, um: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "n 3"]:
        return um @ self.matrix[:, :3].T + self.matrix[:, 3]


@dataclass(frozen=True)
class DisplacementField:
    """Vectors (3, z, y, x) in µm to be added, on a grid over the volume; outside it those of the border."""

    vectors: Shaped[np.ndarray, "3 z y x"]
    voxel_um: ZyxUm

    def __call__(self, um: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "n 3"]:
        grid = (um / np.asarray(self.voxel_um) - 0.5).T
        components = [
            map_coordinates(component, grid, order=1, mode="nearest", output=np.float64)
            for component in self.vectors
        ]
        return um + np.stack(components, axis=1)


def read_transform(path: str | Path, field_voxel_um: Sequence[float] | None = None) -> Transform:
    """An affine of 3 × 4 or 4 × 4 numbers (.txt, .csv, .json, .npy), else a displacement field.

    A field is an array (3, z, y, x) or (z, y, x, 3) of µm in the order z, y, x; its grid's voxel size is
    stated by the file or given.
    """
    path = Path(path)
    if not path.exists():
        raise CanvasError(f"no transform at {path}; give an affine matrix or a displacement field")
    array, stated = _numbers(path)
    if array.shape in ((3, 4), (4, 4)):
        if array.shape == (4, 4) and not np.allclose(array[3], (0, 0, 0, 1)):
            raise CanvasError(f"{path}: the last row is {array[3].tolist()}; expected 0 0 0 1")
        if not np.isfinite(array).all() or abs(np.linalg.det(array[:3, :3].astype(float))) < 1e-12:
            raise CanvasError(f"{path}: the matrix maps space onto a plane; expected one that can be undone")
        return Affine(array[:3].astype(np.float64))
    array = np.squeeze(array)
    if array.ndim == 4 and array.shape[-1] == 3 and array.shape[0] != 3:
        array = np.moveaxis(array, -1, 0)
    if array.ndim != 4 or array.shape[0] != 3:
        raise CanvasError(
            f"{path} has shape {array.shape}; expected an affine (4, 4) or a displacement field (3, z, y, x)"
        )
    size = field_voxel_um if field_voxel_um is not None else stated
    if size is None:
        raise CanvasError(f"{path} does not state the voxel size of its grid; give --field-voxel-um Z Y X")
    return DisplacementField(array, check_voxel_um(size))


def _numbers(path: Path) -> tuple[np.ndarray, ZyxUm | None]:
    try:
        if path.suffix == ".json":
            return np.asarray(json.loads(path.read_text(encoding="utf-8")), np.float64), None
        if path.suffix in (".txt", ".csv", ".mat"):
            delimiter = "," if path.suffix == ".csv" else None
            return np.loadtxt(path, delimiter=delimiter, ndmin=2), None
    except (ValueError, TypeError) as problem:
        raise CanvasError(f"{path} does not hold a matrix of numbers: {problem}") from problem
    return read_array(path)
