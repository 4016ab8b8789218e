"""Embeddings of validated crops from cache or batcher, with errors as HTTP statuses."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from canvas_fm.errors import CanvasError
from serving.core.batching.batcher import Batcher, Prepare
from serving.core.batching.errors import DeadlinePassed, QueueFull, Stopped, TooManyRows
from serving.core.embed.vector_cache import VectorCache
from serving.observe.metrics import Metrics
from serving.observe.tracing import Traces
from serving.protocol.errors import HINTS, Refusal
from serving.protocol.settings import Limits

if TYPE_CHECKING:  # torch is imported by the thread that loads the model, while the port already answers
    from serving.core.models.model_host import Engine

Window = tuple[float, float]


class Key(NamedTuple):
    """Batch key: model and vector options that all crops of a batch share."""

    model: str
    pool: str
    layer: int | None


def key_of(engine: Engine, pool: str | None, layer: int | None) -> Key:
    """Batch key of a request; CanvasError for an unknown pooling or layer."""
    return Key(engine.name, *engine.check_layer(pool, layer))


def check_reply(engine: Engine, key: Key, rows: int, limits: Limits) -> None:
    """Refuse (413) a response larger than the request limit: a vector for each patch is 64 times one."""
    size, most = 4 * rows * math.prod(engine.one_shape(key.pool, key.layer)), limits.max_body_mb
    if size > most * 2**20:
        megabytes = f"{size / 2**20:,.2f} MB; {most:g} MB are the most"
        raise Refusal(413, f"the {key.pool} of {rows} crops are {megabytes}: send fewer")


def make_batcher(
    run: Callable[[Hashable, np.ndarray], np.ndarray], max_batch: int, limits: Limits, metrics: Metrics
) -> Batcher:
    """A batcher with the service's limits, metrics and traces."""

    def count(crops: int, seconds: float) -> None:
        metrics.crops.inc(crops)
        metrics.batch_crops.observe(crops)
        metrics.compute_seconds.inc(seconds)

    return Batcher(
        run,
        max_batch=max_batch,
        max_rows=limits.max_queue_crops,
        max_wait_s=limits.max_wait_s,
        wait_s=limits.wait_ms / 1000,
        observe=count,
        held=metrics.queued_crops.set,
        trace=Traces.current,
        around=Traces.of_this_process().batch,
    )


class Vectors:
    """Embeddings by a batcher with an optional cache."""

    def __init__(self, batcher: Batcher, cache: VectorCache | None, deadline_s: float) -> None:
        self._batcher, self._cache, self._deadline_s = batcher, cache, deadline_s

    async def get(
        self,
        engine: Engine,
        key: Key,
        crops: np.ndarray,
        prepare: Prepare | None = None,
        window: Window | None = None,
        *,
        wait_for_room: bool = False,
    ) -> np.ndarray:
        """Embeddings of validated crops (n, 1, z, y, x); cache misses go through the batcher.

        `prepare` makes of them what the model takes; with the `window` that it applies it decides the result.
        """
        if self._cache is None:
            return await self._submit(key, crops, prepare, wait_for_room)
        about = (engine.sha256, key.pool, key.layer, window)
        names = await asyncio.to_thread(self._cache.names, about, crops)
        vectors = self._cache.find(names)
        missing = [row for row, vector in enumerate(vectors) if vector is None]
        if missing:
            fresh = await self._submit(key, crops[missing], prepare, wait_for_room)
            self._cache.keep([names[row] for row in missing], fresh)
            if len(missing) == len(crops):
                return fresh
            for row, vector in zip(missing, fresh, strict=True):
                vectors[row] = vector
        return np.stack([vector for vector in vectors if vector is not None])

    def check_room(self, rows: int) -> None:
        """Refuse crops that the queue would not accept, before they are all received; hits need no room."""
        if self._cache is None:
            with _queue_refusals():
                self._batcher.check_room(rows)

    async def _submit(
        self, key: Key, crops: np.ndarray, prepare: Prepare | None, wait_for_room: bool
    ) -> np.ndarray:
        with _queue_refusals():
            return await self._batcher.submit(
                key, crops, prepare=prepare, deadline_s=self._deadline_s, wait_for_room=wait_for_room
            )


@contextmanager
def _queue_refusals() -> Iterator[None]:
    try:
        yield
    except TooManyRows as problem:
        raise Refusal(413, f"{problem}; send it in smaller pieces") from problem
    except QueueFull as problem:
        raise Refusal(429, str(problem), retry_after_s=problem.retry_after_s) from problem
    except DeadlinePassed as problem:
        raise Refusal(504, f"{problem}; send fewer crops in one request") from problem
    except Stopped as problem:
        raise Refusal(503, str(problem), retry_after_s=5) from problem
    except CanvasError as problem:  # of the model, whose crops were checked; the batcher has logged it
        raise Refusal(500, HINTS[500]) from problem
