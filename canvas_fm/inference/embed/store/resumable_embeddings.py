"""Resumable computation of an embeddings store, block by block.

Points are embedded in the order of the volume's chunks, so that each chunk is decoded once or a few times
however the points are ordered, but they are stored in the order given. So the sequence in chunk order is
cut into fixed blocks, the vectors of a block are scattered to their rows in one plain file, and only then
the block is marked as done, with the crc32 of its vectors. When all are done the rows are copied, in
order, into the store, which takes its name by one rename. Nothing here grows with the number of points
but the list of the blocks.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from canvas_fm.data.points.points import Points
from canvas_fm.errors import StorageFull
from canvas_fm.files.atomic import disk_full_as_error, sync_path
from canvas_fm.files.resumable import ResumableFolder
from canvas_fm.inference.embed.store.embedding_store import write_store

_log = logging.getLogger(__name__)

# Vectors that a kill can cost; fixed, because a block's batches, and so its last bits, depend on it.
BLOCK = 4096
_ROWS, _STORE = "rows.f32", "store"


class ResumableEmbeddings(ResumableFolder):
    """Finished blocks of an embeddings store in progress.

    `order` holds row numbers in the order in which they are embedded, `one_shape` is that of what one point
    gets: (d,), or three or four numbers of them. Raises CanvasError, StorageFull.
    """

    def __init__(
        self, out: Path, inputs: dict[str, Any], order: Int64[np.ndarray, " n"], one_shape: tuple[int, ...]
    ) -> None:
        super().__init__(out, inputs)
        self._order, self._one = order, one_shape
        self._size = 4 * math.prod(one_shape)  # bytes of a point
        self._block = BLOCK if len(one_shape) == 1 else 64  # a vector for each patch: as many bytes
        self.blocks = -(-len(order) // self._block)
        self.state = {"done": {}, "bad_chunks": []}

    def __enter__(self) -> ResumableEmbeddings:
        super().__enter__()
        try:
            self._check_blocks()
            self._make_room()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    @property
    def bad_chunks(self) -> list[str]:
        """Messages of damaged chunks that were read as zeros."""
        return list(self.state["bad_chunks"])

    @property
    def _done(self) -> dict[str, int]:
        """crc32 of each finished block's vectors, by block number."""
        done: dict[str, int] = self.state["done"]
        return done

    @property
    def rows_done(self) -> int:
        """Number of points whose vectors are on disk."""
        return sum(len(self.rows(int(block))) for block in self._done)

    def rows(self, block: int) -> Int64[np.ndarray, " rows"]:
        """Row indices of a block in the order of embedding."""
        return self._order[block * self._block : (block + 1) * self._block]

    def remaining(self) -> Iterator[tuple[int, Int64[np.ndarray, " rows"]]]:
        """Blocks still to do, each with its row indices."""
        return ((block, self.rows(block)) for block in range(self.blocks) if str(block) not in self._done)

    def keep(self, block: int, vectors: Float32[np.ndarray, "rows ..."], bad_chunks: Sequence[str]) -> None:
        """Store a block: its vectors first, then the state file."""
        rows, path = self.rows(block), self.folder / _ROWS
        by_row = np.argsort(rows)
        runs = np.split(by_row, np.flatnonzero(np.diff(rows[by_row]) != 1) + 1)
        with disk_full_as_error(path), path.open("r+b") as file:
            for run in runs:
                file.seek(int(rows[run[0]]) * self._size)
                file.write(vectors[run].astype("<f4", copy=False).tobytes())
            file.flush()
            os.fsync(file.fileno())
        self._done[str(block)] = _crc(vectors)
        self.state["bad_chunks"] = sorted({*self.bad_chunks, *bad_chunks})
        self.save_state()

    def finish(self, points: Points, attributes: dict[str, Any]) -> None:
        """Copy the rows into the store, rename it and remove the working folder."""
        assert len(self._done) == self.blocks
        store = self.folder / _STORE
        shutil.rmtree(store, ignore_errors=True)
        with disk_full_as_error(self.out):
            about = {
                **attributes,
                "bad_chunks": self.bad_chunks,
                "done_blocks": self.blocks,
                "block_rows": self._block,
            }
            write_store(store, _RowsFile(self.folder / _ROWS, (len(self._order), *self._one)), points, about)
            store.replace(self.out)
            sync_path(self.out.parent)
        self.remove()

    def _check_blocks(self) -> None:
        """Discard blocks whose vectors do not match their checksum."""
        sound = {block: crc for block, crc in self._done.items() if self._is_sound(int(block), crc)}
        if lost := len(self._done) - len(sound):
            _log.warning(
                "%s: %d of %d finished blocks were damaged; they are computed again",
                self.folder, lost, len(self._done),
            )  # fmt: skip
        self.state["done"] = sound

    def _is_sound(self, block: int, crc: int) -> bool:
        rows = self._map()
        return rows is not None and block < self.blocks and _crc(rows[self.rows(block)]) == crc

    def _map(self) -> Any:
        """Memory map of the rows; None if the file is missing or truncated."""
        path, shape = self.folder / _ROWS, (len(self._order), *self._one)
        if not path.is_file() or path.stat().st_size != len(self._order) * self._size:
            return None
        return np.memmap(path, dtype="<f4", mode="r", shape=shape)

    def _make_room(self) -> None:
        """Create the file of rows; fails early if the disk is too small."""
        size = len(self._order) * self._size
        needed = 2 * size - self.rows_done * self._size
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise StorageFull(
                f"{self.out} needs {needed / 1e6:,.1f} MB while it is made, the disk has {free / 1e6:,.1f} "
                "MB left"
            )
        if self._map() is None:
            with disk_full_as_error(self.out), (self.folder / _ROWS).open("ab") as file:
                file.truncate(size)
                os.fsync(file.fileno())


class _RowsFile:
    """The finished rows, read where they are sliced: pages of a map would count as memory of the process."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path, self.shape = path, shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Float32[np.ndarray, "rows ..."]:
        start, stop, _ = rows.indices(len(self))
        width = math.prod(self.shape[1:])
        values = np.fromfile(self.path, "<f4", (stop - start) * width, offset=4 * start * width)
        return values.reshape(-1, *self.shape[1:])


def _crc(vectors: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(vectors, dtype="<f4").tobytes())
