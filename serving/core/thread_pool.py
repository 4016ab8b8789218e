"""Work that does not go through the batcher, in a few threads: bounded, with a deadline, given up at will."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from canvas_fm.progress import watched
from serving.protocol.errors import Refusal

T = TypeVar("T")


class GivenUp(Exception):
    """Nobody waits for this work any more; raised inside it at its next step."""


class Aside:
    """`threads` threads and at most `most` pieces of work, those that wait for a thread included."""

    def __init__(self, name: str, *, threads: int = 1, most: int = 32) -> None:
        self.most, self._held, self._lock = most, 0, threading.Lock()
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(self, work: Callable[[], T], *, deadline_s: float) -> T:
        """What `work` returns or raises.

        Refusal (429) where too much waits already, (504) past the deadline. Cancelled or late, work that
        waits is never begun, and work that shows its progress ends at its next step.
        """
        given_up = threading.Event()

        def check(label: str, done: int, total: int) -> None:
            if given_up.is_set():
                raise GivenUp

        def whole() -> T:
            check("", 0, 0)
            with watched(check):
                return work()

        with self._lock:
            if self._held >= self.most:
                raise Refusal(
                    429, f"{self._held} requests of this kind wait; come back in 2 s", retry_after_s=2
                )
            self._held += 1
        job = self._threads.submit(contextvars.copy_context().run, whole)
        job.add_done_callback(lambda _: self._release())
        try:
            async with asyncio.timeout(deadline_s):
                return await asyncio.wrap_future(job)
        except TimeoutError as problem:
            raise Refusal(504, f"no answer within {deadline_s:g} s; ask for less at once") from problem
        finally:
            given_up.set()

    def _release(self) -> None:
        with self._lock:
            self._held -= 1

    @property
    def held(self) -> int:
        """Pieces of work that wait or run."""
        return self._held

    def stop(self) -> None:
        """Begin nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)


async def unless_gone(gone: Awaitable[None], work: Awaitable[T]) -> T | None:
    """The result of `work`; where `gone` ends first the work is given up and the result is None."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone)
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()
