"""Exclusive locks on output folders, and a check that resumed work has the same inputs."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
from pathlib import Path
from typing import Any

from canvas_fm.errors import CanvasError

_log = logging.getLogger(__name__)


def try_lock(path: Path) -> int | None:
    """An exclusive lock on a file, held until it is closed or the process ends; None if another has it."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        if problem.errno in (errno.EAGAIN, errno.EACCES):
            os.close(lock)
            return None
        _log.info("%s cannot be locked (%s): nobody else may write beside it now", path, problem)
    return lock


def take_lock(folder: Path, out: Path) -> int:
    """The exclusive lock of the work on `out`; CanvasError where another process holds it."""
    lock = try_lock(folder / "lock")
    if lock is None:
        raise CanvasError(f"another process is writing {out}; wait for it, or stop it")
    return lock


def refuse_other_inputs(where: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise CanvasError that names each input that differs between the earlier work and this."""
    differ = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    if differ:
        named = ", ".join(f"{key} (was {_short(then.get(key))}, is {_short(now.get(key))})" for key in differ)
        raise CanvasError(
            f"{where} was made from other inputs: {named}; give another name, or delete it to start again"
        )


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
