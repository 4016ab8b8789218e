"""Files of a store in a folder or zip archive, by keys with forward slashes."""

from __future__ import annotations

import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from canvas_fm.data.store.keys import METADATA, Stamp, split_key
from canvas_fm.data.store.lfs_pointers import ANNEX_OBJECTS, FETCH_ANNEX
from canvas_fm.data.store.remote.remote_store import Remote
from canvas_fm.errors import CanvasError, DamagedStore

_BLOCK = 4 * 2**20
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,2}[^/]")  # a Path makes one slash of two
_MACOS = {"__MACOSX", ".DS_Store"}  # what macOS adds to a zip archive


class Folder:
    """Files below a folder; symbolic links that lead out are refused, or followed on request."""

    def __init__(self, root: str | Path, *, follow_links: bool = False) -> None:
        self.follow_links = follow_links
        self.root = Path(root).resolve()
        self.location = Path(root)
        self._prefix = str(self.root) + os.sep
        self._inside = {str(self.root)}

    def __str__(self) -> str:
        return str(self.location)

    def stamp(self, key: str) -> Stamp | None:
        """Size and modification time of a file, None if absent; DamagedStore for a link that leads out."""
        path = self._prefix + key
        parent = os.path.dirname(path)
        try:
            if parent not in self._inside:
                self._refuse_leaving(parent, key)
                self._inside.add(parent)
            info = os.lstat(path)
            if stat.S_ISLNK(info.st_mode):
                self._refuse_leaving(path, key)
                if not os.path.exists(path):
                    cause = f"is a link to {os.readlink(path)}, which is not here"
                    raise DamagedStore(self, *split_key(key), cause, FETCH_ANNEX)
                info = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as problem:
            raise DamagedStore(self, *split_key(key), f"cannot be looked up ({problem})") from problem
        if not stat.S_ISREG(info.st_mode):
            return None
        return Stamp(info.st_size, info.st_mtime_ns, (info.st_ino, info.st_ctime_ns))

    def read(self, key: str, first: int = -1) -> bytes | None:
        """Bytes of a file, or only its first `first` ones; None if absent."""
        if self.stamp(key) is None:
            return None
        try:
            with open(self._prefix + key, "rb") as file:
                return file.read(first)
        except OSError as problem:
            raise DamagedStore(self, *split_key(key), f"cannot be read ({problem.strerror})") from problem

    def listing(self, below: str = "") -> Iterator[str]:
        """Keys of all files below a folder of the store, unordered."""
        if below:
            self._refuse_leaving(self._prefix + below, below)
        for folder, folders, names in os.walk(self._prefix + below, followlinks=self.follow_links):
            inner = os.path.relpath(folder, self.root)
            start = "" if inner == "." else inner.replace(os.sep, "/") + "/"
            for name in folders:
                if os.path.islink(os.path.join(folder, name)):
                    self._refuse_leaving(os.path.join(folder, name), start + name)
            yield from (start + name for name in names)

    def crc(self, key: str) -> int:
        """The crc32 of a file (that of zip and gzip).

        Not crc32c: a chunk that ends in its own crc32c has the same crc32c as any other of its length, so
        that two chunks which changed places would pass.
        """
        value = 0
        with open(self._prefix + key, "rb") as file:
            while block := file.read(_BLOCK):
                value = zlib.crc32(block, value)
        return value

    def _refuse_leaving(self, path: str, key: str) -> None:
        if self.follow_links:
            return
        real = os.path.realpath(path)
        if real != str(self.root) and not real.startswith(self._prefix):
            cause = f"a link leads out of the store, to {real}"
            raise DamagedStore(self, *split_key(key), cause, "copy what it points to into the store")


def _of_macos(name: str) -> bool:
    """Whether a file is one that macOS adds to an archive."""
    parts = name.split("/")
    return parts[0] in _MACOS or parts[-1] in _MACOS or parts[-1].startswith("._")


