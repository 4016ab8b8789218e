"""Work beside the batcher: bounded, late or given up it ends, and what waits then is never begun."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import ExitStack

import numpy as np
import pytest

from canvas_fm.progress import bar
from serving.core.batching.thread_pool import BoundedExecutor
from serving.protocol import npy
from serving.protocol.errors import Refusal


def steps(ended: threading.Event, begun: threading.Event | None = None):
    """Work of many steps that says when it ends."""

    def work() -> str:
        try:
            with bar("work", 1000, show=False) as advance:
                for _ in range(1000):
                    if begun is not None:
                        begun.set()
                    time.sleep(0.01)
                    advance()
            return "all of it"
        finally:
            ended.set()

    return work


def test_what_is_late_is_refused_and_ends_at_its_next_step() -> None:
    ended = threading.Event()

    async def whole() -> None:
        pool = BoundedExecutor("test", 0.2)
        with pytest.raises(Refusal, match=r"no answer within 0\.2 s") as problem:
            await pool.run(steps(ended))
        assert problem.value.status == 504
        await asyncio.to_thread(ended.wait, 2)
        assert await pool.run(lambda: 7) == 7
        assert pool.pending == 0
        pool.stop()

    asyncio.run(whole())
    assert ended.is_set()


def test_what_is_given_up_ends_and_what_waits_behind_it_is_never_begun() -> None:
    ended, begun, other = threading.Event(), threading.Event(), threading.Event()

    async def whole() -> None:
        pool = BoundedExecutor("test", 60, max_pending=2)
        first = asyncio.create_task(pool.run(steps(ended, begun)))
        second = asyncio.create_task(pool.run(other.set))
        await asyncio.to_thread(begun.wait, 5)
        with pytest.raises(Refusal, match="2 requests of this kind wait") as problem:
            await pool.run(lambda: 1)
        assert (problem.value.status, problem.value.retry_after_s) == (429, 2)
        for task in (second, first):
            task.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        await asyncio.to_thread(ended.wait, 5)
        while pool.pending:
            await asyncio.sleep(0.01)
        pool.stop()

    asyncio.run(whole())
    assert ended.is_set()
    assert not other.is_set()


@pytest.mark.parametrize("route", ["search", "reconstruct"])
def test_searches_and_reconstructions_have_a_deadline(begin_service, monkeypatch, crops, route: str) -> None:
    from serving.core import search as finder
    from serving.core.models.model_host import Engine

    slow = threading.Event()
    monkeypatch.setattr(finder, "_search", lambda *_: slow.wait(5))
    monkeypatch.setattr(finder, "find_index", lambda core, name: ("cells", None))
    monkeypatch.setattr(Engine, "reconstruct", lambda *_: slow.wait(5))
    with ExitStack() as stack:
        client = begin_service(stack, deadline_s=0.2)
        if route == "search":
            reply = client.post("/v1/search", json={"ids": [1]})
        else:
            content = npy.dump(np.asarray(crops))
            reply = client.post(
                "/v1/reconstruct", content=content, headers={"Content-Type": "application/x-npy"}
            )
        slow.set()
    assert reply.status_code == 504
    assert reply.json()["error"]["code"] == "deadline"
    assert "no answer within 0.2 s" in reply.json()["error"]["message"]
