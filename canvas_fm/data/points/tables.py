"""Point tables as CSV or Parquet: named columns and metadata, which a CSV has in `TABLE.json` beside it."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from canvas_fm.data.points.coordinate_columns import find_axes, is_napari_axis, to_voxels
from canvas_fm.data.points.csv_columns.columns import column_blocks, differ
from canvas_fm.data.points.csv_columns.format import format_rows
from canvas_fm.data.points.csv_columns.header import Header, read_header
from canvas_fm.data.points.csv_columns.parse import TextsTooLarge, joined_column, plain_float
from canvas_fm.data.points.formats.excel import XLSX, open_sheet, write_xlsx
from canvas_fm.data.points.formats.npy_table import NPY, read_npy
from canvas_fm.data.points.formats.parquet import read_parquet, write_parquet
from canvas_fm.data.points.sidecar import check_sidecar_place, read_sidecar, write_sidecar
from canvas_fm.data.points.text_files import create_text, open_text
from canvas_fm.errors import CanvasError
from canvas_fm.files.atomic import write_atomic

_log = logging.getLogger(__name__)
_BLOCK = 1 << 15  # rows written at a time


# 1,234 1.234,5 1'234, and with the blanks of French and Swiss programs.
_SEPARATED = re.compile(r"[-+]?\d{1,3}([,.'’\s]\d{3})+([.,]\d+)?")


class PointTable(NamedTuple):
    """Contents of a points file: positions z, y, x in voxels of level 0, columns and `meta`."""

    zyx: Float64[np.ndarray, "n 3"]
    columns: dict[str, np.ndarray]
    meta: dict[str, str]


def read_table(
    path: Path,
    *,
    parquet: bool,
    columns: Sequence[str] | None = None,
    voxel_um: Sequence[float] | None = None,
) -> PointTable:
    """Read points of a CSV or Parquet file; `columns` names its z, y and x.

    Positions in µm, as Imaris and TrackMate write them, need the volume's `voxel_um`.
    """
    units: dict[str, str] = {}
    if path.suffix.lower() == NPY:
        table, meta = read_npy(path), read_sidecar(path)
    elif parquet:
        table, meta = read_parquet(path)
    else:
        table, meta, units = read_csv(path)
        meta |= read_sidecar(path)
    table = _visible(path, table)
    axes = find_axes(path, table, units, columns)
    left_out = {*axes.names, *(name for name in table if axes.um is not None and name.lower() == "unit")}
    if any(map(is_napari_axis, axes.names)):
        left_out.add("index")
    others = {name: values for name, values in table.items() if name not in left_out}
    zyx = to_voxels(path, _coordinates(path, table, axes.names), axes, voxel_um)
    return PointTable(zyx, others, meta)


def _visible(path: Path, table: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """TrackMate's table of spots without those that its filters hide, as its XML is read."""
    visibility = table.get("VISIBILITY")
    if visibility is None or "POSITION_X" not in table or visibility.dtype.kind not in "iu":
        return table
    if hidden := int((visibility == 0).sum()):
        _log.warning(
            "%s: %d of %d spots, which TrackMate's filters hide, were left out", path, hidden, len(visibility)
        )
    return {name: values[visibility != 0] for name, values in table.items()}


def read_csv(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str], dict[str, str]]:
    """Columns by name, typed by their contents, `meta`, units by column; CanvasError if it is no table."""
    header, blocks = _parse(path, as_text=frozenset())
    # A column whose first block looked like numbers and whose later ones do not: text throughout, as written.
    mixed = frozenset(name for name, parts in blocks.items() if differ(parts))
    if mixed:
        blocks |= {name: parts for name, parts in _parse(path, as_text=mixed)[1].items() if name in mixed}
    try:
        table = {name: joined_column(blocks[name] or [np.empty(0)]) for name in header.names}
    except TextsTooLarge as problem:
        raise CanvasError(f"{path}: {problem}") from problem
    blank = [name for name in table if name.startswith("column_") and _is_blank(table[name])]
    return {name: table[name] for name in table if name not in blank}, header.meta, header.units


def _is_blank(values: np.ndarray) -> bool:
    return bool(np.isnan(values).all() if values.dtype.kind == "f" else (values == "").all())


def write_table(path: Path, table: Mapping[str, np.ndarray], meta: Mapping[str, str]) -> None:
    """Write a table as its suffix says: `.parquet`, `.xlsx`, else CSV."""
    kinds = {".parquet": write_parquet, ".pq": write_parquet, XLSX: write_xlsx}
    kinds.get(path.suffix.lower(), write_csv)(path, table, meta)


