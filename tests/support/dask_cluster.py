"""A Dask cluster whose workers are threads of the test's own process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest


@contextmanager
def cluster_of_threads(workers: int, threads: int = 1) -> Iterator[Any]:
    """A `LocalCluster` that never ends the process of the tests.

    A worker that breaks, as its cluster is closed for example, and has not closed within 30 s ends its
    process without a word, once its scheduler is gone. In processes of their own that is right; here it would
    be the end of all tests of this process, whichever runs by then.
    """
    distributed = pytest.importorskip("distributed")
    assert hasattr(distributed.worker, "_force_close")
    distributed.worker._force_close = _close
    with distributed.LocalCluster(
        n_workers=workers, threads_per_worker=threads, processes=False, dashboard_address=None
    ) as cluster:
        yield cluster


async def _close(worker: Any, reason: str) -> None:
    with suppress(Exception):
        await worker.close(nanny=False, executor_wait=False, reason=reason)
