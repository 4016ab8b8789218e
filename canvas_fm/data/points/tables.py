"""Point tables as CSV or Parquet: named columns and `# key: value` metadata lines."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from jaxtyping import Float64

from canvas_fm.errors import CanvasError, MissingExtra
from canvas_fm.files.atomic import write_atomic

_BLOCK = 1 << 17  # rows read at a time: bounds what the text of a large file costs as Python strings
_NAPARI = ("axis-0", "axis-1", "axis-2")  # what a points layer saves; its rows are numbered in `index`
_DECIMAL_COMMA = re.compile(r"\s*(-?\d+(,\d+)?([eE][-+]?\d+)?)?\s*")
_META = b"canvas_fm"  # the Parquet schema's key under which `meta` lies as JSON


class PointTable(NamedTuple):
    """Contents of a points file: positions z, y, x in voxels of level 0, columns and `meta`."""

    zyx: Float64[np.ndarray, "n 3"]
    columns: dict[str, np.ndarray]
    meta: dict[str, str]


def read_table(path: Path, *, parquet: bool, columns: Sequence[str] | None = None) -> PointTable:
    """Read points of a CSV or Parquet file; `columns` renames its z, y and x."""
    table, meta = read_parquet(path) if parquet else read_csv(path)
    table = _with_axes(path, table, columns)
    others = {name: values for name, values in table.items() if not is_axis(name)}
    return PointTable(_coordinates(path, table), others, meta)


def read_csv(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Columns by name, typed by their contents, and `meta`; CanvasError if it is no table."""
    header, meta, blocks = _parse(path, as_text=frozenset())
    # A column whose first block looked like numbers and whose later ones do not: text throughout, as written.
    mixed = frozenset(
        name for name, parts in blocks.items() if len({part.dtype.kind == "U" for part in parts}) == 2
    )
    if mixed:
        blocks |= {name: parts for name, parts in _parse(path, as_text=mixed)[2].items() if name in mixed}
    return {name: np.concatenate(blocks[name] or [np.empty(0)]) for name in header}, meta


def write_csv(path: Path, table: Mapping[str, np.ndarray], meta: Mapping[str, str]) -> None:
    """Write `# key: value` lines, a header and one row a value, atomically."""
    columns = list(table.values())

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            for key, value in meta.items():
                file.write(f"# {_one_line(key)}: {_one_line(value)}\n")
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(table)
            for start in range(0, len(columns[0]), _BLOCK):
                rows = slice(start, start + _BLOCK)
                writer.writerows(zip(*(_plain(values[rows]).tolist() for values in columns), strict=True))

    write_atomic(path, write)


