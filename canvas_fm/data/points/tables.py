"""Tables of points as files: named columns and `# key: value` lines, in CSV or Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from canvas_fm.errors import CanvasError, MissingExtra
from canvas_fm.files.atomic import write_atomic

CSV = (".csv", ".tsv", ".txt")
PARQUET = (".parquet", ".pq")
_BLOCK = 1 << 17  # rows read at a time: bounds what the text of a large file costs as Python strings
_META = b"canvas_fm"  # the Parquet schema's key under which `meta` lies as JSON


def read_csv(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The columns by name, each typed by its texts, and `meta`; CanvasError for what is no table."""
    header, meta, blocks = _parse(path, as_text=frozenset())
    # A column whose first block looked like numbers and whose later ones do not: text throughout, as written.
    mixed = frozenset(
        name for name, parts in blocks.items() if len({part.dtype.kind == "U" for part in parts}) == 2
    )
    if mixed:
        blocks |= {name: parts for name, parts in _parse(path, as_text=mixed)[2].items() if name in mixed}
    return {name: np.concatenate(blocks[name] or [np.empty(0)]) for name in header}, meta


def write_table(path: Path, table: Mapping[str, np.ndarray], meta: Mapping[str, str]) -> None:
    """Write `# key: value` lines, the column row and a row for each value; not atomic by itself."""
    columns = list(table.values())
    with path.open("w", encoding="utf-8", newline="") as file:
        for key, value in meta.items():
            file.write(f"# {_one_line(key)}: {_one_line(value)}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(table)
        for start in range(0, len(columns[0]), _BLOCK):
            rows = slice(start, start + _BLOCK)
            writer.writerows(zip(*(_plain(values[rows]).tolist() for values in columns), strict=True))


def read_parquet(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The columns by name and `meta`; what is neither number nor boolean is read as text."""
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
    """Write a Parquet file, atomically."""
    pyarrow, parquet = _pyarrow(path)
    whole = pyarrow.table(dict(table)).replace_schema_metadata({_META: json.dumps(dict(meta))})
    write_atomic(path, lambda temporary: parquet.write_table(whole, temporary))


def _parse(
    path: Path, as_text: frozenset[str]
) -> tuple[list[str], dict[str, str], dict[str, list[np.ndarray]]]:
    """Column names, meta and each column as typed blocks; the columns in `as_text` stay text."""
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
                    blocks[name].append(np.array(texts) if name in as_text else _typed(texts))
    except UnicodeDecodeError as problem:
        raise CanvasError(f"{path} is not UTF-8 text ({problem.reason}); save it as UTF-8") from problem
    except csv.Error as problem:
        raise CanvasError(f"{path} cannot be read as CSV: {problem}") from problem
    return header, meta, blocks


def _head(file: TextIO) -> tuple[dict[str, str], str]:
    """The `# key: value` lines and the column row; leaves the file at the first row."""
    meta: dict[str, str] = {}
    for line in file:
        if line.startswith("#"):
            key, colon, value = line[1:].partition(":")
            if colon:
                meta[key.strip()] = value.strip()
        elif line.strip():
            return meta, line
    return meta, ""


def _row_blocks(path: Path, reader: Iterator[list[str]], width: int) -> Iterator[list[list[str]]]:
    """Blocks of rows, empty lines left out; raises CanvasError where a row's length is not the header's."""
    first = 1
    while block := list(islice(reader, _BLOCK)):
        rows = list(filter(None, block))
        if set(map(len, rows)) - {width}:
            odd = next(i for i, row in enumerate(rows) if len(row) != width)
            raise CanvasError(
                f"{path}: row {first + odd} has {len(rows[odd])} values; the column row names {width}"
            )
        first += len(rows)
        if rows:
            yield rows


def _typed(texts: tuple[str, ...]) -> np.ndarray:
    """Integers where every text is one as Python would write it (007 stays text), else numbers, else text."""
    try:
        whole = list(map(int, texts))
    except ValueError:
        pass
    else:
        with suppress(OverflowError):
            return np.array(whole, np.int64) if tuple(map(str, whole)) == texts else np.array(texts)
    with suppress(ValueError):
        return np.array(list(map(float, texts)))
    with suppress(ValueError):
        return np.array([float(text) if text.strip() else np.nan for text in texts])
    return np.array(texts)


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _plain(values: np.ndarray) -> np.ndarray:
    """Values as CSV shall show them: booleans as 0 and 1, float32 with its own few digits."""
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
