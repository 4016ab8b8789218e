"""Resumable computation of a points file tile by tile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.data.points.points import Points
from canvas_fm.data.points.sidecar import check_sidecar_place
from canvas_fm.errors import CanvasError, MissingExtra
from canvas_fm.files.resumable import Part, ResumableFolder
from canvas_fm.inference.embed.store.embedding_store import points_sha256

_ROWS = "rows_sha256"


class ResumableTiles(ResumableFolder):
    """Finished tiles of a .csv or .parquet in progress; removed when the points are written.

    `digest` is a hash over `inputs`, which the finished file carries: an OUT of the same inputs is taken as
    it is, one of others, or whose rows were changed since, refused.
    """

    def __init__(self, out: Path, inputs: dict[str, Any], digest: str, tiles: int) -> None:
        super().__init__(out, inputs)
        self.digest, self.tiles = digest, tiles

    def __enter__(self) -> ResumableTiles:
        if self.out.suffix.lower() not in (".csv", ".parquet"):
            raise CanvasError(f"{self.out}: points are written as .csv or .parquet")
        if self.out.suffix.lower() == ".parquet" and find_spec("pyarrow") is None:
            # Now, not after hours of work when the points are to be written.
            raise MissingExtra("pyarrow", "parquet", f"writing {self.out.name}")
        if self.out.suffix.lower() == ".csv":
            check_sidecar_place(self.out, {"inputs_sha256": self.digest})
        return self if self.out.exists() else super().__enter__()

    def finished(self) -> Points | None:
        """The points if OUT is complete; CanvasError if it holds anything else."""
        if not self.out.exists():
            return None
        try:
            points = Points.read(self.out)
        except CanvasError as problem:
            raise CanvasError(
                f"{problem}: it is there already; give another --out, or delete it to compute it again"
            ) from problem
        if "inputs_sha256" not in points.meta:
            raise CanvasError(
                f"{self.out} is there already and nothing says what it was made from: it is of another "
                f"program, or it or {self.out.name}.json was damaged or edited; give another --out, or "
                "delete it to compute it again"
            )
        if points.meta.get("inputs_sha256") != self.digest:
            raise CanvasError(
                f"{self.out} is there already and was made from other inputs (volume, model or settings); "
                "give another --out, or delete it to start again"
            )
        if points.meta.get(_ROWS, rows := _rows_sha256(points)) != rows:  # earlier versions wrote no hash
            raise CanvasError(
                f"{self.out} is there already, but its rows are not those that were written: it was damaged "
                "or edited; give another --out, or delete it to compute them again"
            )
        self.remove()
        return points

    def done(self) -> dict[int, Part]:
        """Finished tiles by number; damaged ones are computed again."""
        parts = ((number, self.read(_name(number))) for number in range(self.tiles))
        return {number: part for number, part in parts if part is not None}

    def keep(self, number: int, arrays: Mapping[str, np.ndarray], bad_chunks: Sequence[str]) -> None:
        """Store the result of a tile."""
        self.write(_name(number), arrays, {"bad_chunks": list(bad_chunks)})

    def finish(self, points: Points) -> Points:
        """Write the points with a hash of their rows, and remove the finished tiles."""
        draft = self.folder / f"draft{self.out.suffix}"
        points.write(draft)
        points = Points(points.zyx, points.columns, points.meta | {_ROWS: _rows_sha256(Points.read(draft))})
        points.write(self.out)
        self.remove()
        return points


def _name(number: int) -> str:
    return f"{number:06d}"


def _rows_sha256(points: Points) -> str:
    return points_sha256(Points(points.zyx, points.columns))
