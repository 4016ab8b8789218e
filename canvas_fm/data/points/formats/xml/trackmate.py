"""Points as TrackMate's XML: visible spots, in voxels by the image's pixel size in the file."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from canvas_fm.data.points.coordinate_columns import um_of
from canvas_fm.data.points.formats.xml.xml_reader import number, parse
from canvas_fm.data.points.tables import PointTable
from canvas_fm.errors import CanvasError, counted

_log = logging.getLogger(__name__)
ROOT = "TrackMate"
_SIZES = ("voxeldepth", "pixelheight", "pixelwidth")
_COLUMNS = ("QUALITY", "RADIUS")


def read_trackmate(path: Path, voxel_um: tuple[float, float, float] | None) -> PointTable:
    """The visible spots of a TrackMate XML in file order, with `QUALITY` and `RADIUS` as they stand there.

    TrackMate places a spot at voxel index times pixel size, which the file states; where it states none, as
    for the depth of single planes, `voxel_um` is needed. Raises CanvasError for several time points and for
    an unknown unit.
    """
    unit, hidden = "pixel", 0
    sizes: dict[str, float] = {}
    frames: set[str] = set()
    zyx: list[float] = []
    columns: dict[str, list[float]] = {name: [] for name in _COLUMNS}

    def start(name: str, attributes: Mapping[str, str]) -> None:
        nonlocal unit, hidden
        if name == "Model":
            unit = attributes.get("spatialunits", unit)
        elif name == "ImageData":
            sizes.update(
                {key: number(path, key, attributes.get(key)) for key in _SIZES if attributes.get(key)}
            )
        elif name == "Spot" and number(path, "VISIBILITY", attributes.get("VISIBILITY", "1")) == 0:
            hidden += 1
        elif name == "Spot":
            frames.add(attributes.get("FRAME", "0"))
            zyx.extend(number(path, f"POSITION_{axis}", attributes.get(f"POSITION_{axis}")) for axis in "ZYX")
            for key, values in columns.items():
                values.append(float(attributes.get(key, "nan")))

    parse(path, ROOT, "TrackMate's XML", start, lambda name: None, lambda piece: None)
    if len(frames) > 1:
        raise CanvasError(
            f"{path} holds {len(frames)} time points (FRAME), and points are of one volume; save one"
        )
    if hidden:
        _log.warning("%s: %s left out, as TrackMate's filters have it", path, counted(hidden, "hidden spot"))
    if (um := um_of(unit)) is None:
        raise CanvasError(f"{path} has positions in {unit!r}; expected pixel, nm, µm or mm")
    size, meta = _size(path, um, [sizes.get(key, 0.0) for key in _SIZES], voxel_um)
    filled = {name: np.array(values) for name, values in columns.items() if not np.isnan(values).all()}
    return PointTable(np.array(zyx, np.float64).reshape(-1, 3) / size, filled, meta)


def _size(
    path: Path, um: float, sizes: list[float], voxel_um: tuple[float, float, float] | None
) -> tuple[np.ndarray, dict[str, str]]:
    """Size of a voxel z, y, x in the file's unit, and `meta` with the voxel size where the unit is known."""
    if um == 0:
        return np.array([size or 1.0 for size in sizes]), {}
    if all(size > 0 for size in sizes):
        return np.array(sizes), {"voxel_um": " ".join(repr(float(f"{um * size:.12g}")) for size in sizes)}
    if voxel_um is None:
        raise CanvasError(
            f"{path} states pixels of {sizes} (z y x); give the volume's voxel size once: "
            f"canvas-fm points convert {path.name} cells.csv --voxel-um Z Y X"
        )
    return np.array(voxel_um) / um, {}
