"""Points: positions z, y, x in voxels of level 0 with optional columns, read from and written to files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Real

from canvas_fm.data.dataset.dataset_addresses import points_path
from canvas_fm.data.points.coordinate_columns import is_axis
from canvas_fm.data.points.formats.dataframe import columns_of, frame_of
from canvas_fm.data.points.formats.read_write import VoxelUm, format_of, read_points, write_points
from canvas_fm.data.points.tables import PointTable, csv_text
from canvas_fm.data.store.tar_index import local_file
from canvas_fm.errors import CanvasError, counted

_log = logging.getLogger(__name__)

P_CELL = "p_cell"  # the column of a refiner's predicted probability of a cell
SCORE_COLUMNS = ("score", P_CELL, "log_score")  # the usual names of a score, the first that is there
_FARTHEST = 1e100  # voxels; more overflows where distances are squared


@dataclass
class Points:
    """Positions (n, 3) z, y, x in voxels of level 0, with columns of the same length.

    An integer is a voxel's centre. `columns` keep the order and type of their file (int, float or str);
    `meta` holds what `FILE.json` beside a table states, and `# key: value` lines of older files. In messages
    rows count from 1, the column row left out.
    """

    zyx: np.ndarray  # float64 (n, 3); a plain annotation, because what is not is refused with a sentence
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    meta: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.zyx = as_zyx(self.zyx)
        for name, values in self.columns.items():
            self.columns[name] = values = np.asarray(values)
            if is_axis(name):
                raise CanvasError(f"column {name!r} of points is a coordinate: it belongs into zyx")
            if values.shape != (len(self),):
                raise CanvasError(
                    f"column {name!r} of points has shape {values.shape}; expected ({len(self)},)"
                )

    def __len__(self) -> int:
        return len(self.zyx)

    __iter__ = None  # a table of rows that have no type of their own: what loops over it means `zyx`

    def __getitem__(self, rows: Any) -> Points:
        """Some of the points, with their columns and the same `meta`: by a mask, a slice or an array of rows.

        Raises CanvasError for a mask of another length, rows that are not there, and one row alone.
        """
        index = rows if isinstance(rows, slice) else self._rows(rows)
        return Points(
            self.zyx[index], {name: values[index] for name, values in self.columns.items()}, dict(self.meta)
        )

    def _rows(self, rows: Any) -> np.ndarray:
        """A mask, or row numbers, that these points have."""
        try:
            index = np.asarray(rows)
        except ValueError:  # lists of several lengths
            index = np.empty((), object)
        if index.size == 0 and index.dtype != bool:
            index = index.astype(np.int64)  # an empty list
        if index.ndim != 1 or index.dtype.kind not in "biu":
            raise CanvasError(
                f"points are taken by {index.dtype} of shape {index.shape}; give a mask, a slice or an array "
                "of row numbers, such as points[[0, 5]]"
            )
        if index.dtype == bool and len(index) != len(self):
            raise CanvasError(f"a mask of {len(index)} rows for {len(self)} points; give one of each point")
        if index.dtype != bool and index.size and not -len(self) <= index.min() <= index.max() < len(self):
            raise CanvasError(
                f"rows {index.min()} to {index.max()} of {len(self)} points; give 0 to {len(self) - 1}"
            )
        return index

    @classmethod
    def read(
        cls,
        path: str | Path,
        format: str | None = None,
        *,
        allow_empty: bool = True,
        columns: Sequence[str] | None = None,
        voxel_um: VoxelUm | None = None,
    ) -> Points:
        """Read a .csv (comma, semicolon or tab) or .parquet file with columns z, y, x in voxels of level 0.

        Column names may be in any case and order, a byte-order mark is passed over, `# key: value` lines
        before the column row become `meta`. A napari points file (axis-0 … axis-2) is read as it is; where
        the coordinates have other names, `columns` says those of z, y and x. By their suffix, or by `format`,
        .xml, .nml and .json are read too (`canvas_fm.data.points.formats`), .gz of a table is unpacked.
        Positions in µm (Imaris, TrackMate) become voxels by `voxel_um`. Raises CanvasError for missing or
        repeated columns, a ragged row, a coordinate that is not a finite number and, unless `allow_empty`,
        for a file without rows.
        """
        path = points_path(path)
        with local_file(path) as file:
            points = cls(*read_points(file, format, columns=columns, voxel_um=voxel_um))
        if not len(points) and not allow_empty:
            raise CanvasError(f"{path} holds no points; nothing to do")
        return points

    def write(self, path: str | Path, format: str | None = None, *, voxel_um: VoxelUm | None = None) -> None:
        """Write atomically in the format of the suffix, or `format`; CSV has z, y, x, then the columns.

        What a format cannot hold is named in a warning. `voxel_um`, else that of `meta`, is needed by
        webknossos and neuroglancer, which place points in space.
        """
        write_points(PointTable(self.zyx, self.columns, self.meta), path, format, voxel_um=voxel_um)

    def to_csv(self) -> str:
        """The CSV as one text, `meta` as `# key: value` lines before the columns, as `read` takes it too."""
        z, y, x = self.zyx.T
        return csv_text({"z": z, "y": y, "x": x, **self.columns}, self.meta)

    @classmethod
    def from_dataframe(cls, frame: Any, *, voxel_um: VoxelUm | None = None) -> Points:
        """Points of a pandas DataFrame with columns z, y, x in voxels, or in µm (`z_um`) with `voxel_um`.

        Further columns are kept, numbers as numbers, all else as text; the frame's `attrs` become `meta`.
        """
        zyx, columns = columns_of(frame, voxel_um)
        return cls(zyx, columns, {str(key): str(value) for key, value in frame.attrs.items()})

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with z, y, x, then the columns; `meta` is in its `attrs`."""
        return frame_of(self.zyx, self.columns, self.meta)

    def inside(self, shape_zyx: Sequence[int]) -> Bool[np.ndarray, " n"]:
        """Mask of points inside a volume of that shape: −½ ≤ p < size − ½ on each axis."""
        return inside(self.zyx, shape_zyx)

    def check_inside(self, shape_zyx: Sequence[int]) -> None:
        """Raise CanvasError, with count and first row, if points lie outside a volume of that shape."""
        check_inside(self.zyx, shape_zyx)


