"""Neuroglancer's sharded files: many values, each found by a 64-bit key, in a bounded number of files.

A shard file begins with its index: start and end of each minishard's index. That one lists key, offset and
size of each value, as differences. Source: `neuroglancer_uint64_sharded_v1` in the documentation of
Neuroglancer's precomputed data source.
"""

from __future__ import annotations

import gzip
import itertools
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import UInt64

from canvas_fm.errors import CanvasError
from canvas_fm.files.atomic import disk_full_as_error

KIND = "neuroglancer_uint64_sharded_v1"
Hash = Literal["identity", "murmurhash3_x86_128"]
Encoding = Literal["raw", "gzip"]
Values = Callable[[np.ndarray], tuple[bytes, np.ndarray]]
_GZIP_LEVEL = 1
_NAME = re.compile("[0-9a-f]+[.]shard")
_FEW_BITS = 32  # an index of more minishards a shard than that is no index that anybody wrote


@dataclass(frozen=True)
class Sharding:
    """Shard and minishard bits of a key's hash: the lowest bits are dropped, then come these two."""

    preshift_bits: int
    minishard_bits: int
    shard_bits: int
    hash: Hash = "identity"
    minishard_index_encoding: Encoding = "gzip"
    data_encoding: Encoding = "raw"

    @classmethod
    def of_json(cls, value: Any, where: Path) -> Sharding:
        """The specification in an `info`; CanvasError for one that is incomplete or of another type."""
        known = isinstance(value, Mapping) and value.get("@type") == KIND
        try:
            sharding = cls(
                int(value["preshift_bits"]),
                int(value["minishard_bits"]),
                int(value["shard_bits"]),
                value["hash"],
                value.get("minishard_index_encoding", "raw"),
                value.get("data_encoding", "raw"),
            )
        except (TypeError, KeyError, ValueError) as problem:
            raise CanvasError(f"{where}: its sharding is {value!r}; expected a {KIND}") from problem
        bits = (sharding.preshift_bits, sharding.minishard_bits, sharding.shard_bits)
        encodings = {sharding.minishard_index_encoding, sharding.data_encoding}
        if (
            not known
            or sharding.hash not in get_args(Hash)
            or not encodings <= {*get_args(Encoding)}
            or min(bits) < 0
            or max(bits) > 64
            or sharding.minishard_bits > _FEW_BITS
        ):
            raise CanvasError(f"{where}: its sharding is {value!r}; expected a {KIND}")
        return sharding

    def to_json(self) -> dict[str, Any]:
        return {"@type": KIND} | {name: getattr(self, name) for name in self.__dataclass_fields__}

    def places(
        self, keys: UInt64[np.ndarray, " n"]
    ) -> tuple[UInt64[np.ndarray, " n"], UInt64[np.ndarray, " n"]]:
        """Shard and minishard of each key."""
        hashed = keys >> np.uint64(self.preshift_bits) if self.preshift_bits < 64 else np.zeros_like(keys)
        if self.hash == "murmurhash3_x86_128":
            hashed = murmurhash3_x86_128(hashed)
        minishard = hashed & _mask(self.minishard_bits)
        return (hashed >> np.uint64(self.minishard_bits)) & _mask(self.shard_bits), minishard

    def file_name(self, shard: int) -> str:
        """`0a.shard`: the number in hexadecimal, padded to the digits of the last one."""
        return f"{shard:0{-(-self.shard_bits // 4) or 1}x}.shard"


def _mask(bits: int) -> np.uint64:
    return np.uint64((1 << bits) - 1)


