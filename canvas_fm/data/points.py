"""Points: rows of z, y, x in voxels of level 0 with any further columns, as CSV or Parquet.

Other programs' formats are read and written by `canvas_fm.data.formats`, through the same two calls.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from jaxtyping import Bool, Float64, Real

from canvas_fm.data.disk import write_atomic
from canvas_fm.errors import CanvasError, MissingExtra

_CSV = (".csv", ".tsv", ".txt")
_PARQUET = (".parquet", ".pq")
_NAPARI = ("axis-0", "axis-1", "axis-2")  # what a points layer saves; its rows are numbered in `index`
_BLOCK = 1 << 17  # rows read at a time: bounds what the text of a large file costs as Python strings
_META = b"canvas_fm"  # the Parquet schema's key under which `meta` lies as JSON


@dataclass
class Points:
    """Positions (n, 3) in voxels of level 0, order z, y, x, with equally long further columns.

    An integer is a voxel's centre. `columns` keep the order and type of their file (int, float or str);
    `meta` holds the file's `# key: value` lines. In messages rows count from 1, the column row left out.
    """

    zyx: np.ndarray  # float64 (n, 3); a plain annotation, because what is not is refused with a sentence
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    meta: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.zyx = as_zyx(self.zyx)
        for name, values in self.columns.items():
            self.columns[name] = values = np.asarray(values)
            if _is_axis(name):
                raise CanvasError(f"column {name!r} of points is a coordinate: it belongs into zyx")
            if values.shape != (len(self),):
                raise CanvasError(
                    f"column {name!r} of points has shape {values.shape}; expected ({len(self)},)"
                )

    def __len__(self) -> int:
        return len(self.zyx)

    @classmethod
    def read(
        cls, path: str | Path, *, allow_empty: bool = True, columns: Sequence[str] | None = None
    ) -> Points:
        """Read a .csv (comma, semicolon or tab) or .parquet file with columns z, y, x in voxels of level 0.

        Column names may be in any case and order, a byte-order mark is passed over, `# key: value` lines
        before the column row become `meta`. A napari points file (axis-0 … axis-2) is read as it is; where
        the coordinates have other names, `columns` says those of z, y and x. By their suffix .xml, .nml and
        .json are read too (see `canvas_fm.data.formats`). Raises CanvasError for missing or repeated columns,
        a ragged row, a coordinate that is not a finite number and, unless `allow_empty`, for a file without
        rows.
        """
        path = Path(path)
        if not path.is_file():
            raise CanvasError(f"no points file at {path}; give a .csv or .parquet with columns z, y, x")
        if path.suffix.lower() in _CSV:
            table, meta = _read_csv(path)
        elif path.suffix.lower() in _PARQUET:
            table, meta = _read_parquet(path)
        else:
            from canvas_fm.data.formats import read_points

            points = read_points(path, columns=columns)
            if not len(points) and not allow_empty:
                raise CanvasError(f"{path} holds no points; nothing to do")
            return points
        table = _with_axes(path, table, columns)
        zyx = _coordinates(path, table)
        if not len(zyx) and not allow_empty:
            raise CanvasError(f"{path} holds no points, only its column row; nothing to do")
        others = {name: values for name, values in table.items() if not _is_axis(name)}
        return cls(zyx, others, meta)

    def write(self, path: str | Path) -> None:
        """Write .csv or .parquet by the path's suffix, atomically: z, y, x, then the columns."""
        path = Path(path)
        if path.suffix.lower() in _CSV:
            write_atomic(path, self._write_csv)
        elif path.suffix.lower() in _PARQUET:
            pyarrow, parquet = _pyarrow(path)
            table = pyarrow.table({**self._coordinates(), **self.columns})
            table = table.replace_schema_metadata({_META: json.dumps(self.meta)})
            write_atomic(path, lambda temporary: parquet.write_table(table, temporary))
        else:
            from canvas_fm.data.formats import write_points

            write_points(self, path)

    def inside(self, shape_zyx: Sequence[int]) -> Bool[np.ndarray, " n"]:
        """Which points lie in a voxel of a volume of that shape: −½ ≤ p < size − ½ on each axis."""
        return inside(self.zyx, shape_zyx)

    def check_inside(self, shape_zyx: Sequence[int]) -> None:
        """Raise CanvasError where a point lies outside a volume of that shape: how many, and the first."""
        check_inside(self.zyx, shape_zyx)

    def _coordinates(self) -> dict[str, np.ndarray]:
        return {name: self.zyx[:, axis] for axis, name in enumerate("zyx")}

    def _write_csv(self, path: Path) -> None:
        write_table(path, {**self._coordinates(), **self.columns}, self.meta)


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


