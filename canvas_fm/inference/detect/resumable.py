"""Detections that are still being made: each finished tile is a file, and a kill costs at most a tile."""

from __future__ import annotations

import json
import logging
import os
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError, DamagedStore, MissingExtra
from canvas_fm.files.atomic import write_atomic, write_text_atomic
from canvas_fm.files.locks import refuse_other_inputs, take_lock
from canvas_fm.inference.embed.embedding_store import unfinished_folder

_log = logging.getLogger(__name__)
_INPUTS = "inputs.json"
Parts = tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]


class TileWork:
    """The folder `OUT.unfinished`, opened by one process at a time; it goes when the points are written.

    `inputs` is all that decides the points, `digest` their hash, which the finished file carries: an OUT of
    the same inputs is taken as it is, one of others refused.
    """

    def __init__(self, out: Path, inputs: dict[str, Any], digest: str, tiles: int) -> None:
        self.out, self.inputs, self.digest, self.tiles = out, inputs, digest, tiles
        self.folder = unfinished_folder(out)
        self.cells = 0
        self._lock: int | None = None

    def __enter__(self) -> TileWork:
        if self.out.suffix.lower() not in (".csv", ".parquet"):
            raise CanvasError(f"{self.out}: points are written as .csv or .parquet")
        if self.out.suffix.lower() == ".parquet" and find_spec("pyarrow") is None:
            # Now, not after hours of work when the points are to be written.
            raise MissingExtra("pyarrow", "parquet", f"writing {self.out.name}")
        if not self.out.parent.is_dir():
            raise CanvasError(f"{self.out} cannot be written: there is no folder {self.out.parent}")
        if self.out.exists():
            return self
        self.folder.mkdir(exist_ok=True)
        self._lock = take_lock(self.folder, self.out)
        try:
            self._check_inputs()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def finished(self) -> Points | None:
        """The points, where OUT holds them already; CanvasError where it holds anything else."""
        if not self.out.exists():
            return None
        points = Points.read(self.out)
        if points.meta.get("inputs_sha256") != self.digest:
            raise CanvasError(
                f"{self.out} is there already and was made from other inputs (volume, model or settings); "
                "give another --out, or delete it to start again"
            )
        shutil.rmtree(self.folder, ignore_errors=True)
        return points

    def remaining(self) -> list[int]:
        """The tiles still to do; a damaged one is done again."""
        left = []
        for number in range(self.tiles):
            parts = self._read(number)
            if parts is None:
                left.append(number)
            else:
                self.cells += len(parts[0])
        return left

    def keep(
        self,
        number: int,
        maxima: np.ndarray,
        score: np.ndarray,
        position: np.ndarray,
        bad_chunks: Sequence[str],
    ) -> None:
        """Keep what was found in a tile."""

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                bad = np.array(bad_chunks, dtype=np.str_)
                np.savez(file, maxima=maxima, score=score, position=position, bad_chunks=bad)

        write_atomic(self._path(number), write)

    def parts(self) -> Iterator[Parts]:
        """What was found, tile after tile."""
        for number in range(self.tiles):
            parts = self._read(number)
            if parts is None:
                raise DamagedStore(self.folder, "", self._path(number).name, "changed while it was read")
            yield parts

    def finish(self, points: Points) -> None:
        """Write the points; what was unfinished goes away."""
        points.write(self.out)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"

    def _read(self, number: int) -> Parts | None:
        """A tile's parts; None where it was not done or is not what was written (a zip checks its parts)."""
        path = self._path(number)
        if not path.exists():
            return None
        try:
            with np.load(path) as found:
                bad = tuple(found["bad_chunks"].tolist())
                return found["maxima"], found["score"], found["position"], bad
        except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile) as problem:
            _log.warning("%s is damaged (%s); this tile is done again", path, problem)
            return None

    def _check_inputs(self) -> None:
        path = self.folder / _INPUTS
        if not path.exists():
            write_text_atomic(path, json.dumps(self.inputs, indent=1) + "\n")
            return
        try:
            before = json.loads(path.read_bytes())
        except ValueError as problem:
            hint = f"delete {self.folder} and start again"
            raise DamagedStore(self.folder, "", _INPUTS, "cannot be read", hint) from problem
        refuse_other_inputs(self.folder, before, json.loads(json.dumps(self.inputs)))
