"""Points: rows of z, y, x in voxels of level 0 with any further columns, as CSV or Parquet.

How a table lies in a file is `canvas_fm.data.points.tables`; other programs' formats are read and written by
`canvas_fm.data.points.formats`, through the same two calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Real

from canvas_fm.data.points.tables import (
    CSV,
    PARQUET,
    read_csv,
    read_parquet,
    write_parquet,
    write_table,
)
from canvas_fm.errors import CanvasError
from canvas_fm.files.atomic import write_atomic

_NAPARI = ("axis-0", "axis-1", "axis-2")  # what a points layer saves; its rows are numbered in `index`


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
        .json are read too (see `canvas_fm.data.points.formats`). Raises CanvasError for missing or repeated
        columns, a ragged row, a coordinate that is not a finite number and, unless `allow_empty`, for a file
        without rows.
        """
        path = Path(path)
        if not path.is_file():
            raise CanvasError(f"no points file at {path}; give a .csv or .parquet with columns z, y, x")
        if path.suffix.lower() in CSV:
            table, meta = read_csv(path)
        elif path.suffix.lower() in PARQUET:
            table, meta = read_parquet(path)
        else:
            from canvas_fm.data.points.formats import read_points

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
        if path.suffix.lower() in CSV:
            write_atomic(path, lambda temporary: write_table(temporary, self._table(), self.meta))
        elif path.suffix.lower() in PARQUET:
            write_parquet(path, self._table(), self.meta)
        else:
            from canvas_fm.data.points.formats import write_points

            write_points(self, path)

    def inside(self, shape_zyx: Sequence[int]) -> Bool[np.ndarray, " n"]:
        """Which points lie in a voxel of a volume of that shape: −½ ≤ p < size − ½ on each axis."""
        return inside(self.zyx, shape_zyx)

    def check_inside(self, shape_zyx: Sequence[int]) -> None:
        """Raise CanvasError where a point lies outside a volume of that shape: how many, and the first."""
        check_inside(self.zyx, shape_zyx)

    def _table(self) -> dict[str, np.ndarray]:
        return {name: self.zyx[:, axis] for axis, name in enumerate("zyx")} | self.columns


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
