"""Label volumes (an annotation, hemispheres) from NRRD, NIfTI, TIFF and Zarr files."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer, Shaped

from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.zyx import ZyxUm, check_voxel_um
from canvas_fm.errors import CanvasError, MissingExtra
from canvas_fm.files.numpy_errors import UNREADABLE_NUMPY

_TIFF = (".tif", ".tiff")
_NIFTI = (".nii", ".nii.gz")
KNOWN = ".nrrd, .nii, .nii.gz, .tif, .tiff, .zarr or .npy"
_UM = {"mm": 1e3, "millimeter": 1e3, "millimeters": 1e3, "um": 1.0, "µm": 1.0, "micron": 1.0, "microns": 1.0}


class LabelVolume(NamedTuple):
    """Labels z, y, x (the axes in the order in which the file stores them), and the stated voxel size."""

    labels: Integer[np.ndarray, "z y x"]
    voxel_um: ZyxUm | None


def read_label_volume(path: str | Path) -> LabelVolume:
    """A volume of whole numbers, 0 outside; a plane is a volume of one.

    The first axis of the file is z. Headers of NRRD and NIfTI that name anatomical directions are not
    followed, since of the annotations in use some are wrong.
    """
    path = Path(path)
    if not path.exists():
        raise CanvasError(f"no label volume at {path}; give {KNOWN}")
    voxels, voxel_um = read_array(path)
    if voxels.ndim == 2:
        voxels = voxels[None]
    if voxels.ndim != 3:
        raise CanvasError(f"{path} has {voxels.ndim} axes; a label volume has three, z y x")
    return LabelVolume(_whole(path, voxels), voxel_um)


def open_labels(path: str | Path, **options: Any) -> Volume | Integer[np.ndarray, "z y x"]:
    """A Zarr store, or a folder of planes, as a volume that is read by blocks; any other file as its labels.

    `options` are those of `Volume.open`, which any other file does not take.
    """
    path = Path(path)
    if path.is_dir() or path.suffix == ".zip":
        return _open_zarr(path, **options)[0]
    return read_label_volume(path).labels


def read_sized(
    path: str | Path, voxel_um: Sequence[float] | None = None
) -> tuple[Integer[np.ndarray, "z y x"], ZyxUm]:
    """Labels and voxel size, given or stated; CanvasError for neither."""
    volume = read_label_volume(path)
    size = voxel_um if voxel_um is not None else volume.voxel_um
    if size is None:
        raise CanvasError(f"{path} does not state its voxel size; give --labels-voxel-um Z Y X")
    return volume.labels, check_voxel_um(size)


def read_array(path: Path) -> tuple[Shaped[np.ndarray, ...], ZyxUm | None]:
    """The array of a file, and its voxel size in µm where the file states one."""
    name = path.name.lower()
    if name.endswith(_TIFF):
        return read_tiff(path), None
    if name.endswith(".nrrd"):
        return _nrrd(path)
    if name.endswith(_NIFTI):
        return _nifti(path)
    if name.endswith(".npy"):
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False), None
        except UNREADABLE_NUMPY as problem:
            raise CanvasError(f"{path} cannot be read as an array of numbers: {problem}") from problem
    if path.is_dir() or name.endswith(".zip"):
        return _zarr(path)
    raise CanvasError(f"{path}: a label volume is {KNOWN}")


def _whole(path: Path, voxels: np.ndarray) -> np.ndarray:
    if voxels.dtype.kind == "f":
        if not np.isfinite(voxels).all():
            raise CanvasError(f"{path} holds NaN or infinity; a label volume holds a whole number a voxel")
        whole = np.rint(voxels).astype(np.int64)
        if not np.array_equal(whole, voxels):
            raise CanvasError(f"{path} holds fractions; a label volume holds a whole number a voxel")
        return whole
    if voxels.dtype.kind == "b":
        return voxels.view(np.uint8)
    if voxels.dtype.kind not in "iu":
        raise CanvasError(f"{path} holds {voxels.dtype}; a label volume holds whole numbers")
    return voxels


# What tifffile and its codecs raise for a file that is none, is cut short or damaged.
_TIFF_ERRORS = (OSError, ValueError, RuntimeError, IndexError, KeyError, struct.error, zlib.error)


def read_tiff(path: Path) -> np.ndarray:
    """The array of a TIFF."""
    import tifffile

    try:
        return tifffile.imread(path)
    except _TIFF_ERRORS as problem:
        raise CanvasError(f"{path} cannot be read as TIFF: {problem}; copy it again") from problem


def tiff_shape(path: Path) -> tuple[int, ...]:
    """Shape of a TIFF, whose voxels are not read."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            return tuple(file.series[0].shape)
    except _TIFF_ERRORS as problem:
        raise CanvasError(f"{path} cannot be read as TIFF: {problem}; copy it again") from problem


def _nrrd(path: Path) -> tuple[np.ndarray, ZyxUm | None]:
    try:
        import nrrd
    except ImportError as problem:
        raise MissingExtra("pynrrd", "atlas", f"reading {path.name}") from problem
    try:
        voxels, header = nrrd.read(str(path))
    except nrrd.NRRDError as problem:
        raise CanvasError(f"{path} cannot be read as NRRD: {problem}") from problem
    directions = header.get("space directions")
    if directions is None:
        sizes = np.asarray(header.get("spacings", [np.nan] * 3), float)
    else:
        sizes = np.linalg.norm(np.asarray(directions, float), axis=1)
    units = header.get("space units", [""])
    return voxels, _size(sizes, str(units[0]).strip('" ').lower())


def _nifti(path: Path) -> tuple[np.ndarray, ZyxUm | None]:
    try:
        import nibabel
    except ImportError as problem:
        raise MissingExtra("nibabel", "atlas", f"reading {path.name}") from problem
    try:
        image: Any = nibabel.load(path)
        voxels = np.asanyarray(image.dataobj)
    except (nibabel.filebasedimages.ImageFileError, OSError, EOFError) as problem:
        raise CanvasError(f"{path} cannot be read as NIfTI: {problem}") from problem
    unit = image.header.get_xyzt_units()[0]
    return voxels, _size(np.asarray(image.header.get_zooms()[:3], float), "" if unit == "unknown" else unit)


def _size(sizes: np.ndarray, unit: str) -> ZyxUm | None:
    """Sizes in µm; without a unit a voxel under 1 is one in mm, as no atlas has voxels under a micrometre."""
    if len(sizes) != 3 or not (np.isfinite(sizes) & (sizes > 0)).all():
        return None
    factor = _UM.get(unit, 1e3 if sizes.max() < 1 else 1.0)
    z, y, x = (float(size * factor) for size in sizes)
    return (z, y, x) if (z, y, x) != (1.0, 1.0, 1.0) else None  # what a header says that knows no size


def _zarr(path: Path) -> tuple[np.ndarray, ZyxUm | None]:
    try:
        volume, stated = _open_zarr(path)
    except CanvasError as problem:
        if "--" not in str(problem):
            raise
        raise CanvasError(
            f"{problem} (flags of canvas-fm convert, which writes a label volume that opens as it is)"
        ) from problem
    return volume.read((0, 0, 0), volume.shape_zyx), stated


def _open_zarr(path: Path, **options: Any) -> tuple[Volume, ZyxUm | None]:
    """A store, and its voxel size where it states one: labels are compared without."""
    try:
        volume = Volume.open(path, **options)
    except CanvasError as problem:
        if "voxel size" not in str(problem):
            raise
        return Volume.open(path, **options | {"voxel_um": (1.0, 1.0, 1.0)}), None
    return volume, volume.voxel_um
