"""Backends that decode chunks of a volume: zarr-python, tensorstore, and parallel remote reads."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from canvas_fm.data.volume.volume import Volume, Zyx
from canvas_fm.errors import CanvasError, MissingExtra

_log = logging.getLogger(__name__)

Backend = Literal["auto", "zarr", "tensorstore"]
_RUN_BYTES = 4 * 2**20  # neighbouring chunks that zarr reads in one request, which saves most of its overhead
_REMOTE_AT_ONCE = 8
_AHEAD_BYTES = 16 * 2**20  # what tensorstore decodes while the chunks before are copied


@runtime_checkable
class Decoder(Protocol):
    """Protocol of the backends: decoded chunks, clipped at the volume's border, in index order."""

    name: str

    def chunks(self, indices: Sequence[Zyx]) -> Iterator[np.ndarray]: ...


def open_decoder(volume: Volume, backend: Backend = "auto") -> Decoder:
    """Open the chosen backend; "auto" is tensorstore if it is installed and opens the store, else zarr.

    Raises MissingExtra, or CanvasError where tensorstore was asked for and cannot open the store.
    """
    if backend not in ("auto", "zarr", "tensorstore"):
        raise CanvasError(f"backend is {backend!r}; expected auto, zarr or tensorstore")
    if volume.remote is not None and backend != "tensorstore":
        return AheadDecoder(volume)
    if backend == "zarr":
        return ZarrDecoder(volume)
    try:
        return TensorstoreDecoder(volume)
    except CanvasError as problem:
        if backend == "tensorstore":
            raise
        _log.debug("%s is read by zarr: %s", volume.path, problem)
        return ZarrDecoder(volume)


class ZarrDecoder:
    """Chunks by `Volume.read`, neighbours along x in one request."""

    name = "zarr"

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._most = max(1, _RUN_BYTES // (int(np.prod(volume.chunk_zyx)) * volume.dtype.itemsize))

    def chunks(self, indices: Sequence[Zyx]) -> Iterator[np.ndarray]:
        depth, height, width = self._volume.chunk_zyx
        for (z, y, x), length in _runs(indices, self._most):
            origin = (z * depth, y * height, x * width)
            size = [
                min(s, n - o)
                for s, n, o in zip(
                    (depth, height, length * width), self._volume.shape_zyx, origin, strict=True
                )
            ]
            row = self._volume.read(origin, size)
            if length == 1:
                yield row
            else:
                for at in range(length):
                    # A copy, because a view would keep the whole row alive in the cache.
                    yield row[:, :, at * width : (at + 1) * width].copy()


def _runs(indices: Sequence[Zyx], max_length: int) -> Iterator[tuple[Zyx, int]]:
    """Runs of consecutive chunk indices along x: (first, length)."""
    at = 0
    while at < len(indices):
        z, y, x = indices[at]
        length = 1
        while (
            length < max_length and at + length < len(indices) and indices[at + length] == (z, y, x + length)
        ):
            length += 1
        yield indices[at], length
        at += length


class AheadDecoder:
    """Chunks of a remote volume by `Volume.read_chunk`, prefetched in parallel to hide latency."""

    name = "zarr"

    def __init__(self, volume: Volume) -> None:
        self._volume = volume

    def chunks(self, indices: Sequence[Zyx]) -> Iterator[np.ndarray]:
        with ThreadPoolExecutor(_REMOTE_AT_ONCE) as pool:
            waiting: deque[Future[np.ndarray]] = deque()
            try:
                for index in indices:
                    waiting.append(pool.submit(self._volume.read_chunk, index))
                    if len(waiting) >= _REMOTE_AT_ONCE:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for each in waiting:
                    each.cancel()


class TensorstoreDecoder:
    """Chunks by tensorstore in parallel, each after its file passed the volume's integrity checks.

    A chunk that tensorstore cannot decode is handed to the volume, which names the damage or skips it.
    """

    name = "tensorstore"

    def __init__(self, volume: Volume) -> None:
        try:
            import tensorstore
        except ImportError as problem:
            raise MissingExtra("tensorstore", "tensorstore", "reading crops with tensorstore") from problem
        place = volume.zarr_place
        if place is None:
            raise CanvasError(f"{volume.path} is no Zarr folder on disk; only zarr reads it")
        spec = {
            "driver": "zarr" if place.zarr_format == 2 else "zarr3",
            "kvstore": {"driver": "file", "path": f"{place.folder}/"},
            "recheck_cached_data": False,
            "context": {"cache_pool": {"total_bytes_limit": 0}},
        }
        try:
            array = tensorstore.open(spec, open=True, read=True).result()
        except (ValueError, OSError, NotImplementedError) as problem:
            cause = " ".join(str(problem).split())[:200]
            raise CanvasError(f"{volume.path} cannot be opened by tensorstore: {cause}") from problem
        free_axes = [at for at, index in enumerate(place.picked) if index is None]
        array = array[tuple(slice(None) if index is None else index for index in place.picked)]
        self._array = array.transpose([free_axes.index(at) for at in place.order_zyx])
        self._volume = volume
        chunk_bytes = int(np.prod(volume.chunk_zyx)) * volume.dtype.itemsize
        self._ahead = int(np.clip(_AHEAD_BYTES // chunk_bytes, 2, 32))

    def chunks(self, indices: Sequence[Zyx]) -> Iterator[np.ndarray]:
        waiting: deque[tuple[Zyx, Any]] = deque()
        for index in indices:
            waiting.append((index, self._request(index) if self._volume.check_chunk(index) else None))
            if len(waiting) > self._ahead:
                yield self._finish(*waiting.popleft())
        while waiting:
            yield self._finish(*waiting.popleft())

    def _request(self, index: Zyx) -> Any:
        low = [i * size for i, size in zip(index, self._volume.chunk_zyx, strict=True)]
        return self._array[
            tuple(
                slice(a, min(a + size, n))
                for a, size, n in zip(low, self._volume.chunk_zyx, self._volume.shape_zyx, strict=True)
            )
        ].read(order="C")

    def _finish(self, index: Zyx, request: Any) -> np.ndarray:
        if request is not None:
            try:
                return np.asarray(request.result(), dtype=self._volume.dtype)
            except (ValueError, OSError) as problem:
                _log.debug("chunk %s of %s: %s", index, self._volume.path, problem)
        return self._volume.read_chunk(index)
