"""Reading crops of a volume grouped by chunk: each chunk is decoded once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from jaxtyping import Int, Int64, Real, Shaped

from canvas_fm.data.crops.decoders import Decoder, open_decoder
from canvas_fm.data.points.points import as_zyx
from canvas_fm.data.volume.levels.resample import Resampler
from canvas_fm.data.volume.volume import Volume, Zyx, ZyxUm
from canvas_fm.errors import CanvasError
from canvas_fm.files.lru_cache import LruCache


def crop_starts(points_zyx: Real[np.ndarray, "n 3"], crop_zyx: Zyx) -> Int64[np.ndarray, "n 3"]:
    """First voxel of crops around points, (n, 3) int64 z, y, x: floor(p + ½) − size // 2 on each axis."""
    return np.floor(np.asarray(points_zyx) + 0.5).astype(np.int64) - np.asarray(crop_zyx) // 2


def cache_for(volume: Volume) -> int:
    """Bytes of decoded chunks worth keeping: 32 chunks, but at least 64 and at most 256 MB.

    In chunk order a volume of 10⁹ voxels with 138,000 crops has each chunk of 32 × 64 × 64 decoded 1.3 times
    with 64 MB and 1.1 times with 256, which is .5 % of an embedding's time. A remote chunk is dearer.
    """
    chunk = int(np.prod(volume.chunk_zyx)) * volume.dtype.itemsize
    least, most = 64 * 2**20, 256 * 2**20
    return most if volume.remote is not None else min(max(32 * chunk, least), most)


class CropReader:
    """Reads crops of `crop_zyx` voxels around points, at the model's voxel size with `resample_to_um`.

    Each chunk is decoded once a call, and not again while it is among the last `cache_bytes` of decoded
    chunks (None: `cache_for` the volume); one reader may serve several threads. `box_zyx` is what one crop
    covers in voxels of the volume: `crop_zyx` itself unless it is resampled. With "auto" tensorstore decodes
    where it is installed and can open the store, after the volume's own checks: damage is the same
    DamagedStore with every backend.
    """

    def __init__(
        self,
        volume: Volume,
        crop_zyx: Zyx,
        *,
        cache_bytes: int | None = None,
        backend: Literal["auto", "zarr", "tensorstore"] = "auto",
        resample_to_um: ZyxUm | None = None,
    ) -> None:
        if len(crop_zyx) != 3 or min(crop_zyx) < 1:
            raise CanvasError(f"crop_zyx is {tuple(crop_zyx)}; expected three sizes of at least 1: z, y, x")
        self.volume, self.crop_zyx = volume, crop_zyx
        self.resampler = None
        if resample_to_um is not None:
            self.resampler = Resampler(crop_zyx, volume.voxel_um, resample_to_um)
        self.box_zyx: Zyx = self.resampler.box_zyx if self.resampler else crop_zyx
        self.dtype = np.dtype(np.float32) if self.resampler else volume.dtype
        self._decoder: Decoder = open_decoder(volume, backend)
        held = cache_for(volume) if cache_bytes is None else cache_bytes
        self._cache: LruCache[Zyx, np.ndarray] = LruCache(held, lambda chunk: chunk.nbytes)

    @property
    def backend(self) -> str:
        """The decoding backend: "zarr" or "tensorstore"."""
        return self._decoder.name

    def read_points(self, points_zyx: Real[np.ndarray, "n 3"]) -> Shaped[np.ndarray, "n z y x"]:
        """Crops (n, z, y, x) around points, in the order of the points; zero outside the volume."""
        return self.read(self._starts(points_zyx))

    def batches_points(
        self, points_zyx: Real[np.ndarray, "n 3"], batch: int
    ) -> Iterator[tuple[Int64[np.ndarray, " b"], Shaped[np.ndarray, "b z y x"]]]:
        """Batches of crops around many points in bounded memory; see `batches`."""
        return self.batches(self._starts(points_zyx), batch)

    def read(self, starts_zyx: Int[np.ndarray, "n 3"]) -> Shaped[np.ndarray, "n z y x"]:
        """Crops (n, z, y, x) whose boxes start at `starts_zyx`, in that order; boxes are `box_zyx` voxels.

        In the volume's type, float32 if resampled; zero outside the volume. Memory: the result, the cache and
        a few chunks; when resampling 512 boxes at a time besides. Raises DamagedStore as the volume does.
        """
        starts = _as_starts(starts_zyx)
        if self.resampler is None:
            return self._boxes(starts)
        crops = np.empty((len(starts), *self.crop_zyx), np.float32)
        order = chunk_order(starts, self.volume.chunk_zyx)
        for first in range(0, len(starts), 512):
            rows = order[first : first + 512]
            crops[rows] = self.resampler(self._boxes(starts[rows]))
        return crops

    def batches(
        self, starts_zyx: Int[np.ndarray, "n 3"], batch: int
    ) -> Iterator[tuple[Int64[np.ndarray, " b"], Shaped[np.ndarray, "b z y x"]]]:
        """Iterate over `(rows, crops)` in chunk order, until each row of `starts_zyx` has come once.

        Memory is that of one batch and the cache, however many starts. Neighbours in space come together
        (along a Z-order curve), so few chunks are decoded twice even where the cache holds a small part of
        the volume.
        """
        starts = _as_starts(starts_zyx)
        if batch < 1:
            raise CanvasError(f"batch is {batch}; expected at least 1 crop")
        order = chunk_order(starts, self.volume.chunk_zyx)
        for first in range(0, len(starts), batch):
            rows = order[first : first + batch]
            yield rows, self.read(starts[rows])

    def _starts(self, points_zyx: Real[np.ndarray, "n 3"]) -> Int64[np.ndarray, "n 3"]:
        points = as_zyx(points_zyx)
        if self.resampler is None:
            return crop_starts(points, self.crop_zyx)
        return crop_starts(points, (1, 1, 1)) + np.asarray(self.resampler.offset_zyx)

    def _boxes(self, starts: Int64[np.ndarray, "n 3"]) -> Shaped[np.ndarray, "n z y x"]:
        """Boxes of the volume, filled chunk by chunk: each chunk is copied into all boxes it intersects."""
        boxes = np.zeros((len(starts), *self.box_zyx), self.volume.dtype)
        box, chunk = np.asarray(self.box_zyx), np.asarray(self.volume.chunk_zyx)
        rows, cells = _touched(starts, box, chunk, np.asarray(self.volume.shape_zyx))
        if not len(rows):
            return boxes
        order = np.lexsort(cells.T[::-1])
        rows, cells = rows[order], cells[order]
        # Where each pair's overlap lies, in the box and in the chunk.
        low = np.maximum(starts[rows], cells * chunk)
        size = np.minimum(starts[rows] + box, np.minimum((cells + 1) * chunk, self.volume.shape_zyx)) - low
        into, of = low - starts[rows], low - cells * chunk
        places = np.concatenate([into, into + size, of, of + size], axis=1).tolist()
        new = np.flatnonzero(np.any(np.diff(cells, axis=0, prepend=-1) != 0, axis=1))
        ends = np.append(new[1:], len(rows)).tolist()
        targets = rows.tolist()
        for voxels, first, last in zip(self._chunks(cells[new]), new.tolist(), ends, strict=True):
            for pair in range(first, last):
                a, b, c, d, e, f, g, h, i, j, k, m = places[pair]
                boxes[targets[pair], a:d, b:e, c:f] = voxels[g:j, h:k, i:m]
        return boxes

    def _chunks(self, cells: Int64[np.ndarray, "m 3"]) -> Iterator[np.ndarray]:
        """Decoded chunks in order, from the cache where possible."""
        indices: list[Zyx] = [(z, y, x) for z, y, x in cells.tolist()]
        cached = {index: voxels for index in indices if (voxels := self._cache.get(index)) is not None}
        fresh = self._decoder.chunks([index for index in indices if index not in cached])
        for index in indices:
            voxels = cached.pop(index, None)
            if voxels is None:
                voxels = next(fresh)
                self._cache.put(index, voxels)
            yield voxels


