"""One queue for many requests: who shares a batch, who waits, and whose mistake stays whose."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Hashable

import numpy as np
import pytest

from serving.core.batching.batcher import Batcher
from serving.core.batching.errors import DeadlinePassed, QueueFull, Stopped, TooManyRows


class Doubler:
    """A model that doubles its rows, remembers its batches, and can be held up or made to fail."""

    def __init__(self) -> None:
        self.batches: list[tuple[Hashable, list[float]]] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()
        self.slow_s = 0.0

    def __call__(self, key: Hashable, rows: np.ndarray) -> np.ndarray:
        self.begun.set()
        self.gate.wait(10)
        time.sleep(self.slow_s)
        self.threads.add(threading.get_ident())
        self.batches.append((key, rows[:, 0].tolist()))
        if (rows == -1).any():
            raise ValueError("minus one")
        return rows * 2

    async def busy(self, batcher: Batcher) -> asyncio.Task[np.ndarray]:
        """Hold the worker up with a row of its own, so that what follows has to queue."""
        self.gate.clear()
        self.begun.clear()
        task = asyncio.create_task(batcher.submit("first", rows(0)))
        await asyncio.to_thread(self.begun.wait, 10)
        return task


def rows(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


def run(scenario, **options) -> Doubler:
    """Run `scenario(batcher, model)` with a started batcher."""
    model = Doubler()

    async def whole() -> None:
        batcher = Batcher(model, **{"wait_s": 0.0, **options})
        batcher.start()
        try:
            async with asyncio.timeout(20):
                await scenario(batcher, model)
        finally:
            model.gate.set()
            await batcher.stop()
        assert batcher.held_rows == 0

    asyncio.run(whole())
    return model


def test_every_request_gets_its_own_rows_in_its_own_order() -> None:
    async def scenario(batcher: Batcher, model: Doubler) -> None:
        asked = [rows(*range(100 * i, 100 * i + 1 + i % 7)) for i in range(100)]
        answers = await asyncio.gather(*(batcher.submit("k", part) for part in asked))
        for part, answer in zip(asked, answers, strict=True):
            np.testing.assert_array_equal(answer, part * 2)

    model = run(scenario, max_batch=16)
    assert len(model.threads) == 1
    assert max(len(batch) for _, batch in model.batches) <= 16
    assert len(model.batches) < 60  # 400 rows would fill 25; one a request would be 100


def test_batches_count_rows_and_split_a_large_request() -> None:
    async def scenario(batcher: Batcher, model: Doubler) -> None:
        np.testing.assert_array_equal(await batcher.submit("k", rows(*range(10))), 2 * rows(*range(10)))

    assert [len(batch) for _, batch in run(scenario, max_batch=4).batches] == [4, 4, 2]


def test_only_the_same_key_and_shape_share_a_batch() -> None:
    async def scenario(batcher: Batcher, model: Doubler) -> None:
        first = await model.busy(batcher)
        others = [
            batcher.submit("mean", rows(1)),
            batcher.submit("cls", rows(2)),
            batcher.submit("mean", np.zeros((1, 2), np.float32)),
            batcher.submit("mean", rows(3)),
        ]
        tasks = [asyncio.create_task(other) for other in others]
        await asyncio.sleep(0.01)
        model.gate.set()
        await asyncio.gather(first, *tasks)

    assert run(scenario).batches[1:] == [("mean", [1, 3]), ("cls", [2]), ("mean", [0])]


def test_a_small_request_does_not_wait_for_all_of_a_large_one() -> None:
    async def scenario(batcher: Batcher, model: Doubler) -> None:
        first = await model.busy(batcher)
        large = asyncio.create_task(batcher.submit("k", rows(*range(40))))
        await asyncio.sleep(0)
        small = asyncio.create_task(batcher.submit("k", rows(99)))
        await asyncio.sleep(0.01)
        model.gate.set()
        await asyncio.gather(first, large, small)

    served = [batch for _, batch in run(scenario, max_batch=4).batches]
    assert [99 in batch for batch in served].index(True) == 2  # after the first four of the large one


def test_what_waits_is_limited_in_seconds_too() -> None:
    """At some 40 rows a second there is room for what takes 0.4 s, whatever one of one row took before."""

    async def scenario(batcher: Batcher, model: Doubler) -> None:
        await batcher.submit("k", rows(1))  # a batch of one row says nothing of a full queue
        model.slow_s = 0.1
        await batcher.submit("k", rows(1, 2, 3, 4))
        taken = [asyncio.create_task(batcher.submit("k", rows(*[value] * 4))) for value in range(4)]
        await asyncio.sleep(0)
        taken.append(asyncio.create_task(batcher.submit("k", rows(5))))
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match=r"1[67] crops are waiting, 0\.\d+ s of work; 0.4 s are the most"):
            batcher.check_room(1)
        await asyncio.gather(*taken, return_exceptions=True)
        await batcher.submit("k", rows(1, 2, 3, 4))  # and there is room again

    run(scenario, max_batch=4, max_wait_s=0.4)


def test_a_request_that_fails_fails_alone() -> None:
    async def scenario(batcher: Batcher, model: Doubler) -> None:
        first = await model.busy(batcher)
        tasks = [asyncio.create_task(batcher.submit("k", rows(value))) for value in [*range(1, 13), -1]]
        await asyncio.sleep(0.01)
        model.gate.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        await first
        assert isinstance(answers[12], ValueError)
        for i, answer in enumerate(answers[:12]):
            np.testing.assert_array_equal(answer, rows(2 * (i + 1)))
        np.testing.assert_array_equal(await batcher.submit("k", rows(5)), rows(10))

    assert len(run(scenario).batches[1][1]) == 13


def test_what_prepares_a_request_fails_only_that_request() -> None:
    def broken(part: np.ndarray) -> np.ndarray:
        raise RuntimeError("cannot be prepared")

    async def scenario(batcher: Batcher, model: Doubler) -> None:
        first = await model.busy(batcher)
        bad = asyncio.create_task(batcher.submit("k", rows(1), prepare=broken))
        good = asyncio.create_task(batcher.submit("k", rows(1), prepare=lambda part: part + 1))
        await asyncio.sleep(0.01)
        model.gate.set()
        await first
        np.testing.assert_array_equal(await good, rows(4))
        with pytest.raises(RuntimeError, match="cannot be prepared"):
            await bad

    run(scenario)


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    async def scenario(batcher: Batcher, model: Doubler) -> None:
        first = await model.busy(batcher)
        waiting = asyncio.create_task(batcher.submit("k", rows(*range(7))))
        await asyncio.sleep(0)
        with pytest.raises(QueueFull) as refusal:
            await batcher.submit("k", rows(1))
        assert refusal.value.retry_after_s >= 1
        model.gate.set()
        await asyncio.gather(first, waiting)
        await batcher.submit("k", rows(1))

    run(scenario, max_rows=8)


def test_the_patient_wait_for_room() -> None:
    async def scenario(batcher: Batcher, model: Doubler) -> None:
        first = await model.busy(batcher)
        waiting = asyncio.create_task(batcher.submit("k", rows(*range(7))))
        patient = asyncio.create_task(batcher.submit("k", rows(8, 9), wait_for_room=True))
        await asyncio.sleep(0.01)
        assert batcher.held_rows == 8
        model.gate.set()
        await asyncio.gather(first, waiting)
        np.testing.assert_array_equal(await patient, rows(16, 18))

    run(scenario, max_rows=8)


def test_rows_already_computed_make_room() -> None:
    async def scenario(batcher: Batcher, model: Doubler) -> None:
        large = asyncio.create_task(batcher.submit("k", rows(*range(8))))
        while len(model.batches) < 2:
            await asyncio.sleep(0)
        small = asyncio.create_task(batcher.submit("k", rows(1), wait_for_room=True))
        await asyncio.gather(large, small)

    served = [batch for _, batch in run(scenario, max_rows=8, max_batch=1).batches]
    assert served.index([1], 2) < len(served) - 1  # before the last row of the large one


def test_one_request_that_no_queue_holds_is_told_so() -> None:
    async def scenario(batcher: Batcher, model: Doubler) -> None:
        with pytest.raises(TooManyRows, match="9 crops in one request; 8 are the most"):
            await batcher.submit("k", rows(*range(9)))

    run(scenario, max_rows=8)


def test_a_request_past_its_deadline_is_dropped() -> None:
    async def scenario(batcher: Batcher, model: Doubler) -> None:
        first = await model.busy(batcher)
        with pytest.raises(DeadlinePassed, match=r"0\.05 s"):
            await batcher.submit("k", rows(7), deadline_s=0.05)
        assert batcher.held_rows == 1
        model.gate.set()
        await first

    assert run(scenario).batches == [("first", [0])]


def test_work_whose_client_is_gone_is_not_done() -> None:
    async def scenario(batcher: Batcher, model: Doubler) -> None:
        first = await model.busy(batcher)
        gone = asyncio.create_task(batcher.submit("k", rows(*range(1, 30))))
        stays = asyncio.create_task(batcher.submit("k", rows(50)))
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.sleep(0.01)
        assert batcher.held_rows == 2
        model.gate.set()
        await asyncio.gather(first, stays)

    assert run(scenario).batches == [("first", [0]), ("k", [50])]


def test_an_idle_worker_waits_a_moment_for_company_and_not_longer() -> None:
    async def scenario(batcher: Batcher, model: Doubler) -> None:
        began = time.monotonic()
        alone = asyncio.create_task(batcher.submit("k", rows(1)))
        await asyncio.sleep(0.02)
        await asyncio.gather(alone, batcher.submit("k", rows(2)))
        assert time.monotonic() - began < 2
        full = time.monotonic()
        await asyncio.gather(*(batcher.submit("k", rows(i)) for i in range(4)))
        assert time.monotonic() - full < 0.2  # a full batch does not wait

    assert [len(batch) for _, batch in run(scenario, wait_s=0.3, max_batch=4).batches] == [2, 4]


def test_stopping_finishes_what_waits_and_refuses_what_comes() -> None:
    async def scenario(batcher: Batcher, model: Doubler) -> None:
        first = await model.busy(batcher)
        waiting = asyncio.create_task(batcher.submit("k", rows(1)))
        await asyncio.sleep(0.01)
        stopping = asyncio.create_task(batcher.stop())
        await asyncio.sleep(0.01)
        with pytest.raises(Stopped):
            await batcher.submit("k", rows(2))
        model.gate.set()
        await asyncio.gather(first, stopping)
        np.testing.assert_array_equal(await waiting, rows(2))

    run(scenario)


def test_stopping_does_not_wait_for_ever() -> None:
    async def scenario(batcher: Batcher, model: Doubler) -> None:
        first = await model.busy(batcher)
        waiting = asyncio.create_task(batcher.submit("k", rows(1)))
        await asyncio.sleep(0.01)
        await batcher.stop(grace_s=0.05)
        for task in (first, waiting):
            with pytest.raises(Stopped):
                await task

    run(scenario)


def test_a_model_that_loses_rows_is_an_error_not_a_wrong_answer() -> None:
    async def whole() -> None:
        batcher = Batcher(lambda key, given: given[1:])
        batcher.start()
        with pytest.raises(RuntimeError, match="2 rows went in, 1 results came out"):
            await batcher.submit("k", rows(1, 2))
        await batcher.stop()

    asyncio.run(whole())


def test_a_failing_observer_does_not_stop_the_queue() -> None:
    def observe(count: int, seconds: float) -> None:
        raise RuntimeError("no metrics")

    async def scenario(batcher: Batcher, model: Doubler) -> None:
        for value in (1, 2):
            np.testing.assert_array_equal(await batcher.submit("k", rows(value)), rows(2 * value))
        assert batcher.alive

    run(scenario, observe=observe)
