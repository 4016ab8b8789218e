"""A store written slab by slab on many threads, each slab marked as done when its files are on the disk."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import LifoQueue

import numpy as np
from jaxtyping import Num

from canvas_fm.data.volume.levels.downsample import mean_down, mode_down
from canvas_fm.data.zyx import Zyx
from canvas_fm.files.checksum import Algorithm
from canvas_fm.prepare.convert.layout import Layout, open_arrays, shards_of
from canvas_fm.prepare.convert.reading.slab_reader import Rows, SlabReader, run_all
from canvas_fm.prepare.convert.shards.packer import Packer
from canvas_fm.prepare.convert.shards.shard_files import write_file
from canvas_fm.prepare.convert.slab_progress import SlabResult, SlabWork
from canvas_fm.prepare.convert.window_sample import WindowSample
from canvas_fm.prepare.corrections.corrections import Correction
from canvas_fm.prepare.sources.source import Source

_WRITERS = 4
_Piece = Callable[[], object]


@dataclass
class _Files:
    """Files of a slab that are being written, with what becomes their size and crc32."""

    root: Path
    channel: int
    writing: dict[str, Future[tuple[int, int]]] = field(default_factory=dict)

    def flushed(self) -> dict[str, Sequence[int]]:
        """Size and crc32 of the files by name, when all are on the disk."""
        return {key: self.writing[key].result() for key in sorted(self.writing)}


def _settled(number: int, done: SlabResult, files: _Files) -> tuple[int, SlabResult]:
    """Result of a slab whose files are on the disk."""
    done.files |= files.flushed()
    return number, done


class Slabs:
    """Reads slabs of the source, corrects their planes, and writes them and the levels that they make."""

    def __init__(
        self,
        source: Source,
        layout: Layout,
        corrections: Sequence[Correction],
        *,
        labels: bool,
        checksums: Algorithm | None,
        threads: int,
        memory_gb: float,
    ) -> None:
        self.source, self.layout = source, layout
        self._down = mode_down if labels else mean_down
        self.pool = ThreadPoolExecutor(threads, "convert")
        self._reader = SlabReader(
            source, layout, corrections, checksums, self.pool, threads=threads, memory_gb=memory_gb
        )
        self._writers = ThreadPoolExecutor(_WRITERS, "write")
        self._packers: LifoQueue[Packer] = LifoQueue()  # the last first: memory that was touched already
        for _ in range(threads + _WRITERS):
            self._packers.put(Packer())
        self._buffers: dict[int, np.ndarray] = {}

    def __enter__(self) -> Slabs:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)
        self._writers.shutdown(cancel_futures=True)
        self._buffers.clear()

    def run(
        self, work: SlabWork, remaining: Sequence[int], sample: WindowSample
    ) -> Iterator[tuple[int, SlabResult]]:
        """Write slabs; each with what it left, when its files are on the disk and the next one is packed."""
        written = None
        for number in remaining:
            following = number, *self._slab(work.store, number, sample)
            if written is not None:
                yield _settled(*written)
            written = following
        if written is not None:
            yield _settled(*written)

    def write(self, root: Path, number: int) -> SlabResult:
        """Write one slab by itself."""
        return _settled(number, *self._slab(root, number))[1]

    def coarse(self, work: SlabWork, total: SlabResult) -> None:
        """Write the levels that are made from the one before when that is whole."""
        for level in range(1, len(self.layout.levels)):
            if not self.layout.levels[level].with_slabs:
                self._coarse(work, level, total)

    def read(self, channel: int, start: int, stop: int) -> Num[np.ndarray, "z y x"]:
        """Planes of a channel, corrected, until the next call; CanvasError for NaN."""
        return self._reader.read(channel, start, stop)

    def _buffer(self, level: int, shape: Sequence[int]) -> np.ndarray:
        """Memory of a slab of a coarser level, used again for the next one."""
        if level not in self._buffers or len(self._buffers[level]) < shape[0]:
            self._buffers[level] = np.empty(shape, self.layout.dtype)
        return self._buffers[level][: shape[0]]

    def _slab(self, root: Path, number: int, sample: WindowSample | None = None) -> tuple[SlabResult, _Files]:
        """Read a slab, pack it and the levels that it makes, and have their files written."""
        channel, start, planes = self.layout.slab_of(number)
        self._writers.submit(self._reader.read_ahead, number + 1)
        before = set(self.source.channels[channel].bad_chunks)
        parts: Iterable[Rows]
        parts, checksums = self._reader.slab(number)
        written = _Files(root, channel)
        levels = [level for level, of in enumerate(self.layout.levels) if level == 0 or of.with_slabs]
        for level in levels:
            coarse = None if level == levels[-1] else self._coarse_buffer(level + 1, planes)
            for y, voxels in parts:
                packing = self._shards(written, level, start, voxels, y)
                if level == 0 and sample is not None:
                    packing.append(partial(sample.add, channel, start, voxels, y))
                means = [] if coarse is None else self._bands(voxels, level + 1, coarse, y)
                run_all(self.pool, _interleaved(packing, means))
            if coarse is not None:
                parts, planes = [(0, coarse)], len(coarse)
                start //= self.layout.levels[level + 1].factor[0]
        bad = sorted({*self.source.channels[channel].bad_chunks} - before)
        return SlabResult({}, checksums(), bad), written

    def add_checksums(self, total: SlabResult) -> None:
        """Compute what no slab did: an earlier version, or a run without checksums, wrote some of them."""
        missing = [file for file in self.source.files if self.source.key(file) not in total.sources]
        total.sources |= self._reader.checksums(missing)

    def _coarse(self, work: SlabWork, level: int, total: SlabResult) -> None:
        """A level that is made from the one before when that is whole."""
        of = self.layout.levels[level]
        finer = open_arrays(work.store, self.layout)[level - 1]
        for channel in range(self.layout.channels):
            for start in self.layout.starts(level):
                name, planes = f"c{channel}-level{level}-z{start:06d}", self.layout.planes(level, start)
                done = work.done(name)
                if done is not None:
                    total.add(done)
                    continue
                box = slice(start * of.factor[0], (start + planes) * of.factor[0])
                slab = np.asarray(finer[channel, box] if self.layout.has_c else finer[box])
                written = _Files(work.store, channel)
                coarse = self._coarse_buffer(level, len(slab))
                run_all(self.pool, self._bands(slab, level, coarse))
                run_all(self.pool, self._shards(written, level, start, coarse))
                done = SlabResult(written.flushed())
                work.keep(name, done)
                total.add(done)

    def _coarse_buffer(self, level: int, planes: int) -> np.ndarray:
        """Memory of a slab of a level that is made of so many planes of the level before."""
        of = self.layout.levels[level]
        return self._buffer(level, (math.ceil(planes / of.factor[0]), *of.shape_zyx[1:]))

    def _bands(self, finer: np.ndarray, level: int, coarse: np.ndarray, first: int = 0) -> list[_Piece]:
        """The work that makes a slab of a level from rows of the level before, by bands of rows.

        `first` is the first of these rows in the level before.
        """
        factor = self.layout.levels[level].factor
        below = math.ceil(finer.shape[1] / factor[1])
        rows, begin = max(1, 256 // factor[1]), first // factor[1]

        def band(y: int) -> None:
            out = coarse[:, begin + y : begin + min(y + rows, below)]
            self._down(finer[:, y * factor[1] : (y + rows) * factor[1]], factor, out=out)

        return [partial(band, y) for y in range(0, below, rows)]

    def _shards(
        self, written: _Files, level: int, start: int, slab: np.ndarray, first: int = 0
    ) -> list[_Piece]:
        """The work that packs the files of rows of a slab, from row `first` on, and has them written."""
        of = self.layout.levels[level]

        def shard(index_zyx: Zyx, box: tuple[slice, slice, slice]) -> None:
            packer, packed = self._packers.get(), None
            try:
                packed = packer.file(slab[box], of.chunk_zyx, of.shard_zyx, sharded=self.layout.ome == "0.5")
            finally:
                if packed is None:
                    self._packers.put(packer)
            if packed is not None:
                z, y, x = index_zyx
                place = z + start // of.shard_zyx[0], y + first // of.shard_zyx[1], x
                key = self.layout.key(level, written.channel, place)
                writing = self._writers.submit(write_file, written.root / key, packed)
                writing.add_done_callback(lambda _: self._packers.put(packer))
                written.writing[key] = writing

        return [partial(shard, index, box) for index, box in shards_of(of, *slab.shape[:2])]


def _interleaved(packing: Sequence[_Piece], coarsening: Sequence[_Piece]) -> list[_Piece]:
    """Both spread over the same time: threads that all make means wait for memory and the lock."""
    placed = [(at / len(work), at, piece) for work in (packing, coarsening) for at, piece in enumerate(work)]
    return [piece for _, _, piece in sorted(placed, key=lambda each: each[:2])]