def murmurhash3_x86_128(keys: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """The low 64 bits of MurmurHash3_x86_128, seed 0, of each key's eight little-endian bytes."""
    low, high = keys.astype(np.uint32), (keys >> np.uint64(32)).astype(np.uint32)
    with np.errstate(over="ignore"):
        first = _rotate(low * np.uint32(0x239B961B), 15) * np.uint32(0xAB0E9789)
        second = _rotate(high * np.uint32(0xAB0E9789), 16) * np.uint32(0x38B34AE5)
        length = np.uint32(8)
        h1, h2, h3 = first ^ length, second ^ length, np.full_like(low, length)
        h1 = h1 + h2 + h3 + h3  # the third and fourth are the same all along
        h2, h3 = h2 + h1, h3 + h1
        h1, h2, h3 = _final_mix(h1), _final_mix(h2), _final_mix(h3)
        h1 = h1 + h2 + h3 + h3
        h2 = h2 + h1
    return h1.astype(np.uint64) | (h2.astype(np.uint64) << np.uint64(32))


def _rotate(values: np.ndarray, bits: int) -> np.ndarray:
    return (values << np.uint32(bits)) | (values >> np.uint32(32 - bits))


def _final_mix(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    values = (values ^ (values >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return values ^ (values >> np.uint32(16))


def encoded(value: bytes, encoding: Encoding) -> bytes:
    """A value as it lies in a shard; the same bytes give the same file, as gzip's time is left out."""
    return gzip.compress(value, _GZIP_LEVEL, mtime=0) if encoding == "gzip" else value


def write_shards(
    folder: Path, sharding: Sharding, keys: UInt64[np.ndarray, " n"], values: Values
) -> list[Path]:
    """Write all shards of a folder and return their files; memory for one shard at a time.

    `values(rows)` has the encoded values of some keys, one after another, and the size of each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards, minishards = sharding.places(keys)
    # Consecutive ids are in the order of the files already; sorting ten million takes half a gigabyte.
    later = (shards[1:] > shards[:-1]) | ((shards[1:] == shards[:-1]) & (minishards[1:] >= minishards[:-1]))
    sorted_already = bool((later & (keys[1:] > keys[:-1])).all())
    order = np.arange(len(keys)) if sorted_already else np.lexsort((keys, minishards, shards))
    cuts = np.flatnonzero(np.diff(shards[order])) + 1
    files = []
    for rows in np.split(order, cuts) if len(order) else []:
        path = folder / sharding.file_name(int(shards[rows[0]]))
        body, sizes = values(rows)
        with disk_full_as_error(path):
            path.write_bytes(_shard(sharding, keys[rows], minishards[rows], body, sizes))
        files.append(path)
    return files


def _shard(
    sharding: Sharding, keys: np.ndarray, minishards: np.ndarray, body: bytes, sizes: np.ndarray
) -> bytes:
    """One shard file: its index, the values, then the index of each minishard."""
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint64)
    assert int(starts[-1]) == len(body)
    index = np.zeros((1 << sharding.minishard_bits, 2), "<u8")
    end, tables = len(body), []
    cuts = [0, *(np.flatnonzero(np.diff(minishards)) + 1), len(keys)]
    for first, last in itertools.pairwise(cuts):
        table = np.zeros((3, last - first), "<u8")
        table[0] = np.diff(keys[first:last], prepend=np.uint64(0))
        table[1, 0], table[2] = starts[first], sizes[first:last]
        tables.append(encoded(table.tobytes(), sharding.minishard_index_encoding))
        index[int(minishards[first])] = end, end + len(tables[-1])
        end += len(tables[-1])
    return b"".join([index.tobytes(), body, *tables])


def read_shards(folder: Path, sharding: Sharding) -> Iterator[tuple[int, bytes]]:
    """Key and decoded value of everything in a folder of shards; CanvasError for a damaged or cut file."""
    for path in sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name)):
        content = memoryview(path.read_bytes())
        head = 16 << sharding.minishard_bits
        if len(content) < head:
            raise CanvasError(f"{path} has {len(content):,} bytes; its index alone takes {head:,}: it is cut")
        for start, end in np.frombuffer(content, "<u8", head // 8).reshape(-1, 2).tolist():
            if start == end:
                continue
            table = _decoded(path, _part(path, content, head, start, end), sharding.minishard_index_encoding)
            if len(table) % 24:
                raise CanvasError(f"{path} is damaged: an index of {len(table)} bytes is not three columns")
            for key, first, last in _entries(np.frombuffer(table, "<u8").reshape(3, -1)):
                value = _part(path, content, head, first, last)
                yield key, _decoded(path, value, sharding.data_encoding)


def _entries(table: np.ndarray) -> Iterator[Sequence[int]]:
    """Key, start and end of each value of a minishard."""
    sizes = table[2]
    starts = np.cumsum(table[1]) + np.cumsum(sizes) - sizes
    yield from zip(np.cumsum(table[0]).tolist(), starts.tolist(), (starts + sizes).tolist(), strict=True)


def _part(path: Path, content: memoryview, head: int, start: int, end: int) -> memoryview:
    if not 0 <= start <= end <= len(content) - head:
        raise CanvasError(f"{path} is damaged or cut: bytes {start:,} to {end:,} lie outside of it")
    return content[head + start : head + end]


def _decoded(path: Path, value: memoryview, encoding: Encoding) -> bytes:
    try:
        return gzip.decompress(value) if encoding == "gzip" else bytes(value)
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        raise CanvasError(f"{path} is damaged: a gzip stream in it cannot be read ({problem})") from problem
