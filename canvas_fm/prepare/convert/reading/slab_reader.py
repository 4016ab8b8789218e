"""Slabs of a source, read whole or in strips of rows and corrected, with the checksums of their files."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Num

from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError
from canvas_fm.files.checksum import Algorithm, file_checksum
from canvas_fm.prepare.convert.layout import Layout
from canvas_fm.prepare.convert.reading.plane_strips import PlaneStrips, strip_rows
from canvas_fm.prepare.corrections.corrections import Correction
from canvas_fm.prepare.sources.source import Source

_READ_BYTES = 64e6  # of a source in chunks, what one thread reads at once

Rows = tuple[int, Num[np.ndarray, "z y x"]]
"""The first row and the voxels of a slab, or of a strip of it."""


class SlabReader:
    """Reads slabs on a pool of threads; one at a time, in memory that is used again for the next one."""

    def __init__(
        self,
        source: Source,
        layout: Layout,
        corrections: Sequence[Correction],
        checksums: Algorithm | None,
        pool: ThreadPoolExecutor,
        *,
        threads: int,
        memory_gb: float,
    ) -> None:
        self._source, self._layout, self._corrections = source, layout, corrections
        self._algorithm, self._pool = checksums, pool
        self._strip_rows = strip_rows(layout, threads)
        self._room = np.empty(0, layout.dtype)
        plane = math.prod(source.shape_zyx[1:]) * 4.0
        widest = max((each.memory_planes for each in corrections), default=0)
        self._at_once = max(1, min(threads, int(memory_gb * 0.3e9 / max(plane * widest, 1))))

    def slab(self, number: int) -> tuple[Iterator[Rows], Callable[[], dict[str, dict[str, str]]]]:
        """A slab in parts, each until the next one is taken, and what gives the checksums of source files
        when all were."""
        channel, start, planes = self._layout.slab_of(number)
        strips = self._strips(channel, start, planes)
        if strips is not None:
            return self._in_strips(strips, start, planes), lambda: self._entries(strips.checksums())
        hashes = self._hashing(_share(self._source.files, number, self._layout))
        whole = ((0, self.read(channel, start, start + planes)) for _ in range(1))
        return whole, lambda: self._entries({file: each.result() for file, each in hashes.items()})

    def read_ahead(self, number: int) -> None:
        """Have the system read the files of a slab, while another one is packed."""
        depth, files = self._source.shape_zyx[0] * self._layout.channels, self._source.files
        if len(files) < depth or number >= self._layout.slabs or not hasattr(os, "posix_fadvise"):
            return
        for path in _share(files, number, self._layout):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def read(self, channel: int, start: int, stop: int) -> Num[np.ndarray, "z y x"]:
        """Planes of a channel, corrected, until the next call; CanvasError for NaN."""
        voxels, shape = self._source.channels[channel], self._source.shape_zyx
        slab = self._memory((stop - start, *shape[1:]))

        def piece(box: tuple[slice, slice, slice]) -> None:
            origin = (start + box[0].start, box[1].start, box[2].start)
            voxels.read_into(slab[box], origin)
            self._check_finite(slab[box], origin)

        pieces = _pieces(slab.shape, voxels.chunk_zyx, slab.dtype.itemsize)
        run_all(self._pool, (partial(piece, box) for box in pieces))
        correction = self._corrections[channel]
        if correction.is_there:

            def correct(z: int) -> None:
                slab[z] = correction.apply(slab[z])

            with ThreadPoolExecutor(self._at_once) as pool:
                list(pool.map(correct, range(len(slab))))
        return slab

    def checksums(self, files: Sequence[Path]) -> dict[str, dict[str, str]]:
        """Checksums of source files by name and algorithm, none where none are kept."""
        hashes = self._hashing(files)
        return self._entries({file: each.result() for file, each in hashes.items()})

    def _strips(self, channel: int, start: int, planes: int) -> PlaneStrips | None:
        """Planes that are read by rows; None where they are decoded or corrected as a whole."""
        voxels = self._source.channels[channel]
        if not isinstance(voxels, Volume) or self._corrections[channel].is_there:
            return None
        if voxels.plane_bytes(start) is None:  # as its neighbours, most often: they are not opened twice
            return None
        stored = list(self._pool.map(voxels.plane_bytes, range(start, start + planes)))
        readable = [each for each in stored if each is not None]
        return PlaneStrips(readable, self._algorithm) if len(readable) == planes else None

    def _in_strips(self, strips: PlaneStrips, start: int, planes: int) -> Iterator[Rows]:
        height, width = self._source.shape_zyx[1:]
        for y in range(0, height, self._strip_rows):
            strip = self._memory((planes, min(self._strip_rows, height - y), width))

            def piece(z: int, y: int = y, strip: np.ndarray = strip) -> None:
                strips.read(z, strip[z], y)
                self._check_finite(strip[z], (start + z, y, 0))

            run_all(self._pool, (partial(piece, z) for z in range(planes)))
            yield y, strip

    def _memory(self, shape: Sequence[int]) -> np.ndarray:
        """Taking memory anew for every slab can cost more than filling it."""
        if self._room.size < math.prod(shape):
            self._room = np.empty(math.prod(shape), self._layout.dtype)
        return self._room[: math.prod(shape)].reshape(shape)

    def _check_finite(self, voxels: np.ndarray, origin: Sequence[int]) -> None:
        if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
            raise CanvasError(
                f"{self._source.path} holds NaN or infinite values near {tuple(origin)} (z, y, x); replace "
                "them first"
            )

    def _hashing(self, files: Sequence[Path]) -> dict[Path, Future[str]]:
        if self._algorithm is None:
            return {}
        return {file: self._pool.submit(file_checksum, file, self._algorithm) for file in files}

    def _entries(self, checksums: Mapping[Path, str]) -> dict[str, dict[str, str]]:
        return {self._source.key(file): {str(self._algorithm): each} for file, each in checksums.items()}


def run_all(pool: ThreadPoolExecutor, work: Iterable[Callable[[], object]]) -> None:
    """Every piece of work on a pool; the first failure ends them all."""
    futures: list[Future[object]] = [pool.submit(piece) for piece in work]
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
    """Boxes that one thread reads at once: a plane, or a row of chunks through the slab."""
    planes, height, width = shape
    if chunk[0] == 1:
        whole = slice(0, height), slice(0, width)
        yield from ((slice(z, z + 1), *whole) for z in range(planes))
        return
    rows = max(1, int(_READ_BYTES / (planes * width * itemsize * chunk[1]))) * chunk[1]
    for y in range(0, height, rows):
        yield slice(0, planes), slice(y, min(y + rows, height)), slice(0, width)


def _share(files: Sequence[Path], slab: int, layout: Layout) -> Sequence[Path]:
    """The source files whose checksum a slab computes: those of its planes, where each plane is a file."""
    depth = layout.levels[0].shape_zyx[0]
    if len(files) == depth * layout.channels:
        channel, start, planes = layout.slab_of(slab)
        return files[channel * depth + start :][:planes]
    return files[slab * len(files) // layout.slabs : (slab + 1) * len(files) // layout.slabs]
