"""Which of a service's processes answer: as many as there are locks; others are spares, loaded and waiting.

A lock is released by the system when its process ends, however that happens, and the sockets are the
supervisor's: what connects meanwhile waits for the spare.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

from canvas_fm.files.locks import try_lock

_EVERY_S = 0.1
LOADED = "loaded"  # a file in the folder, once a process has loaded its models


class Turn:
    """The turn of this process to answer: one of `count` locks in a folder."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.count, self.has_come = 1, False
        self._lock: int | None = None

    def set_up(self, folder: str | None, count: int) -> None:
        """Wait by the locks in `folder`; without one it is always this process's turn."""
        self.folder, self.count, self.has_come = None if folder is None else Path(folder), count, False

    @property
    def is_awaited(self) -> bool:
        """Whether others answer and this process is a spare."""
        return self.folder is not None and not self.has_come

    def take(self) -> bool:
        """Whether it is this process's turn from now on until it ends."""
        if self.is_awaited:
            assert self.folder is not None
            locks = (try_lock(self.folder / f"turn-{at}") for at in range(self.count))
            self._lock = next((lock for lock in locks if lock is not None), None)
            self.has_come = self._lock is not None
        return not self.is_awaited

    def end(self) -> None:
        """Let another process have it, as the end of this one would."""
        if self._lock is not None:
            os.close(self._lock)
        self._lock, self.has_come = None, False

    async def wait(self) -> None:
        """Block until this process may answer; a signal to end ends it before."""
        if self.take():
            return
        usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in usual:
            signal.signal(number, lambda *_: os._exit(0))
        while not self.take():
            await asyncio.sleep(_EVERY_S)
        for number, handler in usual.items():
            signal.signal(number, handler)

    def loaded(self) -> None:
        """Tell the supervisor that models are loaded: spares may be started."""
        if self.folder is not None:
            (self.folder / LOADED).touch()


def spares_when_loaded(folder: Path, count: int) -> Callable[[], int]:
    """Number of further processes to start, called repeatedly: `count` once, after the first has loaded."""
    left = count

    def more() -> int:
        nonlocal left
        if not left or not (folder / LOADED).exists():
            return 0
        now, left = left, 0
        return now

    return more
