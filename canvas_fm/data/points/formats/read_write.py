"""Points in the field's file formats: one reader and one writer, by suffix or by format name.

`csv`, `parquet`, `xlsx` (z, y, x), `napari` (axis-0 … axis-2), `canvas` (the ground truth of the CANVAS data
set: x, y, z by their names), `cellfinder` (BrainGlobe's XML or YAML, types 1 and 2), `webknossos` (NML) and
`neuroglancer` (JSON with a layer of local annotations). Here an integer is a voxel's centre, as it is to
cellfinder, napari and WebKnossos; Neuroglancer counts from a voxel's corner and is half a voxel off, which is
taken care of.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from canvas_fm.data.points.coordinate_columns import is_napari_axis
from canvas_fm.data.points.formats.cellfinder_yaml import YAML, read_cellfinder_yaml
from canvas_fm.data.points.formats.excel import write_xlsx
from canvas_fm.data.points.formats.neuroglancer import read_neuroglancer, write_neuroglancer
from canvas_fm.data.points.formats.parquet import write_parquet
from canvas_fm.data.points.formats.xml.cellfinder_webknossos import (
    read_cellfinder,
    read_webknossos,
    write_cellfinder,
    write_webknossos,
)
from canvas_fm.data.points.formats.xml.trackmate import ROOT as TRACKMATE
from canvas_fm.data.points.formats.xml.trackmate import read_trackmate
from canvas_fm.data.points.formats.xml.xml_reader import root_of
from canvas_fm.data.points.tables import PointTable, read_table, write_csv
from canvas_fm.data.precomputed.read_annotations import INFO, read_precomputed
from canvas_fm.data.store.files import is_store
from canvas_fm.data.store.lfs_pointers import why_unfetched
from canvas_fm.data.zyx import check_voxel_um
from canvas_fm.errors import CanvasError

VoxelUm = tuple[float, float, float]

FORMATS = ("csv", "parquet", "xlsx", "napari", "canvas", "cellfinder", "webknossos", "neuroglancer")
_SUFFIXES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".csv.gz": "csv",
    ".tsv.gz": "csv",
    ".txt.gz": "csv",
    ".xlsx": "xlsx",
    ".npy": "npy",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".xml": "cellfinder",
    ".yml": "cellfinder",
    ".yaml": "cellfinder",
    ".nml": "webknossos",
    ".json": "neuroglancer",
    ".url": "neuroglancer",
}
_ROIS = "write ImageJ's regions of interest as a table (More > List, or Measure) and save it as CSV"
_HOW = {  # what to do with files that others call points
    ".xls": "save the sheet as .xlsx or CSV",
    ".xlsm": "save the sheet as .xlsx or CSV",
    ".ods": "save the sheet as .xlsx or CSV",
    ".zip": f"unpack it; {_ROIS}",
    ".roi": _ROIS,
    ".fcsv": "they are in mm along a patient's axes; write voxels (IJK) as CSV with columns z, y, x",
    ".mat": "write its positions as CSV (writetable), with columns z, y, x",
    ".swc": "a skeleton's nodes are no cells; write positions as CSV with columns z, y, x",
}
_TABLES = ("csv", "parquet", "xlsx", "npy", "napari", "canvas")


def format_of(path: str | Path, name: str | None = None) -> str:
    """The stated format, else the suffix's; CanvasError for neither."""
    if name is not None:
        if name not in FORMATS:
            matches = difflib.get_close_matches(name, FORMATS, n=1)
            hint = f"did you mean {matches[0]!r}?" if matches else f"known: {', '.join(FORMATS)}"
            raise CanvasError(f"no format of points is called {name!r}; {hint}")
        return name
    suffix = suffix_of(path)
    if suffix in _HOW:
        raise CanvasError(f"{path}: {suffix} files are not read; {_HOW[suffix]}")
    if suffix not in _SUFFIXES:
        raise CanvasError(
            f"{path}: the suffix {suffix or 'none'!r} says no format of points; expected "
            f"{', '.join(_SUFFIXES)}, or the format's name ({', '.join(FORMATS)})"
        )
    return _SUFFIXES[suffix]


def suffix_of(path: str | Path) -> str:
    """The suffix in lower case, `.csv.gz` as one."""
    suffixes = Path(path).suffixes
    packed = suffixes[-1:] != [] and suffixes[-1].lower() == ".gz"
    return "".join(suffixes[-2 if packed else -1 :]).lower()


def read_points(
    path: str | Path,
    format: str | None = None,
    *,
    columns: Sequence[str] | None = None,
    voxel_um: VoxelUm | None = None,
) -> PointTable:
    """Positions, columns and `meta` of a file of any format; `meta` has the voxel size if the file does.

    `columns` names the z, y and x of a table that calls them otherwise. Positions in µm (Imaris, TrackMate)
    need the volume's `voxel_um`; a file that states another voxel size is refused. Raises CanvasError for
    what the format does not allow: a missing coordinate, a number that is none, an XML with a document type
    (nothing of a file is ever expanded or fetched).
    """
    path = Path(path)
    if voxel_um is not None:
        check_voxel_um(voxel_um)
    if path.is_dir() and is_store(path):
        raise CanvasError(f"{path} is a Zarr store, where points are expected: a .csv with columns z, y, x")
    if path.is_dir() and any(path.glob("*.[tT][iI][fF]*")):
        raise CanvasError(
            f"{path} is a folder of TIFF planes, where points are expected: a .csv with columns z, y, x"
        )
    if path.is_dir() and any(path.glob("*.parquet")):
        raise CanvasError(f"{path} is a folder of Parquet files; write them as one")
    if path.is_dir() or path.name == INFO:
        if columns is not None or format not in (None, "neuroglancer"):
            raise CanvasError(
                f"{path}: a folder of points is Neuroglancer's; give neither format nor columns"
            )
        points = read_precomputed(path)
    elif path.is_symlink() and not path.exists():
        what, how = why_unfetched(path) or ("is a broken link", "copy the file itself")
        raise CanvasError(f"{path} {what}; {how}")
    elif not path.is_file():
        raise CanvasError(f"no points file at {path}; give a .csv or .parquet with columns z, y, x")
    elif (unfetched := why_unfetched(path)) is not None:
        raise CanvasError(f"{path} {'; '.join(unfetched)}")
    else:
        points = _read(path, format_of(path, format), columns, voxel_um)
    stated = voxel_um_of(points.meta)
    if voxel_um is not None and stated is not None and not np.allclose(voxel_um, stated, rtol=1e-6):
        raise _two_sizes(stated, voxel_um)
    return points


