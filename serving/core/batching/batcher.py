"""Micro-batching: rows of several requests share batches, from one queue in one thread.

`bentoml.api(batchable=True)` is not used: there one bad request fails those beside it, and it counts requests
where rows matter.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np

from serving.core.batching.errors import DeadlinePassed, QueueFull, Stopped, TooManyRows

logger = logging.getLogger(__name__)

Run = Callable[[Hashable, np.ndarray], np.ndarray]
"""(key, rows (n, …)) → results (n, …); called in the one worker thread, with at most `max_batch` rows."""
Around = Callable[[list[object], int], AbstractContextManager[None]]
"""(traces of a batch's requests, rows) → what is entered while the batch is computed."""
Prepare = Callable[[np.ndarray], np.ndarray]
"""Turns a request's rows as they came into rows as the model takes them, batch by batch."""


@dataclass(eq=False)
class _Job:
    key: Hashable
    rows: np.ndarray
    prepare: Prepare | None
    answer: asyncio.Future[np.ndarray]
    trace: object
    held: int  # rows that count against the queue: not computed yet, and still wanted
    begun: int = 0  # rows given to the worker so far
    pieces: list[np.ndarray] = field(default_factory=list)

    @property
    def left(self) -> int:
        return len(self.rows) - self.begun

    @property
    def companions(self) -> tuple[Hashable, tuple[int, ...]]:
        """Key that all rows of a batch have in common."""
        return self.key, self.rows.shape[1:]


@dataclass
class _Part:
    """Consecutive rows of one job inside a batch."""

    job: _Job
    rows: np.ndarray

    def ready(self) -> np.ndarray:
        return self.job.prepare(self.rows) if self.job.prepare else self.rows


class Batcher:
    """Batches of at most `max_batch` rows, shared by requests of the same key and row shape.

    The oldest request goes first; one that is larger than a batch goes to the back of the queue after each
    batch, so that a small one never waits for the whole of it. An idle worker waits `wait_s` for company, a
    busy one not at all. Give `run` only what was checked: where it raises, the requests of that batch are run
    one by one, and only those that fail alone get the error. `trace` is called at each request, and `around`
    with the traces of those in a batch.
    """

    def __init__(
        self,
        run: Run,
        *,
        max_batch: int = 64,
        max_rows: int = 8192,
        max_wait_s: float = math.inf,
        wait_s: float = 0.003,
        observe: Callable[[int, float], None] | None = None,
        held: Callable[[int], None] = lambda rows: None,
        trace: Callable[[], object] = lambda: None,
        around: Around = lambda traces, rows: nullcontext(),
    ) -> None:
        self._run, self._observe, self._tell_held = run, observe, held
        self._current_trace, self._around = trace, around
        self.max_batch, self.max_rows, self.wait_s = max_batch, max_rows, wait_s
        self.max_wait_s = max_wait_s
        self._queue: deque[_Job] = deque()
        self._jobs: set[_Job] = set()  # those in the queue and those in the worker's hands
        self._held = 0
        self._rate = 0.0  # rows a second of batches that are not small, smoothed
        self._work, self._freed = asyncio.Event(), asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._loop_task: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def held_rows(self) -> int:
        """Number of rows accepted and not yet computed."""
        return self._held

    @property
    def alive(self) -> bool:
        """False once the queue's loop has ended."""
        return self._loop_task is not None and not self._loop_task.done()

    def start(self) -> None:
        """Start serving in the running event loop."""
        self._loop_task = asyncio.create_task(self._serve(), name="batcher")

    async def stop(self, grace_s: float = 5.0) -> None:
        """Accept nothing more, finish the queue within `grace_s`, refuse the rest with Stopped."""
        self._closing = True
        end = time.monotonic() + grace_s
        while self._jobs and self.alive and time.monotonic() < end:
            await asyncio.sleep(0.01)
        for job in self._jobs:
            _settle(job, Stopped("the service is stopping"))
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def submit(
        self,
        key: Hashable,
        rows: np.ndarray,
        *,
        prepare: Prepare | None = None,
        deadline_s: float = 120.0,
        wait_for_room: bool = False,
    ) -> np.ndarray:
        """Results of `rows` (n, …), in order; cancelling removes them from the queue.

        `wait_for_room` waits instead of raising QueueFull. Raises TooManyRows, QueueFull, DeadlinePassed,
        Stopped, or what `run` raised for these rows alone.
        """
        count = len(rows)
        assert count, "a request without rows is refused before it comes here"
        if not wait_for_room:
            self.check_room(count)
        try:
            async with asyncio.timeout(deadline_s):
                while self._held + count > self.max_rows and not self._closing:
                    await self._freed.wait()
                return await self._enqueue(key, rows, prepare)
        except TimeoutError as problem:
            raise DeadlinePassed(f"no answer within {deadline_s:g} s") from problem

    def check_room(self, count: int) -> None:
        """Raise TooManyRows or QueueFull if `count` rows would not be accepted now.

        What waits is counted in rows, and in the seconds that it takes at the rate of the last batches.
        """
        if count > self.max_rows:
            raise TooManyRows(f"{count} crops in one request; {self.max_rows} are the most")
        if self._closing:
            return
        over = self._held + count - self.max_rows
        drain_s = over / self._rate if self._rate else 0.0
        if over > 0:
            message = f"{self._held} crops are waiting, {self.max_rows} are the most"
            raise QueueFull(message, min(60, max(1, math.ceil(drain_s))))
        wait_s = self._held / self._rate if self._rate else 0.0
        if wait_s > self.max_wait_s:
            most = f"{self.max_wait_s:g} s are the most"
            message = f"{self._held} crops are waiting, {wait_s:.3g} s of work; {most}"
            raise QueueFull(message, min(60, max(1, math.ceil(wait_s - self.max_wait_s))))

    async def _enqueue(self, key: Hashable, rows: np.ndarray, prepare: Prepare | None) -> np.ndarray:
        if self._closing or not self.alive:
            raise Stopped("the service is stopping")
        future: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        job = _Job(key, rows, prepare, future, self._current_trace(), held=len(rows))
        self._held += job.held
        self._tell_held(self._held)
        self._jobs.add(job)
        self._queue.append(job)
        self._work.set()
        try:
            return await job.answer
        finally:
            job.answer.cancel()  # where it was given up, the next batch passes it over
            self._jobs.discard(job)
            self._release(job, job.held)

    def _release(self, job: _Job, rows: int) -> None:
        rows = min(rows, job.held)
        job.held -= rows
        self._held -= rows
        self._tell_held(self._held)
        self._freed.set()
        self._freed = asyncio.Event()

    async def _serve(self) -> None:
        while True:
            if not self._queue:
                self._work.clear()
                await self._work.wait()
                await self._company()
            batch = self._next_batch()
            try:
                if batch:
                    await self._compute(batch)
            except Exception as problem:  # ours, not the model's: the queue goes on all the same
                logger.exception("the batcher failed")
                for part in batch:
                    _settle(part.job, problem)

    async def _company(self) -> None:
        """Wait up to `wait_s` for other requests to fill the batch."""
        end = time.monotonic() + self.wait_s
        while (left := end - time.monotonic()) > 0 and sum(job.left for job in self._queue) < self.max_batch:
            self._work.clear()
            try:
                async with asyncio.timeout(left):  # wait_for could swallow the end of this task
                    await self._work.wait()
            except TimeoutError:
                return

    def _next_batch(self) -> list[_Part]:
        """Up to `max_batch` rows of the oldest request and compatible ones."""
        parts: list[_Part] = []
        room, later, unfinished = self.max_batch, deque[_Job](), list[_Job]()
        while self._queue:
            job = self._queue.popleft()
            if job.answer.done():
                continue
            if not room or (parts and job.companions != parts[0].job.companions):
                later.append(job)
                continue
            rows = job.rows[job.begun : job.begun + room]
            job.begun += len(rows)
            room -= len(rows)
            parts.append(_Part(job, rows))
            if job.left:
                unfinished.append(job)
        self._queue = later
        self._queue.extend(unfinished)
        return parts

    async def _compute(self, batch: list[_Part]) -> None:
        began = time.monotonic()
        loop = asyncio.get_running_loop()
        with self._around([part.job.trace for part in batch], sum(len(part.rows) for part in batch)):
            outcomes = await loop.run_in_executor(self._thread, self._run_parts, batch)
        for part, outcome in zip(batch, outcomes, strict=True):
            self._release(part.job, len(part.rows))
            _settle(part.job, outcome)
        rows, seconds = sum(len(part.rows) for part in batch), time.monotonic() - began
        if 2 * rows >= self.max_batch:  # one of few rows takes as long and says little of a full queue
            rate = rows / max(seconds, 1e-6)
            self._rate = rate if not self._rate else 0.8 * self._rate + 0.2 * rate
        if self._observe:
            self._observe(rows, seconds)

    def _run_parts(self, batch: list[_Part]) -> list[np.ndarray | Exception]:
        """One outcome for each part; runs in the worker thread."""
        try:
            return self._run_together(batch)
        except Exception as problem:
            logger.exception(
                "a batch of %d requests failed%s", len(batch), "; each alone now" * (len(batch) > 1)
            )
            if len(batch) == 1:
                return [problem]
        return [outcome for part in batch for outcome in self._run_parts([part])]

    def _run_together(self, batch: list[_Part]) -> list[np.ndarray | Exception]:
        ready = [part.ready() for part in batch]
        rows = ready[0] if len(ready) == 1 else np.concatenate(ready)
        results = self._run(batch[0].job.key, rows)
        if len(results) != len(rows):
            raise RuntimeError(f"{len(rows)} rows went in, {len(results)} results came out")
        ends = np.cumsum([len(part.rows) for part in batch])[:-1]
        return list(np.split(results, ends))


def _settle(job: _Job, outcome: np.ndarray | Exception) -> None:
    if job.answer.done():
        return
    if isinstance(outcome, Exception):
        job.answer.set_exception(outcome)
        return
    job.pieces.append(outcome)
    if sum(map(len, job.pieces)) == len(job.rows):
        job.answer.set_result(job.pieces[0] if len(job.pieces) == 1 else np.concatenate(job.pieces))
