"""A bounded thread pool with deadlines and cancellation, for work that does not go through the batcher."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from canvas_fm.progress import watched
from serving.protocol.errors import Refusal

T = TypeVar("T")


class WorkCancelled(Exception):
    """Raised inside cancelled work at its next step."""


class BoundedExecutor:
    """`threads` threads, and at most `max_pending` tasks including waiting ones, `deadline_s` for each."""

    def __init__(self, name: str, deadline_s: float, *, threads: int = 1, max_pending: int = 32) -> None:
        self.deadline_s = deadline_s
        self.max_pending, self._pending, self._lock = max_pending, 0, threading.Lock()
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(self, work: Callable[[], T]) -> T:
        """Result of `work`, or its exception.

        Refusal (429) where too much waits already, (504) past the deadline. Cancelled or late, work that
        waits is never begun, and work that shows its progress ends at its next step.
        """
        cancelled = threading.Event()

        def check(label: str, done: int, total: int) -> None:
            if cancelled.is_set():
                raise WorkCancelled

        def whole() -> T:
            check("", 0, 0)
            with watched(check):
                return work()

        with self._lock:
            if self._pending >= self.max_pending:
                raise Refusal(
                    429, f"{self._pending} requests of this kind wait; come back in 2 s", retry_after_s=2
                )
            self._pending += 1
        job = self._threads.submit(contextvars.copy_context().run, whole)
        job.add_done_callback(lambda _: self._release())
        try:
            async with asyncio.timeout(self.deadline_s):
                return await asyncio.wrap_future(job)
        except TimeoutError as problem:
            raise Refusal(504, f"no answer within {self.deadline_s:g} s; ask for less at once") from problem
        finally:
            cancelled.set()

    def _release(self) -> None:
        with self._lock:
            self._pending -= 1

    @property
    def pending(self) -> int:
        """Number of waiting and running tasks."""
        return self._pending

    def stop(self) -> None:
        """Start nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)
