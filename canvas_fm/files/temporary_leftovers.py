"""Temporary files and folders that a killed process left beside what it was writing."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}\.tmp", re.DOTALL)
_OLD_S = 86_400.0  # nobody is that long without a write: files carry no lock, since HDF5 takes its own
_in_folder: dict[Path, dict[str, list[Path]]] = {}


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
    """Remove what killed processes left while they wrote `path`: last written a day ago, locked by nobody.

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
