"""Imaris files: channels, their names and the voxel size in HDF5 attributes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.data.store.ome.scale import UNITS_UM
from canvas_fm.data.zyx import Zyx, ZyxUm, whole_zyx
from canvas_fm.errors import CanvasError, counted
from canvas_fm.prepare.sources.hdf5_dataset import Hdf5Channel
from canvas_fm.prepare.sources.opened_file import OpenedFile, usable_voxel_um

IMARIS = "DataSet/ResolutionLevel 0"
COARSER_IMARIS = "DataSet/ResolutionLevel 1"
_IMAGE = "DataSetInfo/Image"
_log = logging.getLogger(__name__)


def open_imaris(path: Path, file: Any, t: int | None) -> OpenedFile:
    """The channels of one time point at full resolution."""
    times = file[IMARIS]
    if t is None and len(times) > 1:
        raise CanvasError(f"{path} has {len(times)} time points: choose one with --t 0 to {len(times) - 1}")
    point = f"TimePoint {t or 0}"
    if point not in times:
        raise CanvasError(f"{path} has {counted(len(times), 'time point')}: there is no t={t}")
    channels, names = [], []
    for c in range(len(times[point])):
        group = times[point][f"Channel {c}"]
        channels.append(Hdf5Channel(path, group["Data"], shape=_shape(path, group)))
        about = file.get(f"DataSetInfo/Channel {c}")
        names.append((_text(about.attrs.get("Name")) if about is not None else "") or f"channel {c}")
    about = file.get(_IMAGE)
    voxel_um = None if about is None else _voxel_um(about.attrs, channels[0].shape_zyx)
    if about is not None and voxel_um is not None:
        _warn_offset(path, about.attrs, voxel_um)
    return OpenedFile(channels, names, voxel_um, "its Unit, ExtMin and ExtMax state none")


def _shape(path: Path, group: Any) -> Zyx:
    """Size without the padding; that of the data where no `ImageSize` is stated."""
    stated = [_text(group.attrs.get(f"ImageSize{axis}")) for axis in "ZYX"]
    stored = group["Data"].shape
    sizes = [int(text) if text.isdecimal() else n for text, n in zip(stated, stored, strict=True)]
    if any(not 0 < size <= n for size, n in zip(sizes, stored, strict=True)):
        raise CanvasError(f"{path} states an image of {sizes} voxels (z, y, x); {group.name} holds {stored}")
    return whole_zyx(sizes, "ImageSize")


def _voxel_um(about: Any, shape_zyx: Sequence[int]) -> ZyxUm | None:
    """Extent over voxels of each axis, None where they are no lengths; Imaris counts its axes from x."""
    factor = UNITS_UM.get(_text(about.get("Unit")).lower())
    try:
        low, high = (
            [float(_text(about.get(f"Ext{end}{axis}"))) for axis in (2, 1, 0)] for end in ("Min", "Max")
        )
    except ValueError:
        return None
    if factor is None:
        return None
    # Rounded, since the product of a unit such as nm has digits that nobody wrote.
    sizes = [(b - a) / n * factor for a, b, n in zip(low, high, shape_zyx, strict=True)]
    return usable_voxel_um([float(f"{size:.12g}") for size in sizes])


def _warn_offset(path: Path, about: Any, voxel_um: ZyxUm) -> None:
    """Warn of an image that begins elsewhere than at zero, as by a stage: Imaris exports positions from
    there."""
    factor = UNITS_UM[_text(about.get("Unit")).lower()]
    low_um = [float(_text(about.get(f"ExtMin{axis}"))) * factor for axis in (2, 1, 0)]
    if all(abs(low) < size / 2 for low, size in zip(low_um, voxel_um, strict=True)):
        return
    origin = " ".join(f"{-low / size:.6g}" for low, size in zip(low_um, voxel_um, strict=True))
    _log.warning(
        "%s begins at %s µm (z, y, x), the store at 0: positions that Imaris exports are moved by "
        "`canvas-fm points convert --voxel-um %s --origin %s`",
        path,
        ", ".join(f"{low:g}" for low in low_um),
        " ".join(f"{size:g}" for size in voxel_um),
        origin,
    )


def _text(value: Any) -> str:
    """Imaris keeps text as arrays of single bytes; others write it as one string."""
    if value is None:
        return ""
    if isinstance(value, np.ndarray):
        value = value.tobytes()
    return value.decode("utf-8", "replace").strip("\0 ") if isinstance(value, bytes) else str(value)
