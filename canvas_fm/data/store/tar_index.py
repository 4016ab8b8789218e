"""Files inside a tar archive, read where they lie: a path may go through one, `brains.tar/cFos_1/image`."""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from canvas_fm.errors import CanvasError, DamagedStore

TAR = ".tar"
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


class Member(NamedTuple):
    """Bytes of a file in an archive."""

    archive: Path
    offset: int
    size: int


class TarIndex(NamedTuple):
    """The regular files of an archive by name."""

    archive: Path
    files: dict[str, Member]

    def below(self, folder: str) -> dict[PurePosixPath, Member]:
        """Files of a folder and of those in it, by their names relative to it."""
        inner = PurePosixPath(folder)
        names = {PurePosixPath(name): member for name, member in self.files.items()}
        return {
            name.relative_to(inner): member for name, member in names.items() if name.is_relative_to(inner)
        }


def in_tar(path: str | Path) -> tuple[TarIndex, str] | None:
    """The archive that a path goes into and the name in it ("" for the archive itself); None for others.

    Raises CanvasError for an archive that is compressed, or holds links or paths that climb out of it.
    """
    path = Path(path)
    if ".t" not in str(path).lower():  # most paths: no file is looked for
        return None
    for whole in (path, *path.parents):
        if whole.name.lower().endswith(PACKED) and whole.is_file():
            raise CanvasError(f"{whole} is compressed: nothing in it can be read by itself; unpack it first")
        if whole.suffix.lower() == TAR and whole.is_file():
            status = whole.stat()
            name = path.relative_to(whole).as_posix()
            return _index(whole, status.st_size, status.st_mtime_ns), "" if name == "." else name
    return None


def member_of(path: str | Path) -> Member | None:
    """A file in an archive by its path through it; None for a path that goes through none."""
    located = in_tar(path)
    if located is None:
        return None
    index, name = located
    if name not in index.files:
        raise CanvasError(f"{index.archive} holds no file {name!r}")
    return index.files[name]


def on_disk(path: Path) -> Path:
    """The file that a path is read from: the archive, for one that goes through it."""
    located = in_tar(path)
    return path if located is None else located[0].archive


@contextmanager
def local_file(path: Path) -> Iterator[Path]:
    """A small file of an archive as one on the disk, as long as the context lasts; others as they are."""
    member = member_of(path)
    if member is None:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(read_member(member))
        yield copy


def read_member(member: Member) -> bytes:
    """The bytes of a file in an archive."""
    with member.archive.open("rb") as file:
        file.seek(member.offset)
        return file.read(member.size)


@lru_cache(maxsize=8)
def _index(archive: Path, size: int, mtime_ns: int) -> TarIndex:
    files: dict[str, Member] = {}
    try:
        with tarfile.open(archive, "r:") as tar:
            for info in tar:
                _refuse_unsafe(archive, info)
                if info.isreg():
                    name = PurePosixPath(info.name).as_posix()
                    if name in files:
                        raise CanvasError(f"{archive} holds {name} twice; write it again")
                    files[name] = Member(archive, info.offset_data, info.size)
                    if info.offset_data + info.size > size:
                        raise DamagedStore(archive, "files", name, "is cut off", "copy the archive again")
    except (tarfile.TarError, OSError) as problem:
        raise CanvasError(f"{archive} cannot be read as a tar archive: {problem}") from problem
    return TarIndex(archive, files)


def _refuse_unsafe(archive: Path, info: tarfile.TarInfo) -> None:
    """An archive of microscope files has no reason for any of this, so all of it is refused."""
    parts = PurePosixPath(info.name).parts
    if ".." in parts or info.name.startswith("/"):
        raise CanvasError(f"{archive} holds {info.name!r}, a path that leads out of it; it is not read")
    if info.issym() or info.islnk():
        raise CanvasError(f"{archive} holds {info.name!r}, a link to {info.linkname!r}; it is not read")
    if info.issparse() or not (info.isreg() or info.isdir()):
        raise CanvasError(f"{archive} holds {info.name!r}, which is neither a plain file nor a folder")
