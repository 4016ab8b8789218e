"""Boxes of a Zarr array, any number of axes, with every damage named by array, chunk and cause.

zarr-python decodes; which files a box needs, whether they are there and whether they are what was written is looked up
before, because a missing chunk would be read as zeros without a word.
"""

from __future__ import annotations

import itertools
import logging
import math
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import zarr
from jaxtyping import Shaped
from zarr.storage import LocalStore, ZipStore

from canvas_fm.data.store import CheckedStore, Zipped
from canvas_fm.errors import CanvasError, DamagedStore

_log = logging.getLogger(__name__)
_CHUNK = re.compile(r"(c[/.])?\d+([/.]\d+)*")

OnBadChunk = Literal["error", "skip"]
MissingChunks = Literal["error", "empty"]


class ChunkedArray:
    """A Zarr array opened for reading, safe in several threads.

    `chunks` is what decodes as one piece, `files_grid` the shape of what lies in one file (a shard, else a chunk).
    With `on_bad_chunk="skip"` damage is read as zeros, each once in `bad_chunks` and in the log.
    """

    def __init__(
        self,
        store: CheckedStore,
        path: str,
        zarr_format: int,
        *,
        on_bad_chunk: OnBadChunk = "error",
        missing_chunks: MissingChunks = "error",
    ) -> None:
        self.store, self.path = store, path
        self.bad_chunks: list[str] = []
        self._skip, self._empty = on_bad_chunk == "skip", missing_chunks == "empty"
        self._bad: dict[str, str] = {}
        self._lock = threading.Lock()
        files = store.files
        try:
            if isinstance(files, Zipped):
                place: Any = ZipStore(files.root, mode="r")
                path = files.inside + path
            else:
                place = LocalStore(files.root, read_only=True)
            self._array = zarr.open_array(place, path=path.strip("/"), mode="r", zarr_format=zarr_format)  # type: ignore[arg-type]
            self.dtype = np.dtype(self._array.dtype)
            self.shape: tuple[int, ...] = tuple(int(n) for n in self._array.shape)
            self.chunks: tuple[int, ...] = tuple(int(n) for n in self._array.chunks)
            self.files_grid: tuple[int, ...] = tuple(int(n) for n in (self._array.shards or self.chunks))
            self.fill_value = self._array.fill_value
        except Exception as problem:
            # Metadata that is JSON but no array raises some ten types in zarr-python.
            raise CanvasError(
                f"{files}: the metadata of array {self.path!r} cannot be used: {_one_line(problem)}"
            ) from problem
        if min(self.chunks, default=1) < 1 or min(self.files_grid, default=1) < 1:
            raise CanvasError(f"{files}: array {self.path!r} has chunks of shape {self.chunks}")

    def read(self, start: Sequence[int], stop: Sequence[int]) -> Shaped[np.ndarray, "..."]:
        """The box [start, stop), which has to lie inside the array; raises DamagedStore, naming the chunk."""
        if not self._bad_files(start, stop):
            try:
                return self._decode(start, stop)
            except Exception as problem:
                # zarr-python raises five types for one damaged chunk, none naming it: look for it chunk by chunk.
                if isinstance(problem, MemoryError):
                    size = [b - a for a, b in zip(start, stop, strict=True)]
                    raise CanvasError(f"a box of {size} voxels does not fit in memory") from problem
        box = np.zeros([b - a for a, b in zip(start, stop, strict=True)], self.dtype.newbyteorder("="))
        for low, high in self._cells(start, stop, self.chunks):
            voxels = self._read_one(low, high)
            if voxels is not None:
                box[tuple(slice(a - o, b - o) for a, b, o in zip(low, high, start, strict=True))] = voxels
        return box

    def chunk_key(self, start: Sequence[int]) -> str:
        """The key, below the array's path, of the file that holds the voxel at `start`."""
        at = tuple(int(a) // size for a, size in zip(start, self.files_grid, strict=True))
        return str(self._array.metadata.encode_chunk_key(at))

    def file_key(self, start: Sequence[int]) -> str:
        """As `chunk_key`, below the store's root."""
        key = self.chunk_key(start)
        return f"{self.path}/{key}" if self.path else key

    def _decode(self, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        box = np.asarray(self._array[tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))])
        return box if box.dtype.isnative else box.astype(box.dtype.newbyteorder("="))

    def _cells(
        self, start: Sequence[int], stop: Sequence[int], grid: Sequence[int]
    ) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
        """The parts of a box that lie in one cell of a grid each."""
        spans = []
        for a, b, size in zip(start, stop, grid, strict=True):
            cells = range(a // size, -(-b // size) if b > a else a // size)
            spans.append([(max(a, cell * size), min(b, (cell + 1) * size)) for cell in cells])
        for parts in itertools.product(*spans):
            yield tuple(low for low, _ in parts), tuple(high for _, high in parts)

    def _bad_files(self, start: Sequence[int], stop: Sequence[int]) -> bool:
        """Look at every file that the box needs; True if some are bad and bad ones are skipped."""
        bad = False
        for low, _ in self._cells(start, stop, self.files_grid):
            bad |= self._problem(low) is not None
        return bad

    def _problem(self, at: Sequence[int]) -> DamagedStore | None:
        """What is wrong with the file that holds a voxel; raised unless bad chunks are skipped."""
        key = self.file_key(at)
        try:
            if self.store.verify(key) is None and self.store.listed is None and not self._empty:
                raise self._missing(at)
        except DamagedStore as problem:
            return self._report(self.chunk_key(at), problem)
        return None

    def _read_one(self, low: Sequence[int], high: Sequence[int]) -> np.ndarray | None:
        if self._problem(low) is not None:
            return None
        try:
            return self._decode(low, high)
        except Exception as problem:
            name = self.chunk_key(low)
            if self.files_grid != self.chunks:
                name += f" (inner chunk {'/'.join(str(a // size) for a, size in zip(low, self.chunks, strict=True))})"
            cause = f"cannot be decoded ({_one_line(problem)})"
            damage = DamagedStore(self.store.files, self.path, name, cause, self._hint())
            self._report(name, damage, problem)
            return None

    def _hint(self) -> str:
        return "restore the file, or give --on-bad-chunk skip to read it as zeros"

    def _report(self, name: str, damage: DamagedStore, cause: BaseException | None = None) -> DamagedStore:
        if not self._skip:
            raise damage from cause
        with self._lock:
            if name not in self._bad:
                self._bad[name] = str(damage)
                self.bad_chunks.append(str(damage))
                _log.warning("read as zeros: %s", damage)
        return damage

    def _missing(self, at: Sequence[int]) -> DamagedStore:
        total = math.prod(-(-n // size) for n, size in zip(self.shape, self.files_grid, strict=True))
        start = len(self.path) + 1 if self.path else 0
        found = sum(bool(_CHUNK.fullmatch(key[start:])) for key in self.store.files.keys(self.path))
        return DamagedStore(
            self.store.files,
            self.path,
            self.chunk_key(at),
            f"missing, as are {max(total - found, 1):,} of the array's {total:,} chunks in all, and the store has no "
            "checksums that could tell whether they were ever written",
            "if the missing ones are meant to be empty, give --missing-chunks empty",
        )


def _one_line(problem: BaseException) -> str:
    text = " ".join(str(problem).split())
    return f"{type(problem).__name__}: {text[:200]}" if text else type(problem).__name__
