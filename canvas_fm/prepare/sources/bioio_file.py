"""CZI, ND2 and LIF files, read through bioio where it is installed."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.data.zyx import Zyx, ZyxLike, whole_zyx
from canvas_fm.errors import CanvasError, DamagedStore, MissingExtra, counted
from canvas_fm.prepare.convert_flags import ConvertOptions
from canvas_fm.prepare.sources.opened_file import OpenedFile, usable_voxel_um

BIOIO = {".czi": "bioio-czi", ".nd2": "bioio-nd2", ".lif": "bioio-lif"}

_AXES = {
    "M": "tiles of a mosaic",
    "V": "views",
    "I": "illuminations",
    "H": "phases",
    "R": "rotations",
    "B": "blocks",
}


class BioioChannel:
    """One channel of an image, decoded plane by plane."""

    bad_chunks: list[str]

    def __init__(self, path: Path, planes: Any) -> None:
        self.path, self._planes, self.bad_chunks = path, planes, []
        self.shape_zyx: Zyx = whole_zyx(planes.shape, "shape")
        self.chunk_zyx: Zyx = (1, *self.shape_zyx[1:])
        self.dtype = planes.dtype.newbyteorder("=")

    def read(self, origin_zyx: ZyxLike, size_zyx: ZyxLike) -> np.ndarray:
        origin, size = whole_zyx(origin_zyx, "origin_zyx"), whole_zyx(size_zyx, "size_zyx")
        box = tuple(slice(a, a + n) for a, n in zip(origin, size, strict=True))
        try:
            return np.asarray(self._planes[box].compute(scheduler="synchronous"))
        except Exception as problem:  # each vendor's reader has its own types
            cause = f"cannot be decoded ({type(problem).__name__}: {problem})"
            raise DamagedStore(self.path, "image", f"plane {origin[0]}", cause, "copy it again") from problem

    def read_into(self, box: np.ndarray, origin_zyx: ZyxLike) -> None:
        box[:] = self.read(origin_zyx, box.shape)


def open_bioio(path: Path, options: ConvertOptions) -> OpenedFile:
    """The channels of one image of the file; MissingExtra where the reader is not installed.

    Raises CanvasError for what the reader cannot open.
    """
    plugin = BIOIO[path.suffix.lower()]
    try:
        from bioio import BioImage

        # By its module: bioio would import the readers of all formats, and call a damaged file's missing.
        reader = import_module(plugin.replace("-", "_")).Reader
    except ImportError as problem:
        raise MissingExtra(plugin, "vendors", f"reading {path.suffix.lower()} files") from problem
    try:
        return _open(path, BioImage(path, reader=reader), options)
    except CanvasError:
        raise
    except Exception as problem:  # each vendor's reader has its own types, and reads as it is asked
        cause = f"{type(problem).__name__}: {problem}".rstrip(": ").partition("\n")[0][:200]
        raise CanvasError(f"{path} cannot be opened by {plugin} ({cause}); copy it again") from problem


def _open(path: Path, image: Any, options: ConvertOptions) -> OpenedFile:
    _choose_scene(path, image, options.scene)
    _refuse_other_axes(path, image)
    if image.dims.T > 1 and options.t is None:
        raise CanvasError(
            f"{path} has {image.dims.T} time points: choose one with --t 0 to {image.dims.T - 1}"
        )
    if not 0 <= (options.t or 0) < image.dims.T:
        raise CanvasError(f"{path} has {counted(image.dims.T, 'time point')}: there is no t={options.t}")
    several = range(image.dims.C)
    planes = [image.get_image_dask_data("ZYX", T=options.t or 0, C=c) for c in several]
    names = [str(name) for name in image.channel_names or [f"channel {c}" for c in several]]
    size = image.physical_pixel_sizes
    sizes = [abs(float(n)) for n in (size.Z, size.Y, size.X) if n]  # below 0 where a stage moves down
    stated = usable_voxel_um(sizes)
    return OpenedFile([BioioChannel(path, part) for part in planes], names, stated)


def _refuse_other_axes(path: Path, image: Any) -> None:
    """Raise CanvasError for an axis of more than one beside time, channels, z, y and x: bioio would take the
    first of it."""
    sizes = dict(zip(image.dims.order, image.dims.shape, strict=True))
    for axis, size in sizes.items():
        if axis not in "TCZYX" and size > 1:
            what = "colours a pixel" if axis == "S" else _AXES.get(axis, f"places of an axis {axis}")
            raise CanvasError(
                f"{path} holds {size} {what}; a volume is one: save each as a file of its own in the "
                "microscope's program"
            )


def _choose_scene(path: Path, image: Any, scene: str | None) -> None:
    scenes = list(image.scenes)
    if len(scenes) < (stored := _scenes_of_czi(path)):
        raise CanvasError(
            f"{path} holds {stored} scenes, and its metadata name {len(scenes)}; save each as a file of its "
            "own (ZEN: Split Scenes)"
        )
    if scene is None and len(scenes) > 1:
        raise CanvasError(f"{path} holds the images {', '.join(scenes)}: choose one with --scene")
    if scene is not None and scene not in scenes:
        raise CanvasError(f"{path} has no image {scene!r}; it holds {', '.join(scenes)}")
    if scene is not None:
        image.set_scene(scene)


def _scenes_of_czi(path: Path) -> int:
    """Scenes that the blocks of a CZI file lie in; 0 for other files."""
    if path.suffix.lower() != ".czi":
        return 0
    from pylibCZIrw import czi

    with czi.open_czi(str(path)) as file:
        return len(file.scenes_bounding_rectangle)