class Zipped:
    """Files inside a zip archive, below an optional folder in it."""

    def __init__(self, path: str | Path, inside: str = "") -> None:
        self.root = Path(path).resolve()
        self.location = Path(path)
        self.inside = inside
        try:
            with zipfile.ZipFile(self.root) as archive:
                entries = archive.infolist()
            info = self.root.stat()
        except (OSError, ValueError, NotImplementedError, EOFError, zipfile.BadZipFile) as problem:
            raise CanvasError(f"{path} is no readable zip archive: {problem}") from problem
        if any("\\" in entry.filename for entry in entries) and not any("/" in e.filename for e in entries):
            raise CanvasError(
                f"{path} names its folders with backslashes, as some programs of Windows pack; unpack it and "
                "give the folder, or pack it with another program"
            )
        self._entries = {
            entry.filename.removeprefix(inside): entry
            for entry in entries
            if entry.filename.startswith(inside) and not entry.is_dir() and not _of_macos(entry.filename)
        }
        self._archive = (info.st_mtime_ns, info.st_size, info.st_ino, info.st_ctime_ns)

    def __str__(self) -> str:
        return str(self.location)

    def stamp(self, key: str) -> Stamp | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        identity = (*self._archive, entry.CRC, entry.header_offset)
        return Stamp(entry.file_size, self._archive[0], identity)

    def read(self, key: str, first: int = -1) -> bytes | None:
        """As in a folder; whole reads verify the archive's own checksum."""
        if key not in self._entries:
            return None
        try:
            with zipfile.ZipFile(self.root) as archive, archive.open(self._entries[key]) as file:
                return file.read(first)
        except Exception as problem:
            # One damaged entry raises BadZipFile, EOFError, zlib.error, NotImplementedError and more.
            raise DamagedStore(self, *split_key(key), f"cannot be unzipped ({problem})") from problem

    def listing(self, below: str = "") -> Iterator[str]:
        start = f"{below}/" if below else ""
        yield from (key for key in self._entries if key.startswith(start))

    def crc(self, key: str) -> int:
        return zlib.crc32(self.read(key) or b"")


Files = Folder | Zipped | Remote


def missing_path(path: Path) -> CanvasError:
    """The error for a path that is not there."""
    if path.is_symlink():
        target = os.readlink(path)
        if ANNEX_OBJECTS in target:
            return CanvasError(f"{path} is a link to {target}, which is not here; {FETCH_ANNEX}")
        return CanvasError(f"{path} is a link that leads nowhere or in a circle; give the file itself")
    if set("*?[") & set(path.name) and path.parent.is_dir():
        return CanvasError(
            f"{path} does not exist: patterns are not looked up; give the folder, {path.parent}"
        )
    return CanvasError(f"{path} does not exist")


def looks_remote(text: str) -> bool:
    """Whether a path is an address, such as `https://…`."""
    return _SCHEME.match(text) is not None


def is_store(folder: Path) -> bool:
    """Whether a folder is a Zarr group or array."""
    return any((folder / name).is_file() for name in METADATA)


def open_files(path: str | Path, *, follow_links: bool = False) -> Files:
    """Open a store given as folder or zip archive; CanvasError for anything else.

    `follow_links` reads files that are links to elsewhere, as git-annex and DataLad keep them.
    """
    if looks_remote(str(path)):
        raise CanvasError(
            "remote stores are read by the service alone (canvas-fm serve, --allow-remote); copy this one to "
            "the disk, or ask the service for its embeddings"
        )
    path = Path(path)
    try:
        if path.is_dir():
            return Folder(path, follow_links=follow_links)
        if not path.exists():
            raise missing_path(path)
        zipped = zipfile.is_zipfile(path)
    except OSError as problem:
        raise CanvasError(f"{path} cannot be opened: {problem.strerror}") from problem
    if not zipped and path.suffix.lower() in (".zip", ".ozx"):
        raise CanvasError(f"{path} is no zip archive, or was cut short; copy it again")
    if not zipped and path.name in METADATA:
        raise CanvasError(f"{path} is the metadata of a Zarr store; give its folder, {path.parent}")
    if not zipped:
        raise CanvasError(
            f"{path} is a file but no zip archive; give a Zarr folder, a zipped one, or TIFF planes"
        )
    archive = Zipped(path)
    if not any(archive.stamp(name) for name in METADATA):
        roots = [key.rpartition("/")[0] for key in archive.listing() if key.rpartition("/")[2] in METADATA]
        tops = {root for root in roots if not any(root.startswith(f"{other}/") for other in roots)}
        if len(tops) == 1:
            return Zipped(path, inside=f"{tops.pop()}/")
        if tops:
            raise CanvasError(
                f"{path} holds the Zarr stores {', '.join(sorted(tops)[:8])}; unpack it and give one"
            )
        if any(key.lower().endswith((".tif", ".tiff")) for key in archive.listing()):
            raise CanvasError(
                f"{path} holds TIFF files; unpack it, or pack them as .tar, which is read as it is"
            )
    return archive


def volume_name(path: str | Path) -> str:
    """Name of a volume: the file's stem; X for `X/raw.zarr` and for the planes in `X/image`."""
    path = Path(path).resolve()
    stem = re.sub(r"(\.ome)?(\.zarr)?(\.zip)?$|(\.ome)?\.tiff?$", "", path.name, count=1, flags=re.IGNORECASE)
    return path.parent.name if stem in ("raw", "image") and path.parent.name else stem
