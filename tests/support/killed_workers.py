"""A Dask cluster of four workers of which two are killed while they work."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def two_of_four_killed(done: Callable[[], int], *, each: int) -> Iterator[str]:
    """Address of a scheduler: a worker is killed each time that `each` more parts are done, two in all.

    A nanny starts another worker in its place. Asserts in the end that both were killed.
    """
    distributed = pytest.importorskip("distributed")
    killed: list[int] = []

    def kill() -> None:
        while len(killed) < 2:
            time.sleep(0.005)
            if done() >= each * (len(killed) + 1):
                running = [nanny.pid for nanny in cluster.workers.values() if nanny.pid is not None]
                os.kill(running[len(killed)], signal.SIGKILL)
                killed.append(running[len(killed)])

    with distributed.LocalCluster(n_workers=4, threads_per_worker=1, dashboard_address=None) as cluster:
        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        yield cluster.scheduler_address
        killer.join(5)
    assert len(set(killed)) == 2
