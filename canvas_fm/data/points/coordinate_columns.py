"""Which columns of a table are coordinates, and from their unit to voxels."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from canvas_fm.data.points.label_values import BLANKS
from canvas_fm.errors import CanvasError, counted

_log = logging.getLogger(__name__)
_MOST_NAMES, _LONGEST_NAME = 12, 40  # that a message repeats
_NAPARI = ("axis-0", "axis-1", "axis-2")  # what a points layer saves; its rows are numbered in `index`
_UM = {
    "nm": 1e-3, "nanometer": 1e-3, "nanometre": 1e-3,
    "um": 1.0, "µm": 1.0, "μm": 1.0, "micron": 1.0, "micrometer": 1.0, "micrometre": 1.0,
    "mm": 1e3, "millimeter": 1e3, "millimetre": 1e3,
}  # fmt: skip
_VOXELS = ("px", "pixel", "vox", "voxel")
_TIMES = ("frame", "timepoint", "timestep", "t")
_COUNTER_3D = "Nb of obj. voxels"  # a column of Fiji's 3D Objects Counter, whose z are slices from 1
_SLICES = ("slice", "slice number", "z slice")
# z, Position Z and Center of Homogeneous Mass Z (Imaris), POSITION_Z (TrackMate), z_um, Z (µm), z [px], Z/µm,
# z in µm; R writes Position.Z and z..µm.
_NAME = re.compile(
    r"(?P<position>(?:position|center[ .]of[ .](?:homogeneous|image)[ .]mass)[ _.])?(?P<axis>[zyx])"
    rf"(?:(?:[ _./]*| in )[(\[]?(?P<unit>(?:{'|'.join([*_UM, *_VOXELS])})s?)[)\].]?)?",
    re.IGNORECASE,
)
# Columns z, y, x of measurements of objects, in voxels by what writes them.
_OBJECTS = (
    ("centroid-0", "centroid-1", "centroid-2"),  # scikit-image
    ("coordinate_raw_axis_0", "coordinate_raw_axis_1", "coordinate_raw_axis_2"),  # BrainGlobe
    ("CZ (pix)", "CY (pix)", "CX (pix)"),  # the 3D suite of ImageJ
    ("Location_Center_Z", "Location_Center_Y", "Location_Center_X"),  # CellProfiler
    ("AreaShape_Center_Z", "AreaShape_Center_Y", "AreaShape_Center_X"),
    ("Center_of_the_object_2", "Center_of_the_object_1", "Center_of_the_object_0"),  # ilastik
)


NO_NAMES = ": numbers where the names of columns are expected; write these into a first row, such as z,y,x"


class Coordinate(NamedTuple):
    """Axis and unit that a column's name says, and whether it is a `position` of Imaris or TrackMate."""

    axis: str
    unit: str | None
    position: bool


class Axes(NamedTuple):
    """Names of the columns z, y, x; µm of one of their unit (None: voxels); voxels to subtract."""

    names: Sequence[str]
    um: float | None
    shift: float


def is_axis(name: str) -> bool:
    """Whether a column is called z, y or x."""
    return name.lower() in ("z", "y", "x")


def is_napari_axis(name: str) -> bool:
    """Whether a column is called as napari calls coordinates."""
    return re.fullmatch(r"axis-\d+", name) is not None


def axis_of(name: str) -> Coordinate | None:
    """Coordinate named by a column, None if it is none."""
    match = _NAME.fullmatch(name.strip())
    if match is None:
        return None
    return Coordinate(match["axis"].lower(), match["unit"], match["position"] is not None)


def is_number(text: str) -> bool:
    """Whether a text is a number, with a point or a comma."""
    return re.fullmatch(r"[-+]?\d+([.,]\d*)?(e[-+]?\d+)?", text, re.IGNORECASE) is not None


def um_of(unit: str) -> float | None:
    """µm of one of a unit of length, 0 for pixels and voxels, None for an unknown one."""
    name = unit.strip().lower()
    names = (name, name.removesuffix("s"))
    if any(singular in _VOXELS for singular in names):
        return 0.0
    return next((_UM[singular] for singular in names if singular in _UM), None)