def _as_starts(starts_zyx: Int[np.ndarray, "n 3"]) -> Int64[np.ndarray, "n 3"]:
    starts = np.asarray(starts_zyx)
    if starts.ndim != 2 or starts.shape[1] != 3 or starts.dtype.kind not in "iu":
        raise CanvasError(
            f"starts are {starts.dtype} of shape {starts.shape}; expected whole numbers (n, 3): "
            "z, y, x of each crop's first voxel"
        )
    return starts.astype(np.int64, copy=False)


def _touched(
    starts: np.ndarray, box: np.ndarray, chunk: np.ndarray, shape: np.ndarray
) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, "pairs 3"]]:
    """Every (row, chunk index) where a row's box intersects an existing chunk."""
    first = np.maximum(starts, 0) // chunk
    last = (np.minimum(starts + box, shape) - 1) // chunk
    outside = np.any((starts + box <= 0) | (starts >= shape), axis=1)
    last[outside] = first[outside] - 1
    rows, cells = [], []
    for step in np.ndindex(*np.max(last - first + 1, axis=0, initial=0)):
        cell = first + step
        hit = np.flatnonzero(np.all(cell <= last, axis=1))
        rows.append(hit)
        cells.append(cell[hit])
    if not rows:
        return np.empty(0, np.int64), np.empty((0, 3), np.int64)
    return np.concatenate(rows), np.concatenate(cells)


def chunk_order(starts_zyx: Int[np.ndarray, "n 3"], chunk_zyx: Zyx) -> Int64[np.ndarray, " n"]:
    """Row order along a Z-order curve through the chunks of the crops' first voxels.

    By their starts, not their centres: crops that start in one chunk touch the same few chunks beyond it.
    """
    cells = np.clip(starts_zyx // np.asarray(chunk_zyx), 0, 2**21 - 1).astype(np.uint64)
    curve = np.zeros(len(cells), np.uint64)
    for bit in range(21):
        for axis in range(3):
            curve |= ((cells[:, axis] >> np.uint64(bit)) & np.uint64(1)) << np.uint64(3 * bit + 2 - axis)
    return np.argsort(curve, kind="stable").astype(np.int64)
