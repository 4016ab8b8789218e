"""Engine and batcher together: what bytes under `/v1` and BentoML's typed endpoint both call."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from canvas_fm.errors import CanvasError, DamagedStore
from serving.batcher import Batcher, DeadlinePassed, QueueFull, Stopped, TooManyRows
from serving.errors import Refusal, refused
from serving.meters import Meters
from serving.schemas import Limits, Settings

if TYPE_CHECKING:  # torch is imported by the thread that loads the model, while the port already answers
    from serving.engine import Engine, HostedVolume

logger = logging.getLogger(__name__)

T = TypeVar("T")
Window = tuple[float, float]
Batch = tuple[np.ndarray, np.ndarray]


def _load(settings: Settings) -> Engine:
    from serving.engine import Engine

    return Engine.load(settings)


class Core:
    """Loads the model in the background, then answers; every refusal is a Refusal.

    `on_failure` is told the sentence when the model or a volume cannot be served.
    """

    def __init__(
        self,
        settings: Callable[[], Settings],
        *,
        load: Callable[[Settings], Engine] = _load,
        on_failure: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self._settings, self._load, self._on_failure = settings, load, on_failure
        self.limits = Limits()
        self._engine: Engine | None = None
        self._batcher: Batcher | None = None
        self._failure: str | None = None
        self._loading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to load; returns at once."""
        settings = self._settings()
        self.limits = settings.limits
        self._engine = self._batcher = self._failure = None
        self._loading = asyncio.create_task(self._open(settings), name="load the model")

    async def stop(self) -> None:
        """Finish what is being worked on, refuse the rest."""
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)
        if self._batcher is not None:
            await self._batcher.stop()

    async def _open(self, settings: Settings) -> None:
        try:
            engine = await asyncio.to_thread(self._load, settings)
            self._batcher = Batcher(
                lambda pool, crops: engine.embed(str(pool), crops),
                max_batch=engine.max_batch,
                max_rows=self.limits.max_queue_crops,
                wait_s=self.limits.wait_ms / 1000,
                observe=Meters.of_this_process().batch,
            )
            self._batcher.start()
            self._engine = engine
        except CanvasError as problem:
            self._fail(str(problem))
        except Exception as problem:
            logger.exception("the model could not be loaded")
            self._fail(f"the model could not be loaded: {type(problem).__name__}: {problem}")

    def _fail(self, sentence: str) -> None:
        self._failure = sentence
        self._on_failure(sentence)

    @property
    def ready(self) -> bool:
        """True once a crop went through the model."""
        return self._engine is not None and self._batcher is not None and self._batcher.alive

    @property
    def alive(self) -> bool:
        """False where only a new process helps."""
        return self._failure is None and (self._batcher is None or self._batcher.alive)

    @property
    def engine(self) -> Engine:
        """Raises Refusal (503) until the model is loaded."""
        if self._engine is None or self._batcher is None:
            said = "the service could not start" if self._failure else "the model is still being loaded"
            raise Refusal(503, f"{said}; ask /readyz again in a moment", retry_after_s=1)
        return self._engine

    async def embed(self, crops: np.ndarray, window: Window | None, pool: str | None) -> np.ndarray:
        """Embeddings (n, d) of crops as they came over the wire; their values are checked here."""
        engine = self.engine
        try:
            engine.check_kind(crops.dtype, crops.shape, window)
            if window is None:
                crops = await asyncio.to_thread(engine.check, crops, None)
        except CanvasError as problem:
            raise refused(problem) from problem
        # Raw integers stay as they came until their batch, which halves what a full queue holds.
        prepare = None if window is None else (lambda part: engine.check(part, window))
        crops = crops.reshape(len(crops), 1, *crops.shape[-3:])
        return await self._submit(pool or engine.pool, crops, prepare)

    async def embed_points(self, volume: str, points_zyx: list[list[float]], pool: str | None) -> np.ndarray:
        """Embeddings (n, d) of the crops around points of a registered volume, rows in the order given."""
        engine = self.engine
        hosted = engine.volumes.get(volume)
        if hosted is None:
            names = ", ".join(sorted(engine.volumes)) or "none"
            raise Refusal(404, f"no volume is registered as {volume[:100]!r}; registered: {names}")
        if len(points_zyx) > self.limits.max_points:
            raise Refusal(
                413,
                f"{len(points_zyx)} points in one request; {self.limits.max_points} are the most, send fewer",
            )
        try:
            points = hosted.check(points_zyx)
        except CanvasError as problem:
            raise refused(problem) from problem
        try:
            async with asyncio.timeout(self.limits.deadline_s):
                return await self._points(engine, hosted, points, pool or engine.pool)
        except TimeoutError as problem:
            raise Refusal(
                504, f"no answer within {self.limits.deadline_s:g} s; send fewer points"
            ) from problem

    async def _points(
        self, engine: Engine, hosted: HostedVolume, points: np.ndarray, pool: str
    ) -> np.ndarray:
        """While one batch is computed the next is read."""
        out = np.empty((len(points), engine.encoder.dim), np.float32)
        batches = hosted.batches(points, engine.max_batch)
        running: asyncio.Task[None] | None = None

        async def one(rows: np.ndarray, crops: np.ndarray, patient: bool) -> None:
            out[rows] = await self._submit(pool, crops, None, patient)

        try:
            while (item := await asyncio.to_thread(_next_batch, hosted.name, batches)) is not None:
                rows, crops = item
                patient = running is not None
                if running is not None:
                    await running
                running = asyncio.create_task(one(rows, crops, patient))
            if running is not None:
                await running
        finally:
            if running is not None:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
        return out

    async def _submit(
        self,
        pool: str,
        crops: np.ndarray,
        prepare: Callable[[np.ndarray], np.ndarray] | None,
        patient: bool = False,
    ) -> np.ndarray:
        assert self._batcher is not None
        deadline_s = self.limits.deadline_s
        try:
            return await self._batcher.submit(
                pool, crops, prepare=prepare, deadline_s=deadline_s, patient=patient
            )
        except TooManyRows as problem:
            raise Refusal(413, f"{problem}; send it in smaller pieces") from problem
        except QueueFull as problem:
            raise Refusal(429, str(problem), retry_after_s=problem.retry_after_s) from problem
        except DeadlinePassed as problem:
            raise Refusal(504, f"{problem}; send fewer crops in one request") from problem
        except Stopped as problem:
            raise Refusal(503, str(problem), retry_after_s=5) from problem


def _next_batch(name: str, batches: Iterator[Batch]) -> Batch | None:
    """The next rows and crops; a volume that cannot be read is the server's fault, told without its path."""
    try:
        return next(batches, None)
    except CanvasError as problem:
        logger.exception("the volume %r cannot be read", name)
        where = "; the server's log says why"
        if isinstance(problem, DamagedStore):
            where = f": array {problem.array!r}, chunk {problem.chunk!r} is damaged"
        raise Refusal(500, f"the volume {name!r} cannot be read{where}") from problem


async def unless_gone(gone: Awaitable[None], work: Awaitable[T]) -> T | None:
    """The result of `work`; where `gone` ends first the work is given up and the result is None."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone)
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()
