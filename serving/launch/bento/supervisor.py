"""BentoML's supervisor: private control sockets, checks of its workers, grace period, late connections."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from canvas_fm.errors import CanvasError
from serving.launch.late_connections import LateConnections

SERVICE = "canvas-fm"
_IMPORTED_BY_WORKERS = "serving.launch.bento.bento_service:service"
_CHECK_EVERY_S = 0.5  # BentoML's 10 s would be waited before a killed worker is replaced
_LONGEST = 80  # the address of a socket in the folder holds 107 bytes


def private_folder() -> Path:
    """A new folder accessible to this user only: temporary, else in memory (read-only disk).

    Raises CanvasError where nothing can be written at all.
    """
    try:
        usual = tempfile.gettempdir()
    except FileNotFoundError:
        usual = "/tmp"
    for place in (usual, "/tmp", "/dev/shm"):
        if len(os.fsencode(place)) < _LONGEST:
            try:
                return Path(tempfile.mkdtemp(prefix="canvas-fm-", dir=place))
            except OSError:
                continue
    raise CanvasError("no temporary folder can be written to, nor /dev/shm; name one in TMPDIR")


def by_name(workers: int) -> Any:
    """The BentoML service as its supervisor needs it: a name, and what workers import.

    The whole of it would be imported here only to be imported again by the first worker, which waits for it.
    """
    import bentoml

    service = bentoml.service(name=SERVICE, workers=workers)(type("CanvasService", (), {}))
    service._import_str = _IMPORTED_BY_WORKERS
    return service


@contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Context manager: temporary files of this process and its children go to `folder`."""
    before = os.environ.get("TMPDIR"), tempfile.tempdir
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        if before[0] is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before[0]
        tempfile.tempdir = before[1]


@contextmanager
def private_control(folder: Path, stop_s: float, more: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """Supervisor's control sockets in `folder`; workers get `stop_s` to end; `more` may add some.

    BentoML opens two more TCP ports, over which anyone on the machine could run commands in the user's name.
    """
    from bentoml._internal.utils import circus

    usual = circus.Arbiter
    circus.Arbiter = _private(usual, lambda: folder, stop_s, more)  # type: ignore[misc]
    try:
        yield
    finally:
        circus.Arbiter = usual  # type: ignore[misc]


def keep_control_private(stop_s: float) -> None:
    """Keep the control socket in a new private folder for the lifetime of this process."""
    from bentoml._internal.utils import circus

    def make() -> Path:
        folder = private_folder()
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder

    circus.Arbiter = _private(circus.Arbiter, make, stop_s)  # type: ignore[misc]


def _private(
    usual: Any, place: Callable[[], Path], stop_s: float, more: Callable[[], int] = lambda: 0
) -> Any:
    class PrivateArbiter(usual):
        def __init__(self, watchers: list, endpoint: str, pubsub_endpoint: str, **options: object) -> None:
            folder = place()
            for watcher in watchers:
                watcher.graceful_timeout = stop_s
            options["check_delay"] = _CHECK_EVERY_S
            super().__init__(watchers, f"ipc://{folder}/control", f"ipc://{folder}/events", **options)
            self._late: LateConnections | None = None

        async def manage_watchers(self) -> None:
            if self._restarting or self._exclusive_running_command is not None:
                return  # it starts or stops processes just now; the next check is soon
            if added := more():
                for watcher in self.watchers:
                    watcher.numprocesses += added
            await super().manage_watchers()

        def stop(self) -> Any:
            if self._exclusive_running_command not in (None, "arbiter_stop"):
                self.loop.call_later(0.05, self.stop)  # Circus would refuse it, and the signal be lost
                return None
            self._late = LateConnections([*self.sockets.values()])
            return super().stop()

        def stop_controller_and_close_sockets(self) -> None:
            if self._late is not None:
                self._late.close()
            super().stop_controller_and_close_sockets()

    return PrivateArbiter
