"""The files of a store, on disk or zipped, and the manifest by which what we wrote is checked again.

A manifest lists the size and crc32c of every file below the store's root. What it lists and is not there, what is there
as a chunk and not listed, and what differs by one bit is damage. Stores of others have no manifest: of them only the
links are checked here.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import google_crc32c

from canvas_fm.data.disk import disk_full_is_said, write_atomic
from canvas_fm.errors import CanvasError, DamagedStore

MANIFEST = "canvas_fm_manifest.json"
_VERSION = 1
_BLOCK = 4 * 2**20


class Stamp(NamedTuple):
    """What tells a file from its later versions without reading it."""

    size: int
    mtime_ns: int
    identity: tuple[int, ...] = ()


class Folder:
    """The files below a folder, by keys with forward slashes; a link that leads out of it is refused."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).resolve()
        self.given = Path(root)
        self._prefix = str(self.root) + os.sep
        self._inside = {str(self.root)}

    def __str__(self) -> str:
        return str(self.given)

    def stamp(self, key: str) -> Stamp | None:
        """Size and time of a file, None where there is none; raises DamagedStore for a link that leaves."""
        path = self._prefix + key
        parent = os.path.dirname(path)
        if parent not in self._inside:
            self._refuse_leaving(parent, key)
            self._inside.add(parent)
        try:
            found = os.lstat(path)
            if (found.st_mode & 0o170000) == 0o120000:
                self._refuse_leaving(path, key)
                found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as problem:
            raise DamagedStore(self, *split_key(key), f"cannot be looked up ({problem})") from problem
        if (found.st_mode & 0o170000) != 0o100000:
            return None
        return Stamp(found.st_size, found.st_mtime_ns, (found.st_ino, found.st_ctime_ns))

    def read(self, key: str) -> bytes | None:
        if self.stamp(key) is None:
            return None
        try:
            return Path(self._prefix + key).read_bytes()
        except OSError as problem:
            raise DamagedStore(self, *split_key(key), f"cannot be read ({problem.strerror})") from problem

    def keys(self, below: str = "") -> Iterator[str]:
        """Every file below a folder of the store, in no order."""
        top = self._prefix + below
        if below:
            self._refuse_leaving(top, below)
        for folder, folders, names in os.walk(top):
            inner = os.path.relpath(folder, self.root)
            start = "" if inner == "." else inner.replace(os.sep, "/") + "/"
            for name in folders:
                if os.path.islink(os.path.join(folder, name)):
                    self._refuse_leaving(os.path.join(folder, name), start + name)
            yield from (start + name for name in names)

    def crc(self, key: str) -> int:
        with open(self._prefix + key, "rb") as file:
            return _crc(iter(lambda: file.read(_BLOCK), b""))

    def _refuse_leaving(self, path: str, key: str) -> None:
        real = os.path.realpath(path)
        if real != str(self.root) and not real.startswith(self._prefix):
            raise DamagedStore(
                self, *split_key(key), f"a link leads out of the store, to {real}", "copy the files in"
            )


class Zipped:
    """The files inside a zip archive, below an optional folder in it."""

    def __init__(self, path: str | Path, inside: str = "") -> None:
        self.root = Path(path).resolve()
        self.given = Path(path)
        self.inside = inside
        try:
            with zipfile.ZipFile(self.root) as archive:
                entries = archive.infolist()
            times = self.root.stat()
        except (OSError, ValueError, NotImplementedError, EOFError, zipfile.BadZipFile) as problem:
            raise CanvasError(f"{path} is no readable zip archive: {problem}") from problem
        self._entries = {
            entry.filename.removeprefix(inside): entry
            for entry in entries
            if entry.filename.startswith(inside) and not entry.is_dir()
        }
        self._stamp = (times.st_size, times.st_mtime_ns, times.st_ino, times.st_ctime_ns)

    def __str__(self) -> str:
        return str(self.given)

    def stamp(self, key: str) -> Stamp | None:
        entry = self._entries.get(key)
        return entry and Stamp(
            entry.file_size, self._stamp[1], (*self._stamp, entry.CRC, entry.header_offset)
        )

    def read(self, key: str) -> bytes | None:
        if key not in self._entries:
            return None
        try:
            with zipfile.ZipFile(self.root) as archive:
                return archive.read(self._entries[key])
        except Exception as problem:
            # zipfile raises BadZipFile, EOFError, zlib.error, NotImplementedError and more for one damaged entry.
            raise DamagedStore(self, *split_key(key), f"cannot be unzipped ({problem})") from problem

    def keys(self, below: str = "") -> Iterator[str]:
        yield from (key for key in self._entries if key.startswith(below + "/" if below else ""))

    def crc(self, key: str) -> int:
        return google_crc32c.value(self.read(key) or b"")