def find_axes(
    path: Path, table: Mapping[str, np.ndarray], units: Mapping[str, str], names: Sequence[str] | None
) -> Axes:
    """The coordinates of a table: the named columns, else z, y, x, else those of napari, Imaris or TrackMate.

    Raises CanvasError where one is missing, where shapes or more than three axes are in the file, where their
    unit is not known or not one, and where the rows are of several time points.
    """
    if any(name.startswith("vector-") for name in table) and set(_NAPARI) <= set(table):
        raise CanvasError(f"{path} holds napari vectors (vector-0 …), not points; save a points layer")
    if {"radius", "parent"} <= {name.lower() for name in table}:
        raise CanvasError(
            f"{path} holds the nodes of a skeleton (radius, parent, as in SWC), not cells; write the "
            "positions that are cells, with columns z, y, x"
        )
    if "shape-type" in table:
        raise CanvasError(
            f"{path} holds napari shapes (shape-type, vertex-index), not points; save a points layer"
        )
    if names is not None:
        _check_named(path, table, names)
    elif {"z", "y", "x"} <= {name.lower() for name in table}:
        names = [next(name for name in table if name.lower() == axis) for axis in "zyx"]
    elif any(map(is_axis, table)):
        raise _missing(path, table, [axis for axis in "zyx" if axis not in {name.lower() for name in table}])
    elif set(_NAPARI) <= set(table):
        if any(is_napari_axis(name) and name not in _NAPARI for name in table):
            raise CanvasError(
                f"{path} holds napari points of more than three axes; expected axis-0 … axis-2, z y x"
            )
        return Axes(_NAPARI, None, 0.0)
    elif objects := _objects(table):
        _check_one_time(path, table)
        _log.info("%s: the columns %s are taken as z, y, x", path, ", ".join(objects))
        return Axes(objects, None, 0.0)
    else:
        names_by_axis = {coordinate.axis: name for name in table if (coordinate := axis_of(name))}
        if set(names_by_axis) != {"z", "y", "x"}:
            raise _missing(path, table, [axis for axis in "zyx" if axis not in names_by_axis])
        names = [names_by_axis[axis] for axis in "zyx"]
    return _in_unit(path, table, units, names)


def to_voxels(
    path: Path, zyx: Float64[np.ndarray, "n 3"], axes: Axes, voxel_um: Sequence[float] | None
) -> Float64[np.ndarray, "n 3"]:
    """Positions in voxels; CanvasError if they are lengths and no voxel size is known."""
    if axes.um is None:
        return zyx
    if voxel_um is None:
        raise CanvasError(
            f"{path} has positions in physical units ({', '.join(axes.names)}); convert them once with the "
            f"volume's voxel size: canvas-fm points convert {path.name} cells.csv --voxel-um Z Y X"
        )
    return zyx * axes.um / np.asarray(voxel_um, np.float64) - axes.shift


def _check_named(path: Path, table: Mapping[str, np.ndarray], names: Sequence[str]) -> None:
    if len(names) != 3 or len(set(names)) != 3:
        raise CanvasError(f"columns {', '.join(names)} were given; expected three names, of z, y and x")
    if missing := [name for name in names if name not in table]:
        raise CanvasError(f"{path} has no column {missing[0]!r}; found {_some(table)}")
    if other := [name for name in table if is_axis(name) and name not in names]:
        raise CanvasError(f"{path}: {other[0]!r} is a column too; leave it out, or give it as a coordinate")
    if names[0].strip().lower() in _SLICES:
        _warn_of_slices(path, f"{names[0]} of ImageJ")


def _warn_of_slices(path: Path, column: str) -> None:
    _log.warning(
        "%s: %s counts from 1, so z may be one too large: canvas-fm points convert --origin -1 0 0 takes it "
        "off",
        path,
        column,
    )