def as_zyx(points_zyx: Any) -> Float64[np.ndarray, "n 3"]:
    """Positions as float64 (n, 3), zero rows included; raises CanvasError for another shape, text or NaN."""
    try:
        zyx = np.asarray(points_zyx, dtype=np.float64)
    except (TypeError, ValueError) as problem:
        raise CanvasError(f"points are numbers in rows of z, y, x; {problem}") from problem
    if zyx.shape[0] == 0:
        zyx = zyx.reshape(0, 3)
    if zyx.ndim != 2 or zyx.shape[1] != 3:
        raise CanvasError(f"points have shape {zyx.shape}; expected (n, 3), rows of z, y, x in voxels")
    finite = np.isfinite(zyx).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise CanvasError(f"points: row {row + 1} (z, y, x) = {_show(zyx[row])} is not finite")
    return zyx


def inside(points_zyx: Real[np.ndarray, "n 3"], shape_zyx: Sequence[int]) -> Bool[np.ndarray, " n"]:
    """Which points lie in a voxel of a volume of that shape: −½ ≤ p < size − ½ on each axis."""
    zyx = np.asarray(points_zyx)
    return np.all((zyx >= -0.5) & (zyx < np.asarray(shape_zyx) - 0.5), axis=1)


def check_inside(points_zyx: Real[np.ndarray, "n 3"], shape_zyx: Sequence[int]) -> None:
    """Raise CanvasError where a point lies outside a volume of that shape: how many, and the first."""
    outside = ~inside(points_zyx, shape_zyx)
    if outside.any():
        row = int(np.argmax(outside))
        raise CanvasError(
            f"points outside the volume: {outside.sum()} of {len(outside)}, first at row {row + 1} "
            f"(z, y, x) = {_show(points_zyx[row])}; volume is {tuple(int(n) for n in shape_zyx)}: "
            "are the columns z, y, x in voxels of level 0?"
        )


def _show(zyx: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:.10g}" for value in zyx) + ")"


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _plain(values: np.ndarray) -> np.ndarray:
    """Values as CSV shall show them: booleans as 0 and 1, float32 with its own few digits."""
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    if values.dtype == np.float32:
        return values.astype(np.str_)
    return values


def _with_axes(
    path: Path, table: dict[str, np.ndarray], names: Sequence[str] | None
) -> dict[str, np.ndarray]:
    """The table with its coordinates called z, y, x: by the names given, else napari's, else as it is."""
    if names is not None:
        if len(names) != 3 or len(set(names)) != 3:
            raise CanvasError(f"columns {', '.join(names)} were given; expected three names, of z, y and x")
        if missing := [name for name in names if name not in table]:
            raise CanvasError(f"{path} has no column {missing[0]!r}; found {', '.join(table) or 'none'}")
        if other := [name for name in table if _is_axis(name) and name not in names]:
            raise CanvasError(
                f"{path}: {other[0]!r} is a column too; leave it out, or give it as a coordinate"
            )
    elif any(map(_is_axis, table)) or not set(_NAPARI) <= set(table):
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
    """The columns z, y, x of a table, checked value by value."""
    names = {name.lower(): name for name in table if _is_axis(name)}
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


def _is_axis(name: str) -> bool:
    return name.lower() in ("z", "y", "x")


def _is_number(text: object) -> bool:
    try:
        float(str(text))
    except ValueError:
        return False
    return True


# --- CSV


def _read_csv(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    header, meta, blocks = _parse(path, as_text=frozenset())
    # A column whose first block looked like numbers and whose later ones do not: text throughout, as written.
    mixed = frozenset(
        name for name, parts in blocks.items() if len({part.dtype.kind == "U" for part in parts}) == 2
    )
    if mixed:
        blocks |= {name: parts for name, parts in _parse(path, as_text=mixed)[2].items() if name in mixed}
    return {name: np.concatenate(blocks[name] or [np.empty(0)]) for name in header}, meta


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


# --- Parquet


def _pyarrow(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as problem:
        raise MissingExtra("pyarrow", "parquet", f"{path.suffix} ({path.name})") from problem
    return pyarrow, pyarrow.parquet


def _read_parquet(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
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
