"""Boxes of a Zarr array of any rank; damage is reported by array, chunk and cause.

zarr-python decodes. Which files a box needs, whether they are there and whether they are what was written is
looked up before, because zarr-python reads a missing chunk as zeros without a word.
"""

from __future__ import annotations

import itertools
import math
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import zarr
from jaxtyping import Shaped
from zarr.storage import LocalStore, ZipStore

from canvas_fm.data.store.checked_store import BadChunks, CheckedStore
from canvas_fm.data.store.files import Folder, Zipped
from canvas_fm.data.store.keys import Stamp
from canvas_fm.data.store.lfs_pointers import POINTER_BYTES, pointer_in
from canvas_fm.data.store.remote.remote_store import Remote
from canvas_fm.data.store.remote.zarr_store import RemoteStore
from canvas_fm.errors import CanvasError, DamagedStore, Unreachable

OnBadChunk = Literal["error", "skip"]
MissingChunks = Literal["error", "empty"]

_CHUNK = re.compile(r"(c[/.])?\d+([/.]\d+)*")
_HINT = "restore the file, or give --on-bad-chunk skip to read it as zeros"
_CODEC_HINT = (
    ": install the package that brings this codec, or let the program that wrote the store save it with "
    "Blosc or zstd"
)
EMPTY_HINT = "if they are meant to be empty, give --missing-chunks empty"
# Version, version of its codec, flags, typesize; bytes decoded, of a block, encoded.
_BLOSC = struct.Struct("<4B3I")

Span = tuple[tuple[int, ...], tuple[int, ...]]  # start and stop of a box