def _read(path: Path, kind: str, columns: Sequence[str] | None, voxel_um: VoxelUm | None) -> PointTable:
    if kind in _TABLES:
        stored_as = _SUFFIXES.get(suffix_of(path))
        if stored_as not in _TABLES:
            raise CanvasError(f"{path}: a {kind} file ends in .csv, .tsv, .txt, .xlsx or .parquet; rename it")
        return read_table(path, parquet=stored_as == "parquet", columns=columns, voxel_um=voxel_um)
    if columns is not None:
        raise CanvasError(f"{path}: column names were given, but {kind} files have no columns to name")
    if kind == "cellfinder" and path.suffix.lower() in YAML:
        return read_cellfinder_yaml(path)
    if kind == "cellfinder" and root_of(path) == TRACKMATE:
        return read_trackmate(path, voxel_um)
    return {"neuroglancer": read_neuroglancer, "cellfinder": read_cellfinder, "webknossos": read_webknossos}[
        kind
    ](path)


def write_points(
    points: PointTable, path: str | Path, format: str | None = None, *, voxel_um: VoxelUm | None = None
) -> None:
    """Write points atomically; a warning names what the format cannot hold.

    `voxel_um`, else the points' own `meta`, is needed by webknossos and neuroglancer, which place points in
    space.
    """
    path, kind = Path(path), format_of(path, format)
    if kind == "npy":
        raise CanvasError(f"{path}: NumPy arrays of points are read only; write .csv or .parquet")
    if kind == "cellfinder":
        if path.suffix.lower() in YAML:
            raise CanvasError(
                f"{path}: cellfinder's YAML is read only; write .xml, which cellfinder reads too"
            )
        write_cellfinder(points, path)
    elif kind == "neuroglancer":
        write_neuroglancer(points, path, voxel_um=_voxel_um(points, voxel_um, path))
    elif kind == "webknossos":
        write_webknossos(points, path, voxel_um=_voxel_um(points, voxel_um, path))
    else:
        if kind in ("csv", "parquet", "xlsx") and _SUFFIXES.get(suffix_of(path)) != kind:
            raise CanvasError(f"{path}: a {kind} file has another suffix; expected .{kind}")
        meta = points.meta if voxel_um is None else points.meta | {"voxel_um": format_voxel_um(voxel_um)}
        {"parquet": write_parquet, "xlsx": write_xlsx}.get(kind, write_csv)(
            path, _named_axes(points, kind), meta
        )


def _named_axes(points: PointTable, kind: str) -> dict[str, np.ndarray]:
    """The columns of a table in that format: coordinates first, under the format's names."""
    z, y, x = points.zyx.T
    if kind == "canvas":
        return {"x": x, "y": y, "z": z, **points.columns}
    if kind == "napari":
        if taken := [name for name in points.columns if name == "index" or is_napari_axis(name)]:
            raise CanvasError(f"the column {taken[0]!r} is napari's own; rename it to write napari's CSV")
        return {"index": np.arange(len(z)), "axis-0": z, "axis-1": y, "axis-2": x, **points.columns}
    return {"z": z, "y": y, "x": x, **points.columns}


def voxel_um_of(meta: Mapping[str, str]) -> VoxelUm | None:
    """The voxel size in a points file's `voxel_um` line, None if absent."""
    try:
        z, y, x = (float(text) for text in meta["voxel_um"].replace(",", " ").split())
    except (KeyError, ValueError):
        return None
    return (z, y, x)


def format_voxel_um(voxel_um: Sequence[float]) -> str:
    """A voxel size as text for `meta`: "4.0 1.8 1.8"."""
    return " ".join(repr(float(size)) for size in voxel_um)


def _voxel_um(points: PointTable, voxel_um: VoxelUm | None, path: Path) -> VoxelUm:
    stated = voxel_um_of(points.meta)
    if voxel_um is None and stated is None:
        raise CanvasError(
            f"{path}: this format places points in space; give the voxel size: --voxel-um Z Y X"
        )
    if voxel_um is not None and stated is not None and not np.allclose(voxel_um, stated, rtol=1e-6):
        raise _two_sizes(stated, voxel_um)
    size = voxel_um if voxel_um is not None else stated
    assert size is not None
    check_voxel_um(size)
    return size


def _two_sizes(stated: VoxelUm, voxel_um: VoxelUm) -> CanvasError:
    return CanvasError(
        f"the points state voxels of {format_voxel_um(stated)} µm, and {format_voxel_um(voxel_um)} µm "
        "(z y x) were given; leave the one out that is wrong"
    )


def suffixes() -> tuple[str, ...]:
    """The file suffixes that points can be read from."""
    return tuple(_SUFFIXES)
