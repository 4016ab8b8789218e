"""A store written slab by slab on many threads, each slab marked as done when its files are on the disk."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num

from canvas_fm.data.volume.downsample import mean_down, mode_down
from canvas_fm.data.zyx import Zyx
from canvas_fm.errors import CanvasError
from canvas_fm.files.checksum import sha256
from canvas_fm.files.resumable import ResumableFolder
from canvas_fm.prepare.convert.layout import Layout, make_arrays, open_arrays, shards_of
from canvas_fm.prepare.convert.shards import is_whole, pack_chunk, pack_shard, write_flushed
from canvas_fm.prepare.corrections import Correction
from canvas_fm.prepare.sources.source import Source
from canvas_fm.progress import Advance

_READ_BYTES = 64e6  # of a source in chunks, what one thread reads at once
_STORE = "store"


@dataclass
class Done:
    """What a finished slab left: its files with size and crc32, sha256 of source files, damage read as 0."""

    files: dict[str, Sequence[int]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    bad_chunks: list[str] = field(default_factory=list)

    def add(self, other: Done) -> None:
        self.files |= other.files
        self.sources |= other.sources
        self.bad_chunks = sorted({*self.bad_chunks, *other.bad_chunks})


class SlabWork(ResumableFolder):
    """The work on a store, `OUT.unfinished/store`; the parts say which slabs are done."""

    def __enter__(self) -> SlabWork:
        super().__enter__()
        return self

    @property
    def store(self) -> Path:
        """The folder of the store until it takes its name."""
        return self.folder / _STORE

    def done(self, name: str) -> Done | None:
        """What a finished slab left; None where it has to be written (again)."""
        part = self.read(name)
        if part is None:
            return None
        found = Done(**part.about)
        return found if is_whole(self.store, found.files) else None

    def keep(self, name: str, done: Done) -> None:
        """Mark a slab as done: all of its files are flushed."""
        self.write(name, {}, {"files": done.files, "sources": done.sources, "bad_chunks": done.bad_chunks})


class Slabs:
    """Reads slabs of the source, corrects their planes, and writes them and the levels that they make."""

    def __init__(
        self,
        source: Source,
        layout: Layout,
        corrections: Sequence[Correction],
        *,
        labels: bool,
        checksums: bool,
        threads: int,
        memory_gb: float,
    ) -> None:
        self.source, self.layout, self.corrections = source, layout, corrections
        self._down = mode_down if labels else mean_down
        self._checksums = checksums
        self.pool = ThreadPoolExecutor(threads, "convert")
        plane = math.prod(source.shape_zyx[1:]) * 4.0
        widest = max((each.memory_planes for each in corrections), default=0)
        self._at_once = max(1, min(threads, int(memory_gb * 0.3e9 / max(plane * widest, 1))))

    def __enter__(self) -> Slabs:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def run(self, work: SlabWork, advance: Advance) -> Done:
        """Write what is not done yet; what all slabs left together."""
        if not work.store.exists():
            make_arrays(work.store, self.layout)
        found, starts = Done(), self.layout.starts(0)
        files = list(self.source.files) if self._checksums else []
        for channel in range(self.layout.channels):
            for number, start in enumerate(starts):
                name, planes = f"c{channel}-z{start:06d}", self._planes(0, start)
                done = work.done(name)
                if done is None:
                    slab = channel * len(starts) + number
                    share = _share(files, slab, len(starts) * self.layout.channels)
                    done = self._slab(work.store, channel, start, share)
                    work.keep(name, done)
                found.add(done)
                advance(planes)
        for level in range(1, len(self.layout.levels)):
            if not self.layout.levels[level].with_slabs:
                self._coarse(work, level, found)
        return found

    def read(self, channel: int, start: int, stop: int) -> Num[np.ndarray, "z y x"]:
        """Planes of a channel, corrected; CanvasError for NaN."""
        voxels, shape = self.source.channels[channel], self.source.shape_zyx
        slab = np.empty((stop - start, *shape[1:]), self.layout.dtype)

        def piece(box: tuple[slice, slice, slice]) -> None:
            origin = (start + box[0].start, box[1].start, box[2].start)
            size = tuple(part.stop - part.start for part in box)
            slab[box] = voxels.read(origin, size)
            if slab.dtype.kind == "f" and not np.isfinite(slab[box]).all():
                raise CanvasError(
                    f"{self.source.path} holds NaN or infinite values near {origin} (z, y, x); replace them "
                    "first"
                )

        self._all(piece, _pieces(slab.shape, voxels.chunk_zyx, slab.dtype.itemsize))
        correction = self.corrections[channel]
        if correction.is_there:

            def correct(z: int) -> None:
                slab[z] = correction.apply(slab[z])

            with ThreadPoolExecutor(self._at_once) as pool:
                list(pool.map(correct, range(len(slab))))
        return slab

    def _planes(self, level: int, start: int) -> int:
        of = self.layout.levels[level]
        return min(of.planes, of.shape_zyx[0] - start)

    def _slab(self, root: Path, channel: int, start: int, hashed: Sequence[Path]) -> Done:
        planes = self._planes(0, start)
        before = set(self.source.channels[channel].bad_chunks)
        hashes = [(self.source.key(file), self.pool.submit(sha256, file)) for file in hashed]
        slab = self.read(channel, start, start + planes)
        files = self._write(root, 0, channel, start, slab)
        for level, of in enumerate(self.layout.levels):
            if level and of.with_slabs:
                slab, start = self._coarser(slab, of.factor), start // of.factor[0]
                files |= self._write(root, level, channel, start, slab)
        bad = sorted({*self.source.channels[channel].bad_chunks} - before)
        return Done(files, {key: each.result() for key, each in hashes}, bad)

    def _coarse(self, work: SlabWork, level: int, found: Done) -> None:
        """A level that is made from the one before when that is whole."""
        of = self.layout.levels[level]
        finer = open_arrays(work.store, self.layout)[level - 1]
        for channel in range(self.layout.channels):
            for start in self.layout.starts(level):
                name = f"c{channel}-level{level}-z{start:06d}"
                done = work.done(name)
                if done is None:
                    stop = start + self._planes(level, start)
                    box = slice(start * of.factor[0], stop * of.factor[0])
                    slab = np.asarray(finer[channel, box] if self.layout.has_c else finer[box])
                    coarse = self._coarser(slab, of.factor)
                    done = Done(self._write(work.store, level, channel, start, coarse))
                    work.keep(name, done)
                found.add(done)

    def _coarser(self, slab: np.ndarray, factor: Zyx) -> np.ndarray:
        """A slab of the next level, made in bands of rows."""
        shape = [math.ceil(n / f) for n, f in zip(slab.shape, factor, strict=True)]
        coarse, rows = np.empty(shape, slab.dtype), max(1, 64 // factor[1])

        def band(y: int) -> None:
            coarse[:, y : y + rows] = self._down(slab[:, y * factor[1] : (y + rows) * factor[1]], factor)

        self._all(band, range(0, shape[1], rows))
        return coarse

    def _write(
        self, root: Path, level: int, channel: int, start: int, slab: np.ndarray
    ) -> dict[str, Sequence[int]]:
        """The files of a slab, packed and flushed."""
        of, files = self.layout.levels[level], {}

        def shard(place: tuple[Zyx, tuple[slice, slice, slice]]) -> None:
            (z, y, x), box = place
            sharded = self.layout.ome == "0.5"
            packed = (
                pack_shard(slab[box], of.chunk_zyx, of.shard_zyx)
                if sharded
                else pack_chunk(slab[box], of.chunk_zyx)
            )
            if packed is not None:
                key = self.layout.key(level, channel, (z + start // of.shard_zyx[0], y, x))
                files[key] = write_flushed(root / key, packed)

        self._all(shard, shards_of(of, len(slab)))
        return dict(sorted(files.items()))

    def _all(self, work: Callable[[Any], None], pieces: Iterable[Any]) -> None:
        """Every piece on the pool; the first failure ends them all."""
        futures: list[Future[None]] = [self.pool.submit(work, piece) for piece in pieces]
        wait(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            future.cancel()
        wait(futures)
        for future in futures:
            if not future.cancelled():
                future.result()


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
    """The source files whose sha256 a slab computes: those of its planes, where each plane is a file."""
    return files[slab * len(files) // slabs : (slab + 1) * len(files) // slabs]


def source_list(source: Source, sources: dict[str, str]) -> dict[str, Any]:
    """Size and time of every source file, and its sha256 where it was computed."""
    listed = {}
    for file in source.files:
        found, key = file.stat(), source.key(file)
        listed[key] = {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns, "sha256": sources.get(key)}
    return listed


def settings_sha256(inputs: dict[str, Any]) -> str:
    """A hash over all that decides a store."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
