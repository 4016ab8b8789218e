"""HDF5 files, read through h5py: Imaris, BigDataViewer, ilastik, and single data sets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from canvas_fm.data.volume.stored.channel import pick
from canvas_fm.errors import CanvasError
from canvas_fm.prepare.convert_flags import ConvertOptions
from canvas_fm.prepare.sources.hdf5_dataset import Hdf5Channel, axes_of, finest_level, images_of, stored_dtype
from canvas_fm.prepare.sources.imaris import COARSER_IMARIS, IMARIS, open_imaris
from canvas_fm.prepare.sources.opened_file import OpenedFile, usable_voxel_um

HDF5 = (".h5", ".hdf5", ".hdf", ".ims")
_SIZES = ("element_size_um", "voxel_size_um")  # z, y, x: what Fiji's and PlantSeg's writers call it


def open_hdf5(path: Path, options: ConvertOptions) -> OpenedFile:
    """The channels of an Imaris file, or of the one data set that an HDF5 file holds or --dataset names."""
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError as problem:
        raise CanvasError(f"{path} {_why_unreadable(problem)}") from problem
    if IMARIS in file:
        return open_imaris(path, file, options.t)
    if COARSER_IMARIS in file:
        raise CanvasError(f"{path} lacks its finest level, {IMARIS}; write or copy it again")
    name, data = _chosen(path, images_of(file), options.dataset)
    if options.dataset is None and (finest := finest_level(name)) is not None:
        raise CanvasError(
            f"{path} holds {name}, a coarser level, and lacks the finest one, {finest}; copy all of its files"
        )
    axes = axes_of(path, data)
    stated = next((data.attrs[key] for key in _SIZES if key in data.attrs), None)
    voxel_um = None if stated is None else usable_voxel_um(stated)
    why = "the file states none" if stated is None else f"the file states {stated}"
    fixed = {"t": pick(path, "t", data.shape[axes.index("t")], options.t)} if "t" in axes else {}
    if options.t and "t" not in axes:
        raise CanvasError(f"{path} has no axis t; there is no t={options.t}")
    dtype = stored_dtype(file, name, data)
    several = data.shape[axes.index("c")] if "c" in axes else 1
    channels = [
        Hdf5Channel(path, data, axes, fixed | ({"c": c} if "c" in axes else {}), dtype=dtype)
        for c in range(several)
    ]
    names = [f"channel {c}" for c in range(several)] if "c" in axes else [name]
    return OpenedFile(channels, names, voxel_um, why)


def _why_unreadable(problem: OSError) -> str:
    """What HDF5's message means for whoever has the file."""
    text = str(problem)
    if "unable to lock file" in text:
        return "is open in a program that writes it; close it there, or wait until it is done"
    if cut := re.search(r"truncated file: eof = (\d+).*stored_eof = (\d+)", text):
        return f"is cut short: it has {int(cut[1]):,} of {int(cut[2]):,} bytes; copy it again"
    return f"is no readable HDF5 file: {text}"


def _chosen(path: Path, held: dict[str, Any], name: str | None) -> tuple[str, Any]:
    """The image of that name, else the only one."""
    listing = ", ".join(f"{key} {item.shape} {item.dtype}" for key, item in held.items())
    if not held:
        raise CanvasError(f"{path} holds no image: no data set of numbers with 3 to 5 axes")
    if name is None and len(held) > 1:
        raise CanvasError(f"{path} holds the images {listing}: choose one with --dataset")
    chosen = next(iter(held)) if name is None else name.strip("/")
    if chosen not in held:
        raise CanvasError(f"{path} has no image {name!r}; it holds {listing}")
    return chosen, held[chosen]