def joined(tables: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """One table of the rows of several with the same columns."""
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def text_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV, Parquet file or Excel sheet, every value as text; CanvasError where there is none."""
    if not path.is_file():
        raise CanvasError(f"there is no file {path}")
    if path.suffix.lower() in (".parquet", ".pq"):
        columns = read_parquet(path)[0]
        texts = [
            ["" if value != value else str(value) for value in part.tolist()] for part in columns.values()
        ]
        return [dict(zip(columns, row, strict=True)) for row in zip(*texts, strict=True)]
    if path.suffix.lower() == XLSX:
        with open_sheet(path) as file:
            lines = file.read().splitlines()
    else:
        with open_text(path) as file:
            lines = file.read().splitlines()
    lines = [line for line in lines if line and line[0] != "#"]
    delimiter = max(",;\t", key=lines[0].count) if lines else ","
    try:
        return [
            {str(key).strip(): str(value or "").strip() for key, value in row.items()}
            for row in csv.DictReader(lines, delimiter=delimiter)
        ]
    except csv.Error as problem:  # a field of megabytes, as where a quotation mark is never closed
        raise CanvasError(f"{path} is not readable as a table: {problem}") from problem


def write_csv(path: Path, table: Mapping[str, np.ndarray], meta: Mapping[str, str]) -> None:
    """Write a header and one row a value, atomically; `meta` goes into `PATH.json` beside it.

    `.tsv` has tabs, `.gz` is compressed. Raises CanvasError for columns that differ in case alone, which no
    reader here tells apart.
    """
    check_names(path, table)
    check_sidecar_place(path, meta)
    delimiter = "\t" if ".tsv" in path.suffixes[-2:] else ","

    def write(temporary: Path) -> None:
        with create_text(temporary, packed=path.suffix.lower() == ".gz") as file:
            write_rows(file, table, delimiter)
        rows = len(next(iter(table.values())))
        write_sidecar(path, temporary, rows, {_one_line(key): _one_line(meta[key]) for key in meta})

    write_atomic(path, write)


def csv_text(table: Mapping[str, np.ndarray], meta: Mapping[str, str]) -> str:
    """The CSV as one text with `meta` as `# key: value` lines before the columns, to be sent."""
    file = io.StringIO()
    for key, value in meta.items():
        file.write(f"# {_one_line(key)}: {_one_line(value)}\n")
    write_rows(file, table, ",")
    return file.getvalue()


def write_rows(file: io.TextIOBase, table: Mapping[str, np.ndarray], delimiter: str) -> None:
    """Write the column row and the rows of a table."""
    columns = list(table.values())
    writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    writer.writerow(table)
    for start in range(0, len(columns[0]), _BLOCK):
        block = [values[start : start + _BLOCK] for values in columns]
        text = format_rows(block, delimiter.encode())
        if text is not None:
            file.write(text.decode())
        else:
            texts = [_plain(values, blank=place > 0) for place, values in enumerate(block)]
            writer.writerows(zip(*texts, strict=True))


def check_names(path: Path, table: Mapping[str, np.ndarray]) -> None:
    """Raise CanvasError for columns that differ in case alone."""
    times = Counter(name.lower() for name in table)
    if repeated := [name for name in table if times[name.lower()] > 1]:
        raise CanvasError(f"{path}: the columns {', '.join(repeated)} differ in case alone; rename one")


def _coordinates(
    path: Path, table: Mapping[str, np.ndarray], names: Sequence[str]
) -> Float64[np.ndarray, "n 3"]:
    """The named columns z, y, x of a table, validated value by value."""
    zyx = np.empty((len(table[names[0]]), 3))
    for axis, name in enumerate(names):
        values = table[name]
        try:
            if values.dtype.kind == "U" and (np.char.find(values, "_") >= 0).any():
                raise ValueError("a number as Python alone reads it")
            zyx[:, axis] = values
        except ValueError as problem:
            row = next(i for i, text in enumerate(values.tolist()) if not _is_number(text))
            text = str(values[row])
            hint = ", without a separator of thousands" if _SEPARATED.fullmatch(text.strip()) else ""
            raise CanvasError(
                f"{path}: row {row + 1}: {name} is {text!r}, expected a number{hint}"
            ) from problem
        finite = np.isfinite(zyx[:, axis])
        if not finite.all():
            row = int(np.argmin(finite))
            raise CanvasError(f"{path}: row {row + 1}: {name} is {zyx[row, axis]}, expected a finite number")
    return zyx


def _parse(path: Path, as_text: frozenset[str]) -> tuple[Header, dict[str, list[np.ndarray]]]:
    """The header and the columns as typed blocks; the columns in `as_text` stay text."""
    try:
        with (open_sheet if path.suffix.lower() == XLSX else open_text)(path) as file:
            header = read_header(path, file)
            return header, column_blocks(path, header, file, as_text)
    except csv.Error as problem:
        raise CanvasError(f"{path} cannot be read as CSV: {problem}") from problem
    except TextsTooLarge as problem:
        raise CanvasError(f"{path}: {problem}") from problem


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _plain(values: np.ndarray, *, blank: bool) -> list[Any]:
    """Values for CSV: booleans as 0 and 1, float32 in its shortest decimals, NaN `blank` or not."""
    if values.dtype == np.bool_:
        return list(values.astype(np.uint8).tolist())
    listed = (values.astype(np.str_) if values.dtype == np.float32 else values).tolist()
    if blank and values.dtype.kind == "f":
        return [
            "" if missing else one for one, missing in zip(listed, np.isnan(values).tolist(), strict=True)
        ]
    return list(listed)


def _is_number(text: object) -> bool:
    try:
        plain_float(str(text))
    except ValueError:
        return False
    return True
