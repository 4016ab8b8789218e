"""Atomic file writes, and a readable error for a full disk."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from canvas_fm.errors import StorageFull

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def disk_full_as_error(path: Path) -> Iterator[None]:
    """Context manager: turn ENOSPC while writing `path` into StorageFull, however deep a library wraps it."""
    try:
        yield
    except Exception as problem:
        cause: BaseException | None = problem
        while cause is not None:
            if isinstance(cause, OSError) and cause.errno in _FULL:
                raise StorageFull(
                    f"no space left on the disk while writing {path}; what was there before is untouched: "
                    "free some space and run the same command again"
                ) from problem
            cause = cause.__cause__ or cause.__context__
        raise


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that a rename inside it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Replace `path` atomically: `write(temporary)`, fsync, rename, fsync of the folder.

    Killed at any moment, `path` is either the old file or the new one. Raises StorageFull on a full disk.
    """
    path = Path(path)
    with disk_full_as_error(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def write_text_atomic(path: Path, text: str) -> None:
    """As `write_atomic`, for a string in UTF-8."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