class ChunkedArray:
    """A Zarr array opened for reading, thread-safe.

    `chunks` is the shape of what decodes as one piece, `files_grid` of what lies in one file (a shard, else
    a chunk). Damage raises DamagedStore, or is read as zeros and kept in `bad` with `on_bad_chunk="skip"`.
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
        self.store, self.path, self.zarr_format = store, path, zarr_format
        self.bad = BadChunks(skip=on_bad_chunk == "skip")
        self._empty = missing_chunks == "empty"
        self._rules: dict[str, Any] = {"on_bad_chunk": on_bad_chunk, "missing_chunks": missing_chunks}
        try:
            self._array = _open(store, path, zarr_format)
            self.dtype = np.dtype(self._array.dtype)
            self.shape = tuple(int(n) for n in self._array.shape)
            self.chunks = tuple(int(n) for n in self._array.chunks)
            self.files_grid = tuple(int(n) for n in (self._array.shards or self.chunks))
            self.fill_value = 0 if self._array.fill_value is None else self._array.fill_value
        except Unreachable:
            raise
        except Exception as problem:
            # Metadata that is JSON but no array raises some ten types in zarr-python.
            hint = _CODEC_HINT if "codec" in type(problem).__name__.lower() else ""
            raise CanvasError(
                f"{store.files}: the metadata of array {path!r} cannot be used ({_one_line(problem)}){hint}"
            ) from problem
        if min(self.chunks, default=1) < 1 or min(self.files_grid, default=1) < 1:
            raise CanvasError(f"{store.files}: array {path!r} has chunks of shape {self.chunks}")
        self._headers = _blosc_nbytes(self._array.metadata.to_dict(), self.files_grid, self.dtype)
        self._seen: dict[str, Stamp] = {}
        self._map: Callable[..., Iterator[bool]] = map
        if isinstance(store.files, Remote):
            store.files.expect(*self._most_bytes(), check_whole=store.listed is not None)
            self._map = store.files.map

    def another(self, path: str, zarr_format: int) -> ChunkedArray:
        """Another array of the same store, read by the same rules."""
        return ChunkedArray(self.store, path, zarr_format, **self._rules)

    def _most_bytes(self) -> tuple[int, int | None]:
        """Upper bounds of a chunk file's bytes and, in a shard, a chunk's: codecs add little at most."""
        pieces = math.prod(self.files_grid) // max(math.prod(self.chunks), 1)
        chunk = math.prod(self.chunks) * self.dtype.itemsize
        part = chunk + chunk // 8 + 4096
        if self.files_grid == self.chunks:
            return part, None
        index = 16 * pieces + 4096
        return pieces * part + index, max(part, index)

    def read(self, start: Sequence[int], stop: Sequence[int]) -> Shaped[np.ndarray, "*shape"]:
        """The box [start, stop), which must lie inside the array; raises DamagedStore."""
        size = [b - a for a, b in zip(start, stop, strict=True)]
        lows = [low for low, _ in cells(start, stop, self.files_grid)]
        if not any(list(self._map(self.is_bad, lows))):
            try:
                return self._decode(start, stop)
            except MemoryError as problem:
                raise CanvasError(f"a box of {size} voxels does not fit in memory") from problem
            except Unreachable:
                raise
            except Exception:  # noqa: BLE001 - damage raises many types, none naming the chunk
                pass  # look for it below, chunk by chunk
        box = np.zeros(size, self.dtype.newbyteorder("="))
        for low, high in cells(start, stop, self.chunks):
            voxels = self._read_cell(low, high)
            if voxels is not None:
                box[tuple(slice(a - o, b - o) for a, b, o in zip(low, high, start, strict=True))] = voxels
        return box

    def file_key(self, at: Sequence[int]) -> str:
        """Key, below the store's root, of the file that holds the voxel `at`."""
        key = self._chunk_key(at)
        return f"{self.path}/{key}" if self.path else key

    def _chunk_key(self, at: Sequence[int]) -> str:
        cell = tuple(int(a) // size for a, size in zip(at, self.files_grid, strict=True))
        return str(self._array.metadata.encode_chunk_key(cell))

    def _decode(self, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        box = np.asarray(self._array[tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))])
        return box if box.dtype.isnative else box.astype(box.dtype.newbyteorder("="))

    def _read_cell(self, low: Sequence[int], high: Sequence[int]) -> np.ndarray | None:
        """The part of a box in one chunk; None if it is damaged and damage is skipped."""
        if self.is_bad(low):
            return None
        try:
            return self._decode(low, high)
        except Unreachable:  # which is no damage, and never read as zeros
            raise
        except DamagedStore as problem:
            self.bad.meet(problem, problem.__cause__)
            return None
        except Exception as problem:  # noqa: BLE001 - as above; raised again unless damage is skipped
            name = self._chunk_key(low)
            if self.files_grid != self.chunks:
                inner = "/".join(str(a // size) for a, size in zip(low, self.chunks, strict=True))
                name += f" (inner chunk {inner})"
            why = self._pointer(low) or (f"cannot be decoded ({_one_line(problem)})", _HINT)
            self.bad.meet(DamagedStore(self.store.files, self.path, name, *why), problem)
            return None

    def _pointer(self, at: Sequence[int]) -> tuple[str, str] | None:
        """Contents of a voxel's file in place of a chunk that was not fetched."""
        files = self.store.files
        head = files.read(self.file_key(at), POINTER_BYTES) if isinstance(files, Folder) else None
        return None if head is None else pointer_in(head)

    def is_bad(self, at: Sequence[int]) -> bool:
        """Whether the file that holds a voxel is damaged; raises unless damage is skipped."""
        key = self.file_key(at)
        try:
            stamp = self.store.verify(key)
            if stamp is None and self.store.listed is None:
                self._refuse_other_separator(at)
                if not self._empty:
                    raise self._missing(at)
            if stamp is not None and self._headers is not None and self._seen.get(key) != stamp:
                self._check_header(key, stamp)
                self._seen[key] = stamp
        except DamagedStore as problem:
            self.bad.meet(problem, problem.__cause__)
            return True
        return False

    def _check_header(self, key: str, stamp: Stamp) -> None:
        """Compare both lengths in a Blosc frame's header: its decoder reads beyond a truncated one."""
        head = self.store.files.read(key, _BLOSC.size) or b""
        try:
            *_, decoded, _, encoded = _BLOSC.unpack(head)
        except struct.error:
            decoded = encoded = -1
        if (decoded, encoded) != (self._headers, stamp.size):
            cause = (
                f"has {stamp.size:,} bytes; its header tells of {encoded:,} for {decoded:,} decoded, "
                f"a chunk is {self._headers:,}"
            )
            raise DamagedStore(self.store.files, self.path, key.removeprefix(f"{self.path}/"), cause, _HINT)

    def _refuse_other_separator(self, at: Sequence[int]) -> None:
        """CanvasError where a missing chunk is there under the other separator, which reads as no chunk."""
        if isinstance(self.store.files, Remote):
            return
        key = self._chunk_key(at)
        wrong, right = ("/", ".") if "/" in key else (".", "/")
        other = key.replace(wrong, right)
        if other != key and self.store.files.stamp(f"{self.path}/{other}" if self.path else other):
            raise CanvasError(
                f"{self.store.files}: array {self.path!r} names its chunks with the separator {wrong!r}, but "
                f"its files have {right!r} ({other}); correct the dimension_separator in .zarray, or the "
                "separator in zarr.json"
            )

    def _missing(self, at: Sequence[int]) -> DamagedStore:
        if isinstance(self.store.files, Remote):
            cause = "missing; the store has no checksums to tell whether it was ever written"
            return DamagedStore(self.store.files, self.path, self._chunk_key(at), cause, EMPTY_HINT)
        missing, total = self._count
        return DamagedStore(
            self.store.files,
            self.path,
            self._chunk_key(at),
            f"missing, as {missing:,} of the array's {total:,} chunks are; the store has no checksums to "
            "tell whether they were ever written",
            EMPTY_HINT,
        )

    @cached_property
    def _count(self) -> tuple[int, int]:
        """Number of missing chunk files, and of all."""
        total = math.prod(-(-n // size) for n, size in zip(self.shape, self.files_grid, strict=True))
        start = len(self.path) + 1 if self.path else 0
        n_files = sum(bool(_CHUNK.fullmatch(key[start:])) for key in self.store.files.listing(self.path))
        return max(total - n_files, 1), total


def cells(start: Sequence[int], stop: Sequence[int], grid: Sequence[int]) -> Iterator[Span]:
    """Split a box along a grid: the parts inside one grid cell each."""
    spans = []
    for a, b, size in zip(start, stop, grid, strict=True):
        parts = range(a // size, -(-b // size) if b > a else a // size)
        spans.append([(max(a, part * size), min(b, (part + 1) * size)) for part in parts])
    for cell in itertools.product(*spans):
        yield tuple(low for low, _ in cell), tuple(high for _, high in cell)


def _open(store: CheckedStore, path: str, zarr_format: int) -> zarr.Array:
    files = store.files
    place: Any
    if isinstance(files, Zipped):
        place, path = ZipStore(files.root, mode="r"), files.inside + path
    elif isinstance(files, Remote):
        place = RemoteStore(files)
    else:
        place = LocalStore(files.root, read_only=True)
    return zarr.open_array(place, path=path.strip("/"), mode="r", zarr_format=3 if zarr_format == 3 else 2)


def _blosc_nbytes(metadata: dict[str, Any], chunk: Sequence[int], dtype: np.dtype) -> int | None:
    """Decoded bytes of a chunk file that is exactly one Blosc frame, else None."""
    if metadata.get("zarr_format") == 2:
        plain = not metadata.get("filters") and dict(metadata.get("compressor") or {}).get("id") == "blosc"
    else:
        names = [dict(codec).get("name") for codec in metadata.get("codecs", ())]
        plain = names[-1:] == ["blosc"] and names[:-1] in (["bytes"], ["transpose", "bytes"])
    return math.prod(chunk) * dtype.itemsize if plain else None


def _one_line(problem: BaseException) -> str:
    text = " ".join(str(problem).split())
    return f"{type(problem).__name__}: {text[:200]}" if text else type(problem).__name__