def convert_points(
    source: str | Path,
    out: str | Path,
    *,
    origin_zyx: Sequence[float] | None = None,
    voxel_um: VoxelUm | None = None,
    source_format: str | None = None,
    out_format: str | None = None,
    columns: Sequence[str] | None = None,
) -> Points:
    """Read points in one format and write them in another; returns them as written.

    `origin_zyx` is where the first voxel of a region lies in the whole brain, for files in the region's own
    coordinates: it is added to every position.
    """
    out_format = format_of(out, out_format)
    points = Points.read(source, source_format, columns=columns, voxel_um=voxel_um)
    if origin_zyx is not None:
        if len(origin_zyx) != 3 or not np.isfinite(origin_zyx).all():
            raise CanvasError(f"origin is {tuple(origin_zyx)}; expected three numbers, z y x in voxels")
        points = Points(points.zyx + np.asarray(origin_zyx, np.float64), points.columns, points.meta)
    if not Path(out).parent.is_dir():
        raise CanvasError(f"{out}: there is no folder {Path(out).parent} to write it into")
    points.write(out, out_format, voxel_um=voxel_um)
    return points


def as_zyx(points_zyx: Any) -> Float64[np.ndarray, "n 3"]:
    """Validate positions as float64 (n, 3), n ≥ 0; CanvasError for another shape, text or NaN."""
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
    if len(zyx) and max(zyx.max(), -zyx.min()) > _FARTHEST:
        row = int(np.argmax(np.abs(zyx).max(axis=1)))
        raise CanvasError(
            f"points: row {row + 1} (z, y, x) = {_show(zyx[row])} lies in no volume; give voxels"
        )
    return zyx


def inside(points_zyx: Real[np.ndarray, "n 3"], shape_zyx: Sequence[int]) -> Bool[np.ndarray, " n"]:
    """Mask of points inside a volume of that shape: −½ ≤ p < size − ½ on each axis."""
    zyx = np.asarray(points_zyx)
    return np.all((zyx >= -0.5) & (zyx < np.asarray(shape_zyx) - 0.5), axis=1)


def check_inside(points_zyx: Real[np.ndarray, "n 3"], shape_zyx: Sequence[int]) -> None:
    """Raise CanvasError, with count and first row, if points lie outside a volume of that shape."""
    outside = ~inside(points_zyx, shape_zyx)
    if outside.any():
        row = int(np.argmax(outside))
        raise CanvasError(
            f"points outside the volume: {outside.sum()} of {len(outside)}, first at row {row + 1} "
            f"(z, y, x) = {_show(points_zyx[row])}; volume is {tuple(int(n) for n in shape_zyx)}: "
            "are the columns z, y, x in voxels of level 0?"
        )


def repeated_rows(zyx: Float64[np.ndarray, "n 3"]) -> int:
    """Number of rows that repeat an earlier position."""
    if not len(zyx):
        return 0
    # Hashes are sorted in a tenth of the time; rows are compared where those of several are the same.
    bits = np.ascontiguousarray(zyx + 0.0).view(np.uint64)  # -0 is 0
    mixed = np.zeros(len(bits), np.uint64)
    for column in bits.T:
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    rising = np.sort(mixed)
    repeated = rising[1:][rising[1:] == rising[:-1]]
    if not len(repeated):
        return 0
    few = zyx[repeated[np.searchsorted(repeated[:-1], mixed)] == mixed]
    few = few[np.lexsort(few.T)]
    return int((few[1:] == few[:-1]).all(axis=1).sum())


def warn_of_repeated(zyx: Float64[np.ndarray, "n 3"], name: str) -> None:
    """Log a warning where cells are counted twice."""
    if repeated := repeated_rows(zyx):
        _log.warning(
            "%s: %s of %s repeat the position of another; each is taken for a cell", name, f"{repeated:,}",
            counted(len(zyx), "row"),
        )  # fmt: skip


def score_column(points: Points) -> str | None:
    """The first column with one of the usual names of a score."""
    return next((name for name in SCORE_COLUMNS if name in points.columns), None)


def _show(zyx: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:.10g}" for value in zyx) + ")"
