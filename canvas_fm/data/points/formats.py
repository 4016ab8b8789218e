"""Points in the field's formats: one reader and one writer, by a file's suffix or by the format's name.

`csv`, `parquet` (z, y, x), `napari` (axis-0 … axis-2), `canvas` (the ground truth of the CANVAS data set: x,
y, z by their names), `cellfinder` (BrainGlobe's XML, types 1 and 2), `webknossos` (NML) and `neuroglancer`
(JSON with a layer of local annotations). Here an integer is a voxel's centre, as it is to cellfinder, napari
and WebKnossos; Neuroglancer counts from a voxel's corner and is half a voxel off, which is taken care of.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from canvas_fm.data.points.points import Points
from canvas_fm.data.points.tables import write_table
from canvas_fm.errors import CanvasError
from canvas_fm.files.atomic import write_atomic

ZyxUm = tuple[float, float, float]

FORMATS = ("csv", "parquet", "napari", "canvas", "cellfinder", "webknossos", "neuroglancer")
_SUFFIXES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".xml": "cellfinder",
    ".nml": "webknossos",
    ".json": "neuroglancer",
}
_TABLES = ("csv", "parquet", "napari", "canvas")


def format_of(path: str | Path, given: str | None = None) -> str:
    """The format that is given, else the one that the suffix stands for; CanvasError for neither."""
    if given is not None:
        if given not in FORMATS:
            near = difflib.get_close_matches(given, FORMATS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(FORMATS)}"
            raise CanvasError(f"no format of points is called {given!r}; {hint}")
        return given
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise CanvasError(
            f"{path}: the suffix {suffix or 'none'!r} says no format of points; expected "
            f"{', '.join(_SUFFIXES)}, or the format's name ({', '.join(FORMATS)})"
        )
    return _SUFFIXES[suffix]


def read_points(
    path: str | Path, format: str | None = None, *, columns: Sequence[str] | None = None
) -> Points:
    """Points of any format, in voxels of level 0; `meta` says the voxel size where the file does.

    `columns` names the z, y and x of a table that calls them otherwise. Raises CanvasError for what the
    format does not allow: a missing coordinate, a number that is none, an XML with a document type (nothing
    of a file is ever expanded or fetched).
    """
    path, kind = Path(path), format_of(path, format)
    if not path.is_file():
        raise CanvasError(f"no points file at {path}")
    if kind in _TABLES:
        if path.suffix.lower() not in _SUFFIXES or _SUFFIXES[path.suffix.lower()] not in _TABLES:
            raise CanvasError(f"{path}: a {kind} file ends in .csv, .tsv, .txt or .parquet; rename it")
        return Points.read(path, columns=columns)
    if columns is not None:
        raise CanvasError(f"{path}: column names were given, but {kind} files have no columns to name")
    if kind == "neuroglancer":
        from canvas_fm.data.points.neuroglancer import read_neuroglancer

        return read_neuroglancer(path)
    from canvas_fm.data.points.cellfinder_webknossos import read_cellfinder, read_webknossos

    return (read_cellfinder if kind == "cellfinder" else read_webknossos)(path)


def write_points(
    points: Points, path: str | Path, format: str | None = None, *, voxel_um: ZyxUm | None = None
) -> None:
    """Write points atomically; what a format cannot hold is named in a warning.

    `voxel_um`, else the points' own `meta`, is needed by webknossos and neuroglancer, which place points in
    space.
    """
    path, kind = Path(path), format_of(path, format)
    if kind in ("csv", "parquet"):
        if _SUFFIXES.get(path.suffix.lower()) != kind:
            raise CanvasError(f"{path}: a {kind} file has another suffix; expected .{kind}")
        Points(points.zyx, points.columns, _with_voxel_um(points, voxel_um)).write(path)
    elif kind == "napari":
        axes = {f"axis-{axis}": points.zyx[:, axis] for axis in range(3)}
        index = {"index": np.arange(len(points))}
        write_atomic(path, lambda file: write_table(file, {**index, **axes, **points.columns}, {}))
    elif kind == "canvas":
        axes = {name: points.zyx[:, 2 - axis] for axis, name in enumerate("xyz")}
        write_atomic(path, lambda file: write_table(file, {**axes, **points.columns}, {}))
    elif kind == "neuroglancer":
        from canvas_fm.data.points.neuroglancer import write_neuroglancer

        write_neuroglancer(points, path, voxel_um=_voxel_um(points, voxel_um, path))
    elif kind == "webknossos":
        from canvas_fm.data.points.cellfinder_webknossos import write_webknossos

        write_webknossos(points, path, voxel_um=_voxel_um(points, voxel_um, path))
    else:
        from canvas_fm.data.points.cellfinder_webknossos import write_cellfinder

        write_cellfinder(points, path)


def convert_points(
    source: str | Path,
    out: str | Path,
    *,
    origin_zyx: Sequence[float] | None = None,
    voxel_um: ZyxUm | None = None,
    source_format: str | None = None,
    out_format: str | None = None,
    columns: Sequence[str] | None = None,
) -> Points:
    """Read points in one format and write them in another; returns them as written.

    `origin_zyx` is where the first voxel of a region lies in the whole brain, for files in the region's own
    coordinates: it is added to every position.
    """
    out_format = format_of(out, out_format)
    points = read_points(source, source_format, columns=columns)
    if origin_zyx is not None:
        if len(origin_zyx) != 3 or not np.isfinite(origin_zyx).all():
            raise CanvasError(f"origin is {tuple(origin_zyx)}; expected three numbers, z y x in voxels")
        points = Points(points.zyx + np.asarray(origin_zyx, np.float64), points.columns, points.meta)
    if not Path(out).parent.is_dir():
        raise CanvasError(f"{out}: there is no folder {Path(out).parent} to write it into")
    write_points(points, out, out_format, voxel_um=voxel_um)
    return points


def voxel_um_of(points: Points) -> ZyxUm | None:
    """The voxel size that a file of points states in its `voxel_um` line, None where it does not."""
    try:
        z, y, x = (float(text) for text in points.meta["voxel_um"].replace(",", " ").split())
    except (KeyError, ValueError):
        return None
    return (z, y, x)


def said(voxel_um: Sequence[float]) -> str:
    """A voxel size as `meta` holds it: "4.0 1.8 1.8"."""
    return " ".join(repr(float(size)) for size in voxel_um)


def _voxel_um(points: Points, given: ZyxUm | None, path: Path) -> ZyxUm:
    stated = voxel_um_of(points)
    if given is None and stated is None:
        raise CanvasError(
            f"{path}: this format places points in space; give the voxel size: --voxel-um Z Y X"
        )
    if given is not None and stated is not None and not np.allclose(given, stated, rtol=1e-6):
        raise CanvasError(
            f"the points state voxels of {said(stated)} µm, and {said(given)} µm (z y x) were given; "
            "leave the one out that is wrong"
        )
    size = given if given is not None else stated
    assert size is not None
    if not all(0 < value < float("inf") for value in size):
        raise CanvasError(f"voxel size is {said(size)}; expected three numbers above 0, z y x in µm")
    return size


def _with_voxel_um(points: Points, given: ZyxUm | None) -> dict[str, str]:
    return points.meta | ({"voxel_um": said(given)} if given is not None else {})


def suffixes() -> tuple[str, ...]:
    """The suffixes that points are read from."""
    return tuple(_SUFFIXES)
