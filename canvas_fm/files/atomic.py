"""Atomic writes of files and folders, what killed ones left, and a readable error for a full disk."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from canvas_fm.errors import StorageFull
from canvas_fm.files.system_errors import full_disk, is_full

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}\.tmp", re.DOTALL)
_OLD_S = 86_400.0  # nobody is that long without a write: files carry no lock, since HDF5 takes its own
_in_folder: dict[Path, dict[str, list[Path]]] = {}


@contextmanager
def disk_full_as_error(path: Path) -> Iterator[None]:
    """Context manager: turn ENOSPC while writing `path` into StorageFull, however deep a library wraps it."""
    try:
        yield
    except StorageFull:
        raise
    except Exception as problem:
        if is_full(problem):
            raise StorageFull(f"{full_disk(path)}; what was there before is untouched") from problem
        raise


def sync_path(path: Path) -> None:
    """fsync a file, or a folder so that a rename inside it survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Replace `path` atomically: `write(temporary)`, fsync, rename, fsync of the folder.

    Killed at any moment, `path` is either the old file or the new one. What an earlier kill left of such a
    write is removed. Raises StorageFull on a full disk.
    """
    path = Path(path)
    remove_abandoned(path)
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
        sync_path(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Context manager: a folder that takes the name `path` when the block ends, and is removed if it raises.

    Its files are flushed before, and a folder that was there is replaced, so that `path` is whole, or as it
    was. Until then the folder is hidden beside it, under the same last name. Raises StorageFull.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path)
    with disk_full_as_error(path), ExitStack() as stack:
        room = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        temporary, previous = room / path.name, room / "previous"
        try:
            stack.enter_context(locked_while_written(room))
            temporary.mkdir()
            yield temporary
            for entry in [temporary, *temporary.rglob("*")]:
                if entry.is_dir():
                    sync_path(entry)
                else:
                    with entry.open("rb") as file:
                        os.fsync(file.fileno())
            if path.exists():
                path.replace(previous)
            temporary.replace(path)
            try:
                sync_path(path.parent)
            except OSError:
                path.replace(temporary)
                if previous.exists():
                    previous.replace(path)
                raise
        finally:
            shutil.rmtree(room, ignore_errors=True)


@contextmanager
def removed_on_error(*paths: Path) -> Iterator[list[Path]]:
    """Context manager: new files and folders that are deleted if the block raises, so that it can run again.

    The list takes further ones. What was there before stays; of a folder that was there only new entries go.
    """
    before = {path: set(path.iterdir()) if path.is_dir() else None for path in paths if path.exists()}
    new = list(paths)
    try:
        yield new
    except BaseException:
        for path in new:
            kept = before.get(path, set())
            if kept is None:  # a file that was there
                continue
            entries = set(path.iterdir()) - kept if path in before and path.is_dir() else {path}
            for entry in entries:
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)
        raise


def write_text_atomic(path: Path, text: str) -> None:
    """As `write_atomic`, for a string in UTF-8."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


@contextmanager
def locked_while_written(temporary: Path) -> Iterator[None]:
    """Context manager: a lock on a temporary folder, which ends with the process that writes it."""
    handle = os.open(temporary, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: nothing is ever taken for abandoned there
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def remove_abandoned(path: Path) -> None:
    """Remove leftovers of killed writes of `path`: a day old and not locked.

    A folder is listed once a process, at the first write into it, so that many writes cost one listing.
    """
    folder = path.parent.absolute()
    if folder not in _in_folder:
        _in_folder[folder] = _temporaries(folder)
    for left in _in_folder[folder].pop(path.name, []):
        with suppress(OSError):
            if time.time() - _last_written(left) > _OLD_S and _unlocked(left):
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def _temporaries(folder: Path) -> dict[str, list[Path]]:
    by_name: dict[str, list[Path]] = {}
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _TEMPORARY.fullmatch(entry.name)
            if match and not entry.is_symlink():
                by_name.setdefault(match["name"], []).append(folder / entry.name)
    return by_name


def _last_written(path: Path) -> float:
    return max(entry.stat().st_mtime for entry in (path, *path.rglob("*")))


def _unlocked(path: Path) -> bool:
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True