def _missing(path: Path, table: Mapping[str, np.ndarray], axes: list[str]) -> CanvasError:
    numbered = list(table) == list(map(str, range(len(table))))  # of an array, or by pandas
    if table and not numbered and all(is_number(text) for name in table for text in name.split()):
        first = ", ".join(list(table)[:4])
        return CanvasError(f"{path} has no column {', '.join(axes)}; it begins with {first}{NO_NAMES}")
    if not table:
        return CanvasError(f"{path} is empty; give a table with columns z, y, x")
    if len(table) == 1 and set("zyx") <= set(re.split(r"[,;\t]", next(iter(table)).lower())):
        return CanvasError(
            f"{path}: each of its lines is one text in quotes; save it with a column for each value"
        )
    return CanvasError(
        f"{path} has no column {', '.join(axes)}; found {_some(table)}: "
        "name the coordinates z, y, x, in voxels of level 0 "
        "(`canvas-fm points convert --columns` renames them)"
    )


def _some(names: Iterable[str]) -> str:
    """The first names of columns, each cut to what a person reads."""
    shown = [name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…" for name in names]
    more = f" and {len(shown) - _MOST_NAMES:,} more" if len(shown) > _MOST_NAMES else ""
    return (", ".join(shown[:_MOST_NAMES]) or "none") + more


def _in_unit(
    path: Path, table: Mapping[str, np.ndarray], units: Mapping[str, str], names: Sequence[str]
) -> Axes:
    """Axes with the unit that the names, a row of units or Imaris' column `Unit` state."""
    coordinates = [axis_of(name) for name in names]
    is_position = any(coordinate is not None and coordinate.position for coordinate in coordinates)
    lower = {name.lower(): name for name in table}
    stated = {coordinate.unit for coordinate in coordinates if coordinate is not None and coordinate.unit}
    stated |= {units[name] for name in names if name in units}
    if _COUNTER_3D in table:
        _warn_of_slices(path, f"{names[0]} of the 3D Objects Counter")
    is_imaris = is_position and "unit" in lower
    if is_imaris or _are_units(table.get(lower.get("unit", ""))):
        named = {str(unit) for unit in np.unique(table[lower["unit"]])}
        stated |= {"no unit" if unit in BLANKS else unit for unit in named} if named - set(BLANKS) else set()
    _check_one_time(path, table)
    if not stated:
        if is_position and len(table[names[0]]):
            raise CanvasError(
                f"{path} does not say the unit of {names[0]}; name the columns z, y, x if they are in "
                "voxels, z_um, y_um, x_um if they are in µm"
            )
        return Axes(names, None, 0.0)
    lengths = {um_of(unit) for unit in stated}
    if len(lengths) > 1 or None in lengths:
        raise CanvasError(
            f"{path} has positions in {', '.join(sorted(stated))}; expected one unit: pixel, nm, um or mm"
        )
    um = lengths.pop()
    # Imaris counts from the outer corner of the first voxel, everything else from its centre.
    return Axes(names, um, 0.5 if is_imaris else 0.0) if um else Axes(names, None, 0.0)


def _are_units(values: np.ndarray | None) -> bool:
    """Whether a column `unit` beside z, y, x names lengths, so that these are no voxels."""
    if values is None or values.dtype.kind != "U" or not len(values):
        return False
    return all(um_of(str(unit)) is not None for unit in np.unique(values))


def _objects(table: Mapping[str, np.ndarray]) -> Sequence[str] | None:
    """The columns of a program that measures objects, by whose names blanks may stand for `_`."""
    named = {name.replace(" ", "_"): name for name in table}
    for names in _OBJECTS:
        columns = [named.get(name.replace(" ", "_")) for name in names]
        if None not in columns:
            return [name for name in columns if name is not None]
    return None


def _check_one_time(path: Path, table: Mapping[str, np.ndarray]) -> None:
    lower = {name.lower().replace(" ", "").replace("_", ""): name for name in table}
    position = any((axis := axis_of(name)) is not None and axis.position for name in table)
    # A column `time` beside plain z, y, x may be when a person clicked; of Imaris it is the movie's.
    for name in (*_TIMES, "time") if position else _TIMES:
        if name in lower and (count := len(np.unique(table[lower[name]]))) > 1:
            raise CanvasError(
                f"{path} holds {counted(count, 'time point')} (column {lower[name]}), and points "
                "are of one volume; "
                "keep the rows of one"
            )
