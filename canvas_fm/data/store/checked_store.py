"""The manifest of a store (size and crc32 of each file), verification against it, damage policy.

A manifest lists size and crc32 of every file below the store's root. A listed file that is not there, a
chunk that is there and not listed, and any other byte is damage. Stores of others have no manifest: of
theirs only links are checked.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from canvas_fm.data.store.files import Files, Folder
from canvas_fm.data.store.keys import METADATA, Stamp, split_key
from canvas_fm.errors import CanvasError, DamagedStore
from canvas_fm.files.atomic import disk_full_as_error, write_atomic

_log = logging.getLogger(__name__)

MANIFEST = "canvas_fm_manifest.json"
NAMESPACE = "canvas_fm"  # our attributes, beside those of OME-Zarr
_VERSION = 1
_HINT = "restore the file or write the store again"

# Checksums already computed in this process, by everything that changes when a file does.
_KNOWN: dict[tuple[str, str, Stamp], int] = {}


def write_manifest(
    root: str | Path,
    pending: Mapping[str, bytes] | None = None,
    known: Mapping[str, tuple[int, int]] | None = None,
) -> None:
    """List size and crc32 of every file below `root`, flush each to the disk, and replace the old list at
    once.

    `pending` are files that get these contents right after, so that the mark that all is done can come last;
    `known` are sizes and checksums of files that are flushed already, which are not read again. Hidden files
    other than the metadata of Zarr v2 are not listed. Raises StorageFull.
    """
    folder = Folder(root)
    listed: dict[str, tuple[int, int]] = dict(known or {})
    for key in folder.listing():
        if key == MANIFEST or key in listed or _hidden(key):
            continue
        listed[key] = ((folder.root / key).stat().st_size, folder.crc(key))
        with disk_full_as_error(folder.root / key), (folder.root / key).open("rb") as file:
            os.fsync(file.fileno())
    for key, content in (pending or {}).items():
        listed[key] = (len(content), zlib.crc32(content))
    write_atomic(folder.root / MANIFEST, lambda temporary: temporary.write_bytes(_encode(listed)))


def _hidden(key: str) -> bool:
    name = key.rsplit("/", 1)[-1]
    return name.startswith(".") and name not in METADATA


def _encode(listed: Mapping[str, tuple[int, int]]) -> bytes:
    """The canonical bytes of a manifest, so that any other byte is damage."""
    entries = {key: list(listed[key]) for key in sorted(listed)}
    body = json.dumps(entries, separators=(",", ":"), ensure_ascii=True)
    check = zlib.crc32(body.encode())
    return f'{{"version":{_VERSION},"crc32":{check},"files":{body}}}\n'.encode()


class CheckedStore:
    """A store whose files are verified against its manifest, each on first access in this process.

    `listed` is None for a store without a manifest: `verify` then only refuses links that leave it. Safe to
    use from several threads. Raises DamagedStore at once where the manifest itself is not what was written.
    """

    def __init__(self, root: str | Path | Files) -> None:
        self.files: Files = root if isinstance(root, Files) else Folder(root)
        content = self.files.read(MANIFEST)
        self.listed = None if content is None else self._decode(content)

    def _decode(self, content: bytes) -> dict[str, tuple[int, int]]:
        try:
            entries = json.loads(content)["files"]
            listed = {str(key): (int(size), int(crc)) for key, (size, crc) in entries.items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as problem:
            raise self._damage(MANIFEST, "the list of checksums cannot be read") from problem
        if _encode(listed) != content:
            raise self._damage(MANIFEST, "the list of checksums does not match its own checksum")
        return listed

    def _damage(self, key: str, cause: str) -> DamagedStore:
        return DamagedStore(self.files, *split_key(key), cause, _HINT)

    def verify(self, key: str) -> Stamp | None:
        """Verify one file; returns its stamp, None if it was never written; raises DamagedStore."""
        stamp = self.files.stamp(key)
        if self.listed is None:
            return stamp
        if key not in self.listed:
            if stamp is None:
                return None
            raise self._damage(key, "is there but not in the list of checksums")
        if stamp is None:
            raise self._damage(key, "missing")
        size, crc = self.listed[key]
        if stamp.size != size:
            raise self._damage(key, f"has {stamp.size:,} bytes where {size:,} were written")
        if self._crc(key, stamp) != crc:
            raise self._damage(key, "does not match its checksum: changed after it was written")
        return stamp

    def _crc(self, key: str, stamp: Stamp) -> int:
        known = (str(self.files.root), key, stamp)
        if known not in _KNOWN:
            try:
                _KNOWN[known] = self.files.crc(key)
            except OSError as problem:
                raise self._damage(key, f"cannot be read ({problem.strerror})") from problem
        return _KNOWN[known]

    def verify_all(self) -> int:
        """Verify every file of the manifest; returns their number."""
        if self.listed is None:
            raise CanvasError(f"{self.files} has no checksums: canvas-fm did not write it")
        for key in sorted(self.listed):
            self.verify(key)
        for key in self.files.listing():
            if key not in self.listed and key != MANIFEST and not _hidden(key):
                self.verify(key)
        return len(self.listed)

    def verify_sizes(self) -> int:
        """Verify that each listed file is there in its size, without reading it; returns the bytes of all."""
        for key, (size, _) in sorted((self.listed or {}).items()):
            if (stamp := self.files.stamp(key)) is None:
                raise self._damage(key, "missing")
            if stamp.size != size:
                raise self._damage(key, f"has {stamp.size:,} bytes where {size:,} were written")
        return sum(size for size, _ in (self.listed or {}).values())

    def verify_metadata(self) -> None:
        """Verify every listed metadata file of groups and arrays."""
        for key in self.listed or ():
            if key.rsplit("/", 1)[-1] in METADATA:
                self.verify(key)

    def check_written(self, attributes: Any) -> bool:
        """Whether canvas-fm wrote the store, by its root attributes (None if it has none).

        Attributes and manifest demand each other; the mark `complete` has to be there, and every metadata
        file has to be what was written. Raises CanvasError for a store that was never finished, DamagedStore
        for the rest.
        """
        if attributes is None and self.listed is None:
            return False
        if attributes is not None and not (
            isinstance(attributes, dict) and attributes.get("complete") is True
        ):
            raise CanvasError(
                f"{self.files} was never finished: what wrote it ended early; delete it and write it again"
            )
        if self.listed is None:
            raise DamagedStore(self.files, "", MANIFEST, "the list of checksums is missing", _HINT)
        if attributes is None:
            raise DamagedStore(
                self.files, "", "zarr.json", f"the attributes {NAMESPACE!r} are missing", _HINT
            )
        self.verify_metadata()
        return True


class BadChunks:
    """Policy for damaged chunks: raise, or with `skip` record and log each once and continue."""

    def __init__(self, *, skip: bool) -> None:
        self.skip = skip
        self._found: dict[str, str] = {}
        self._lock = threading.Lock()

    def meet(self, damage: DamagedStore, cause: BaseException | None = None) -> None:
        if not self.skip:
            raise damage from cause
        with self._lock:
            new = damage.chunk not in self._found
            self._found.setdefault(damage.chunk, str(damage))
        if new:
            _log.warning("read as zeros: %s", damage)

    def add(self, sentences: Iterable[str]) -> None:
        """Damage that another process, or an earlier run, read as zeros."""
        with self._lock:
            self._found |= {sentence: sentence for sentence in sentences if sentence not in self._found}

    def sentences(self) -> list[str]:
        """Messages of all damaged chunks, each once."""
        with self._lock:
            return list(dict.fromkeys(self._found.values()))
