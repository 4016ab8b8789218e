"""Files of an index: immutable parts of rows, and the manifest that lists them.

`X.index/index.json` is the manifest, and the sidecar: encoder, metric, rows, measured recall, and every
other file with its size and crc32. An addition writes new files first, then the manifest by one rename: a
kill leaves the index as it was before or as it is after. The next writer removes what no manifest names.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from canvas_fm.errors import CanvasError, DamagedStore
from canvas_fm.files.atomic import disk_full_as_error, sync_path, write_text_atomic
from canvas_fm.files.numpy_errors import UNREADABLE_NUMPY
from canvas_fm.inference.embed.store.embedding_store import Embeddings, column_key, storable

INDEX_FILE = "index.json"
METRICS = ("cosine", "l2")
_ENTRY = "part.json"  # written last into a part
BLOCK = 65_536  # rows in memory at a time
_CHECKED_AT_OPEN = 64 * 2**20  # bytes; larger files are compared by `Index.verify`
_REPAIR = "restore the file or build the index again"


@dataclass(frozen=True)
class Part:
    """Rows `first` … `first + rows` of an index, from one embeddings store."""

    folder: Path
    first: int
    entry: dict[str, Any]

    @property
    def rows(self) -> int:
        return int(self.entry["rows"])

    @property
    def constants(self) -> dict[str, str | None]:
        """Values equal for all rows: brain and marker, if the points have no such column."""
        return dict(self.entry["constants"])

    @property
    def columns(self) -> dict[str, str]:
        """Stored columns by name: `number` or `text`."""
        return dict(self.entry["columns"])

    @cached_property
    def vectors(self) -> np.ndarray:
        """Memory-mapped vectors (rows, d), float32 or float16, of length 1 where the metric is cosine."""
        return self._map("vectors.npy")

    @cached_property
    def zyx(self) -> np.ndarray:
        """Memory-mapped positions (rows, 3): z, y, x in voxels of level 0 of the brain."""
        return self._map("zyx.npy")

    def values(self, name: str) -> np.ndarray:
        """A stored column, memory-mapped: numbers, or codes of words."""
        return self._map(f"column.{column_key(name)}.npy")

    def words(self, name: str) -> list[str]:
        """Words of a text column, by code."""
        return list(json.loads((self.folder / f"column.{column_key(name)}.json").read_bytes()))

    def take(self, name: str, rows: Int64[np.ndarray, " r"]) -> list[Any]:
        """Values of a column at some rows of this part; None if absent."""
        if name in ("z", "y", "x"):
            return [float(value) for value in self.zyx[rows, "zyx".index(name)]]
        if name not in self.columns:
            return [self.constants.get(name)] * len(rows)
        values = self.values(name)[rows].tolist()
        if self.columns[name] == "text":
            words = self.words(name)
            return [words[code] for code in values]
        return [None if value != value else value for value in values]

    def _map(self, name: str) -> np.ndarray:
        try:
            return np.load(self.folder / name, mmap_mode="r", allow_pickle=False)
        except UNREADABLE_NUMPY as problem:
            raise DamagedStore(
                self.folder, "", name, f"cannot be read ({type(problem).__name__})", _REPAIR
            ) from problem


def write_part(folder: Path, embeddings: Embeddings, *, metric: str, dtype: str) -> dict[str, Any]:
    """Copy an embeddings store into a part, block by block; returns its entry for the manifest.

    A part that was finished before a kill is taken as it is.
    """
    if (done := _finished(folder, embeddings, metric, dtype)) is not None:
        return done
    shutil.rmtree(folder, ignore_errors=True)
    rows, dim = embeddings.shape
    with disk_full_as_error(folder):
        folder.mkdir()
        vectors = np.lib.format.open_memmap(
            folder / "vectors.npy", mode="w+", dtype=np.dtype(dtype), shape=(rows, dim)
        )
        for first in range(0, rows, BLOCK):
            block = embeddings.read(slice(first, first + BLOCK))
            vectors[first : first + BLOCK] = prepared(block, metric, first)
        vectors.flush()
        del vectors
        np.save(folder / "zyx.npy", embeddings.zyx)
        columns = {"id": embeddings.ids, **embeddings.columns}
        kinds = {name: _write_column(folder, name, values) for name, values in columns.items()}
        files = {path.name: file_entry(path) for path in sorted(folder.iterdir())}
        sync_path(folder)
    named = {"brain": embeddings.volume, "marker": embeddings.marker}
    entry = {
        "name": folder.name,
        "rows": rows,
        "source": source_of(embeddings),
        "voxel_um": list(embeddings.voxel_um),
        "constants": {name: value for name, value in named.items() if name not in kinds},
        "columns": kinds,
        "files": files,
    }
    write_text_atomic(folder / _ENTRY, json.dumps({"made": [metric, dtype], "entry": entry}))
    return entry


def _finished(folder: Path, embeddings: Embeddings, metric: str, dtype: str) -> dict[str, Any] | None:
    try:
        stored = json.loads((folder / _ENTRY).read_bytes())
        entry = dict(stored["entry"])
        sound = all(file_entry(folder / name) == file_stamp for name, file_stamp in entry["files"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    unchanged = stored["made"] == [metric, dtype] and entry["source"] == source_of(embeddings)
    return entry if unchanged and sound else None


def prepared(vectors: Float32[np.ndarray, "n d"], metric: str, first: int = 0) -> Float32[np.ndarray, "n d"]:
    """Vectors as stored and compared: finite, and of length 1 where the metric is cosine."""
    if not np.isfinite(vectors).all():
        bad = int(np.argmin(np.isfinite(vectors).all(axis=1)))
        raise CanvasError(f"vector {first + bad} holds NaN or infinite values; embed its cell again")
    if metric != "cosine":
        return vectors
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (length > 0).all():
        bad = int(np.argmin(length[:, 0]))
        raise CanvasError(f"vector {first + bad} is all zeros and has no direction; take metric 'l2'")
    return vectors / length


def source_of(embeddings: Embeddings) -> dict[str, Any]:
    """Identity of an embeddings store, independent of its path."""
    return {"volume": embeddings.volume, "inputs": embeddings.attributes.get("inputs")}


def _write_column(folder: Path, name: str, values: np.ndarray) -> str:
    """Write numbers, or codes and the word list; returns the kind."""
    stored = storable(values)
    key = f"column.{column_key(name)}"
    if stored.dtype != object:
        np.save(folder / f"{key}.npy", stored)
        return "number"
    words, codes = np.unique(np.asarray(values).astype(np.str_), return_inverse=True)
    np.save(folder / f"{key}.npy", codes.astype(np.int32).reshape(-1))
    (folder / f"{key}.json").write_text(json.dumps(words.tolist()), encoding="utf-8")
    return "text"


def file_entry(path: Path) -> list[int]:
    """[size, crc32] of a file after fsync."""
    sync_path(path)
    return [path.stat().st_size, _crc(path)]


def _crc(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(2**22):
            value = zlib.crc32(block, value)
    return value


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Replace the manifest atomically, then remove files it no longer lists."""
    write_text_atomic(folder / INDEX_FILE, _encode(manifest))
    named = {INDEX_FILE, "lock", *(name.partition("/")[0] for name, _ in _files(manifest))}
    for path in folder.iterdir():
        if path.name not in named and path.name.startswith(("part-", "lists-", "trained-")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of an index; CanvasError if there is none, DamagedStore if it was changed."""
    path = folder / INDEX_FILE
    if not path.is_file():
        if not folder.exists():
            raise CanvasError(
                f"{folder} does not exist; `canvas-fm index EMBEDDINGS --out X.index` writes it"
            )
        if folder.is_dir() and any(folder.glob("part-*")):
            raise CanvasError(f"{folder} is unfinished; run the same `canvas-fm index` again")
        raise CanvasError(f"{folder} is no index (X.index, as `canvas-fm index` writes it)")
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        manifest = json.loads(text)
        known = manifest["kind"] == "index"
        stated = manifest.pop("crc32")
    except (ValueError, KeyError, TypeError) as problem:
        raise DamagedStore(folder, "", INDEX_FILE, "cannot be read", _REPAIR) from problem
    if not known or stated is None or text != _encode(manifest):  # any other byte is damage
        raise DamagedStore(folder, "", INDEX_FILE, "does not match its own checksum", _REPAIR)
    if manifest["format_version"] != 1:
        raise CanvasError(
            f"{folder} is of format {manifest['format_version']}, unknown to this version; update canvas-fm"
        )
    return dict(manifest)


def check_files(folder: Path, manifest: Mapping[str, Any], *, all_bytes: bool = False) -> int:
    """Verify files against the manifest: sizes, and contents of the smaller or all; returns their number."""
    count = 0
    for name, (size, crc) in _files(manifest):
        path = folder / name
        where = (folder, *_split(name))
        if not path.is_file():
            raise DamagedStore(*where, "missing", _REPAIR)
        if path.stat().st_size != size:
            raise DamagedStore(*where, f"has {path.stat().st_size} bytes instead of {size}", _REPAIR)
        if (all_bytes or size <= _CHECKED_AT_OPEN) and _crc(path) != crc:
            raise DamagedStore(*where, "its bytes are not those that were written (crc32)", _REPAIR)
        count += 1
    return count


def parts_of(folder: Path, manifest: Mapping[str, Any]) -> list[Part]:
    """The parts with their first row numbers."""
    parts, first = [], 0
    for entry in manifest["parts"]:
        parts.append(Part(folder / entry["name"], first, entry))
        first += entry["rows"]
    return parts


def gather(parts: list[Part], rows: Int64[np.ndarray, " r"], dim: int) -> Float32[np.ndarray, "r d"]:
    """Stored vectors of some rows of the index, in that order."""
    out = np.empty((len(rows), dim), np.float32)
    for part, positions in by_part(parts, rows):
        out[positions] = part.vectors[rows[positions] - part.first]
    return out


def by_part(
    parts: list[Part], rows: Int64[np.ndarray, " r"]
) -> Iterator[tuple[Part, Int64[np.ndarray, " m"]]]:
    """Each part with the positions in `rows` that belong to it."""
    part_number = np.searchsorted([part.first for part in parts], rows, side="right") - 1
    for number in np.unique(part_number):
        yield parts[number], np.flatnonzero(part_number == number)


def _files(manifest: Mapping[str, Any]) -> Iterator[tuple[str, list[int]]]:
    for part in manifest["parts"]:
        yield from ((f"{part['name']}/{name}", entry) for name, entry in part["files"].items())
    if manifest["lists"] is not None:
        yield manifest["lists"]["trained"]["name"], manifest["lists"]["trained"]["file"]
        yield from ((each["name"], each["file"]) for each in manifest["lists"]["files"])


def _split(name: str) -> tuple[str, str]:
    array, _, file = name.rpartition("/")
    return array, file


def _encode(manifest: Mapping[str, Any]) -> str:
    crc = zlib.crc32(json.dumps(manifest, indent=1).encode())
    return json.dumps({**manifest, "crc32": crc}, indent=1) + "\n"