def read_parquet(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Columns by name and `meta`; types other than number and boolean are read as text."""
    pyarrow, parquet = _pyarrow(path)
    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as problem:
        raise CanvasError(f"{path} cannot be read as Parquet: {problem}") from problem
    meta = json.loads((table.schema.metadata or {}).get(_META, b"{}"))
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type
        if (
            pyarrow.types.is_integer(kind)
            or pyarrow.types.is_floating(kind)
            or pyarrow.types.is_boolean(kind)
        ):
            columns[name] = column.to_numpy()
        else:
            texts = column.cast(pyarrow.string()).to_pylist()
            columns[name] = np.array(["" if text is None else text for text in texts], dtype=np.str_)
    return columns, meta


def write_parquet(path: Path, table: Mapping[str, np.ndarray], meta: Mapping[str, str]) -> None:
    """Write a Parquet file atomically."""
    pyarrow, parquet = _pyarrow(path)
    with_meta = pyarrow.table(dict(table)).replace_schema_metadata({_META: json.dumps(dict(meta))})
    write_atomic(path, lambda temporary: parquet.write_table(with_meta, temporary))


def _with_axes(
    path: Path, table: dict[str, np.ndarray], names: Sequence[str] | None
) -> dict[str, np.ndarray]:
    """Rename the coordinates to z, y, x: from the given names, else napari's, else unchanged."""
    if names is not None:
        if len(names) != 3 or len(set(names)) != 3:
            raise CanvasError(f"columns {', '.join(names)} were given; expected three names, of z, y and x")
        if missing := [name for name in names if name not in table]:
            raise CanvasError(f"{path} has no column {missing[0]!r}; found {', '.join(table) or 'none'}")
        if other := [name for name in table if is_axis(name) and name not in names]:
            raise CanvasError(
                f"{path}: {other[0]!r} is a column too; leave it out, or give it as a coordinate"
            )
    elif any(map(is_axis, table)) or not set(_NAPARI) <= set(table):
        return table
    elif "axis-3" in table:
        raise CanvasError(
            f"{path} holds napari points of more than three axes; expected axis-0 … axis-2, z y x"
        )
    else:
        names = _NAPARI
        table = {name: values for name, values in table.items() if name != "index"}
    axis = dict(zip(names, "zyx", strict=True))
    return {axis.get(name, name): values for name, values in table.items()}


def _coordinates(path: Path, table: dict[str, np.ndarray]) -> Float64[np.ndarray, "n 3"]:
    """The columns z, y, x of a table, validated value by value."""
    names = {name.lower(): name for name in table if is_axis(name)}
    missing = [axis for axis in "zyx" if axis not in names]
    if missing:
        raise CanvasError(
            f"{path} has no column {', '.join(missing)}; found {', '.join(table) or 'none'}: "
            "name the coordinates z, y, x, in voxels of level 0 "
            "(`canvas-fm points convert --columns` renames them)"
        )
    zyx = np.empty((len(table[names["z"]]), 3))
    for axis, name in enumerate("zyx"):
        values = table[names[name]]
        try:
            zyx[:, axis] = values
        except ValueError as problem:
            row = next(i for i, text in enumerate(values.tolist()) if not _is_number(text))
            raise CanvasError(
                f"{path}: row {row + 1}: {names[name]} is {str(values[row])!r}, expected a number"
            ) from problem
        finite = np.isfinite(zyx[:, axis])
        if not finite.all():
            row = int(np.argmin(finite))
            raise CanvasError(
                f"{path}: row {row + 1}: {names[name]} is {zyx[row, axis]}, expected a finite number"
            )
    return zyx


def _parse(
    path: Path, as_text: frozenset[str]
) -> tuple[list[str], dict[str, str], dict[str, list[np.ndarray]]]:
    """Column names, meta and the columns as typed blocks; the columns in `as_text` stay text."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            meta, header_line = _head(file)
            delimiter = max(",;\t", key=header_line.count)
            header = [
                name.strip()
                for name in next(csv.reader([header_line], delimiter=delimiter, skipinitialspace=True), [])
            ]
            lower = [name.lower() for name in header]
            if repeated := [name for name in header if lower.count(name.lower()) > 1]:
                raise CanvasError(f"{path} has the column {repeated[0]} more than once")
            blocks: dict[str, list[np.ndarray]] = {name: [] for name in header}
            for rows in _row_blocks(
                path, csv.reader(file, delimiter=delimiter, skipinitialspace=True), len(header)
            ):
                for name, texts in zip(header, zip(*rows, strict=True), strict=True):
                    if delimiter == ";" and all(map(_DECIMAL_COMMA.fullmatch, texts)):
                        texts = tuple(text.replace(",", ".") for text in texts)
                    blocks[name].append(np.array(texts) if name in as_text else _typed(texts))
    except UnicodeDecodeError as problem:
        raise CanvasError(f"{path} is not UTF-8 text ({problem.reason}); save it as UTF-8") from problem
    except csv.Error as problem:
        raise CanvasError(f"{path} cannot be read as CSV: {problem}") from problem
    return header, meta, blocks


def _head(file: TextIO) -> tuple[dict[str, str], str]:
    """Read the `# key: value` lines and the header; leaves the file at the first row."""
    meta: dict[str, str] = {}
    for line in file:
        if line.lower().startswith("sep="):
            continue  # Excel's note of its delimiter
        if line.startswith("#"):
            if _names_axes(line[1:]):
                return meta, line[1:].lstrip()  # a column row as numpy.savetxt writes it, ClearMap's too
            key, colon, value = line[1:].partition(":")
            if colon:
                meta[key.strip()] = value.strip()
        elif line.strip(" \t\r\n,;"):
            return meta, line
    return meta, ""


def _names_axes(line: str) -> bool:
    names = {name.strip().strip('"').lower() for name in re.split("[,;\t]", line)}
    return {"z", "y", "x"} <= names


def _row_blocks(path: Path, reader: Iterator[list[str]], width: int) -> Iterator[list[list[str]]]:
    """Blocks of rows without empty lines; CanvasError where a row's length is not the header's."""
    first = 1
    while block := list(islice(reader, _BLOCK)):
        rows = [row for row in block if any(map(str.strip, row))]  # Excel writes blank rows as delimiters
        if set(map(len, rows)) - {width}:
            odd = next(i for i, row in enumerate(rows) if len(row) != width)
            raise CanvasError(
                f"{path}: row {first + odd} has {len(rows[odd])} values; the column row names {width}"
            )
        first += len(rows)
        if rows:
            yield rows


def _typed(texts: tuple[str, ...]) -> np.ndarray:
    """Integers if every text is one as Python would write it (007 stays text), else floats, else text."""
    try:
        integers = list(map(int, texts))
    except ValueError:
        pass
    else:
        with suppress(OverflowError):
            return np.array(integers, np.int64) if tuple(map(str, integers)) == texts else np.array(texts)
    with suppress(ValueError):
        return np.array(list(map(float, texts)))
    with suppress(ValueError):
        return np.array([float(text) if text.strip() else np.nan for text in texts])
    return np.array(texts)


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _plain(values: np.ndarray) -> np.ndarray:
    """Values for CSV: booleans as 0 and 1, float32 in its own shortest decimals."""
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    if values.dtype == np.float32:
        return values.astype(np.str_)
    return values


def _pyarrow(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as problem:
        raise MissingExtra("pyarrow", "parquet", f"{path.suffix} ({path.name})") from problem
    return pyarrow, pyarrow.parquet


def is_axis(name: str) -> bool:
    return name.lower() in ("z", "y", "x")


def _is_number(text: object) -> bool:
    try:
        float(str(text))
    except ValueError:
        return False
    return True
