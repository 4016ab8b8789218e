"""A store written slab by slab on many threads, each slab marked as done when its files are on the disk."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from jaxtyping import Num

from canvas_fm.data.volume.levels.downsample import mean_down, mode_down
from canvas_fm.data.zyx import Zyx
from canvas_fm.errors import CanvasError
from canvas_fm.files.checksum import Algorithm, file_checksum
from canvas_fm.prepare.convert.layout import Layout, open_arrays, shards_of
from canvas_fm.prepare.convert.shards.packer import Packer
from canvas_fm.prepare.convert.shards.shard_files import write_file
from canvas_fm.prepare.convert.slab_progress import SlabResult, SlabWork
from canvas_fm.prepare.convert.window_sample import WindowSample
from canvas_fm.prepare.corrections.corrections import Correction
from canvas_fm.prepare.sources.source import Source

_READ_BYTES = 64e6  # of a source in chunks, what one thread reads at once
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
    """What a slab left, when its files are on the disk."""
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
        self.source, self.layout, self.corrections = source, layout, corrections
        self._down = mode_down if labels else mean_down
        self._checksums = checksums
        self.pool = ThreadPoolExecutor(threads, "convert")
        self._writers = ThreadPoolExecutor(_WRITERS, "write")
        self._packers: SimpleQueue[Packer] = SimpleQueue()
        for _ in range(threads + _WRITERS):
            self._packers.put(Packer())
        self._buffers: dict[int, np.ndarray] = {}
        plane = math.prod(source.shape_zyx[1:]) * 4.0
        widest = max((each.memory_planes for each in corrections), default=0)
        self._at_once = max(1, min(threads, int(memory_gb * 0.3e9 / max(plane * widest, 1))))

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

    def _read_ahead(self, number: int) -> None:
        """Have the system read the files of a slab, while another one is packed."""
        depth, files = self.source.shape_zyx[0] * self.layout.channels, self.source.files
        if len(files) < depth or number >= self.layout.slabs or not hasattr(os, "posix_fadvise"):
            return
        for path in _share(files, number, self.layout.slabs):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def read(self, channel: int, start: int, stop: int) -> Num[np.ndarray, "z y x"]:
        """Planes of a channel, corrected, until the next call; CanvasError for NaN."""
        voxels, shape = self.source.channels[channel], self.source.shape_zyx
        slab = self._buffer(0, (stop - start, *shape[1:]))

        def piece(box: tuple[slice, slice, slice]) -> None:
            origin = (start + box[0].start, box[1].start, box[2].start)
            voxels.read_into(slab[box], origin)
            if slab.dtype.kind == "f" and not np.isfinite(slab[box]).all():
                raise CanvasError(
                    f"{self.source.path} holds NaN or infinite values near {origin} (z, y, x); replace them "
                    "first"
                )

        pieces = _pieces(slab.shape, voxels.chunk_zyx, slab.dtype.itemsize)
        self._all(partial(piece, box) for box in pieces)
        correction = self.corrections[channel]
        if correction.is_there:

            def correct(z: int) -> None:
                slab[z] = correction.apply(slab[z])

            with ThreadPoolExecutor(self._at_once) as pool:
                list(pool.map(correct, range(len(slab))))
        return slab

    def _buffer(self, level: int, shape: Sequence[int]) -> np.ndarray:
        """Memory of a slab, used again for the next one: taking it anew can cost more than filling it."""
        if level not in self._buffers or len(self._buffers[level]) < shape[0]:
            self._buffers[level] = np.empty(shape, self.layout.dtype)
        return self._buffers[level][: shape[0]]

    def _slab(self, root: Path, number: int, sample: WindowSample | None = None) -> tuple[SlabResult, _Files]:
        """Read a slab, pack it and the levels that it makes, and have their files written."""
        channel, start, planes = self.layout.slab_of(number)
        self._writers.submit(self._read_ahead, number + 1)
        hashed = _share(self.source.files, number, self.layout.slabs) if self._checksums else []
        before = set(self.source.channels[channel].bad_chunks)
        hashes = [(self.source.key(file), self.pool.submit(self._checksum, file)) for file in hashed]
        slab = self.read(channel, start, start + planes)
        written = _Files(root, channel)
        levels = [level for level, of in enumerate(self.layout.levels) if level == 0 or of.with_slabs]
        counting = [] if sample is None else [partial(sample.add, channel, start, slab)]
        for level in levels:
            packing = self._shards(written, level, start, slab) + counting
            counting = []
            if level == levels[-1]:
                self._all(packing)
                break
            slab, coarsening = self._bands(slab, level + 1)
            start //= self.layout.levels[level + 1].factor[0]
            self._all(_interleaved(packing, coarsening))
        bad = sorted({*self.source.channels[channel].bad_chunks} - before)
        return SlabResult({}, {key: each.result() for key, each in hashes}, bad), written

    def _checksum(self, file: Path) -> dict[str, str]:
        """The checksum of a source file, by the name of its algorithm."""
        assert self._checksums is not None
        return {self._checksums: file_checksum(file, self._checksums)}

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
                coarse, coarsening = self._bands(slab, level)
                self._all(coarsening)
                self._all(self._shards(written, level, start, coarse))
                done = SlabResult(written.flushed())
                work.keep(name, done)
                total.add(done)

    def _bands(self, slab: np.ndarray, level: int) -> tuple[np.ndarray, list[_Piece]]:
        """A slab of a level, and the work that makes it of that of the level before, by bands of rows."""
        factor = self.layout.levels[level].factor
        shape = [math.ceil(n / f) for n, f in zip(slab.shape, factor, strict=True)]
        coarse, rows = self._buffer(level, shape), max(1, 256 // factor[1])

        def band(y: int) -> None:
            finer = slab[:, y * factor[1] : (y + rows) * factor[1]]
            self._down(finer, factor, out=coarse[:, y : y + rows])

        return coarse, [partial(band, y) for y in range(0, shape[1], rows)]

    def _shards(self, written: _Files, level: int, start: int, slab: np.ndarray) -> list[_Piece]:
        """The work that packs the files of a slab and has them written."""
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
                key = self.layout.key(level, written.channel, (z + start // of.shard_zyx[0], y, x))
                writing = self._writers.submit(write_file, written.root / key, packed)
                writing.add_done_callback(lambda _: self._packers.put(packer))
                written.writing[key] = writing

        return [partial(shard, index, box) for index, box in shards_of(of, len(slab))]

    def _all(self, work: Iterable[_Piece]) -> None:
        """Every piece of work on the pool; the first failure ends them all."""
        futures: list[Future[object]] = [self.pool.submit(piece) for piece in work]
        wait(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            future.cancel()
        wait(futures)
        for future in futures:
            if not future.cancelled():
                future.result()


def _interleaved(packing: Sequence[_Piece], coarsening: Sequence[_Piece]) -> list[_Piece]:
    """Both spread over the same time: threads that all make means wait for memory and the lock."""
    placed = [(at / len(work), at, piece) for work in (packing, coarsening) for at, piece in enumerate(work)]
    return [piece for _, _, piece in sorted(placed, key=lambda each: each[:2])]


def _pieces(
    shape: Sequence[int], chunk: Sequence[int], itemsize: int
) -> Iterator[tuple[slice, slice, slice]]:
    """What one thread reads at once: a plane, or of a source in chunks a row of them through the slab."""
    planes, height, width = shape
    if chunk[0] == 1:
        whole = slice(0, height), slice(0, width)
        yield from ((slice(z, z + 1), *whole) for z in range(planes))
        return
    rows = max(1, int(_READ_BYTES / (planes * width * itemsize * chunk[1]))) * chunk[1]
    for y in range(0, height, rows):
        yield slice(0, planes), slice(y, min(y + rows, height)), slice(0, width)


def _share(files: Sequence[Path], slab: int, slabs: int) -> Sequence[Path]:
    """The source files whose checksum a slab computes: those of its planes, where each plane is a file."""
    return files[slab * len(files) // slabs : (slab + 1) * len(files) // slabs]