Files = Folder | Zipped


def split_key(key: str) -> tuple[str, str]:
    """The array and the rest of a file's key: `0/c/1/2/3` is chunk `c/1/2/3` of array `0`."""
    parts = key.split("/")
    for at, part in enumerate(parts):
        if part == "c" or part.startswith("c."):
            return "/".join(parts[:at]), "/".join(parts[at:])
    return "/".join(parts[:-1]), parts[-1]


def _crc(blocks: Iterator[bytes]) -> int:
    value = 0
    for block in blocks:
        value = google_crc32c.extend(value, block)
    return value


def _encode(listed: Mapping[str, tuple[int, int]]) -> bytes:
    """The only bytes that these entries may have on disk, so that any other byte is damage."""
    entries = {key: list(listed[key]) for key in sorted(listed)}
    body = json.dumps(entries, separators=(",", ":"), ensure_ascii=True)
    check = google_crc32c.value(body.encode())
    return f'{{"version":{_VERSION},"crc32c":{check},"files":{body}}}\n'.encode()


def write_manifest(root: str | Path, pending: Mapping[str, bytes] | None = None) -> None:
    """List size and crc32c of every file below `root`, each flushed to the disk before, and replace the old list at once.

    `pending` are files that get these contents right after: the mark that all is done can so come last.
    Raises StorageFull.
    """
    folder = Folder(root)
    listed: dict[str, tuple[int, int]] = {}
    for key in folder.keys():
        if key == MANIFEST or key.rsplit("/", 1)[-1].startswith("."):
            continue
        path = folder.root / key
        with path.open("rb") as file:
            listed[key] = (path.stat().st_size, _crc(iter(lambda file=file: file.read(_BLOCK), b"")))  # type: ignore[misc]
            with disk_full_is_said(path):
                os.fsync(file.fileno())
    for key, content in (pending or {}).items():
        listed[key] = (len(content), google_crc32c.value(content))
    write_atomic(folder.root / MANIFEST, lambda temporary: temporary.write_bytes(_encode(listed)))


# Checksums already computed in this process, by everything that changes when a file does.
_KNOWN: dict[tuple[str, str, Stamp], int] = {}


class CheckedStore:
    """A store whose files are compared with its manifest, each when first touched in this process.

    `listed` is None for a store without a manifest: `verify` then only refuses links that leave. Safe to use from
    several threads. Raises DamagedStore at once where the manifest itself is not what was written.
    """

    def __init__(self, root: str | Path | Files) -> None:
        self.files: Files = root if isinstance(root, Folder | Zipped) else Folder(root)
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
        return DamagedStore(self.files, *split_key(key), cause, "restore the file or write the store again")

    def verify(self, key: str) -> Stamp | None:
        """The file's stamp if it is what was written, None if nothing was ever written there; else DamagedStore."""
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
        known = (str(self.files.root), key, stamp)
        if known not in _KNOWN:
            try:
                _KNOWN[known] = self.files.crc(key)
            except OSError as problem:
                raise self._damage(key, f"cannot be read ({problem.strerror})") from problem
        if _KNOWN[known] != crc:
            raise self._damage(key, "does not match its checksum (changed after it was written)")
        return stamp

    def verify_all(self) -> int:
        """Compare every listed file, and refuse any that is not listed; the number of files."""
        if self.listed is None:
            raise CanvasError(f"{self.files} has no checksums: it was not written by canvas-fm")
        for key in sorted(self.listed):
            self.verify(key)
        for key in self.files.keys():
            if key not in self.listed and key != MANIFEST and not key.rsplit("/", 1)[-1].startswith("."):
                self.verify(key)
        return len(self.listed)

    def verify_metadata(self) -> None:
        """Compare every listed metadata file: `zarr.json` of the groups and arrays."""
        for key in self.listed or ():
            if key.rsplit("/", 1)[-1] == "zarr.json":
                self.verify(key)


def open_files(path: str | Path) -> Files:
    """The files of a store given as a folder or a zip archive; raises CanvasError for anything else."""
    path = Path(path)
    if not path.exists():
        raise CanvasError(f"{path} does not exist")
    if path.is_dir():
        return Folder(path)
    if not zipfile.is_zipfile(path):
        raise CanvasError(
            f"{path} is a file but no zip archive; give an OME-Zarr folder, a zipped one, or TIFF planes"
        )
    archive = Zipped(path)
    if not any(archive.stamp(name) for name in ("zarr.json", ".zgroup", ".zarray", ".zattrs")):
        tops = {key.split("/", 1)[0] for key in archive.keys()}
        if len(tops) == 1:
            return Zipped(path, inside=f"{tops.pop()}/")
    return archive
