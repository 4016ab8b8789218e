"""The models, volumes and indexes of one worker process, and the batcher that runs crops through them."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from canvas_fm.errors import CanvasError
from serving.core.batcher import Batcher
from serving.core.embed_crops import Key, Vectors, Window, key_of, make_batcher
from serving.core.projections import Projections
from serving.core.thread_pool import BoundedExecutor
from serving.core.vector_cache import VectorCache
from serving.observe.metrics import Metrics
from serving.protocol.errors import Refusal, refused
from serving.protocol.settings import Limits, Settings

if TYPE_CHECKING:  # torch is imported by the thread that loads the model, while the port already answers
    from canvas_fm.data.volume.volume import Volume
    from canvas_fm.heads.features.whiten import Whitening
    from canvas_fm.inference.search.index import Index
    from canvas_fm.models.checkpoint import Detector
    from serving.core.hosted_refiner import HostedRefiner
    from serving.core.model_host import Engine, HostedVolume

logger = logging.getLogger(__name__)


def _load(settings: Settings) -> Engine:
    from serving.core.model_host import Engine

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
        self._read_settings, self._load, self._on_failure = settings, load, on_failure
        self.settings: Settings | None = None
        self.limits = Limits()
        self._engine: Engine | None = None
        self._engines: dict[str, Engine] = {}
        self.detectors: dict[str, Detector] = {}
        self.indexes: dict[str, Index] = {}
        self.refiners: dict[str, HostedRefiner] = {}
        self.whitenings: dict[str, tuple[Index, Whitening]] = {}
        self.projections = Projections(self.limits.max_map_cells)
        self._batcher: Batcher | None = None
        self._vectors: Vectors | None = None
        # Searches beside each other; what goes through a model outside the batcher one after the other.
        self.search_pool: BoundedExecutor
        self.model_pool: BoundedExecutor
        self._failure: str | None = None
        self._loading: asyncio.Task[None] | None = None

    async def start(self, then: Callable[[Settings], None] = lambda settings: None) -> None:
        """Begin to load, and call `then` once all is loaded; returns at once."""
        self.settings = settings = self._read_settings()
        self.limits = settings.limits
        self._engines, self.detectors, self.indexes, self.refiners = {}, {}, {}, {}
        self.projections = Projections(self.limits.max_map_cells)
        self._engine = self._batcher = self._vectors = self._failure = None
        self.search_pool = BoundedExecutor("search", threads=2, max_pending=128)
        self.model_pool = BoundedExecutor("model pool", max_pending=32)
        self._loading = asyncio.create_task(self._open(settings, then), name="load the model")

    async def stop(self) -> None:
        """Finish what is being worked on, refuse the rest."""
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)
        self.search_pool.stop()
        self.model_pool.stop()
        self.projections.stop()
        if self._batcher is not None:
            await self._batcher.stop()

    async def _open(self, settings: Settings, then: Callable[[Settings], None]) -> None:
        try:
            engine = await asyncio.to_thread(self._load, settings)
            self._engines[engine.name] = engine
            await asyncio.to_thread(self._open_further, engine, settings)
            metrics = Metrics.of_this_process()
            most = self.limits.cache_mb * 2**20
            cache = VectorCache(most, metrics.cache) if most else None
            self._batcher = make_batcher(self._run, engine.max_batch, self.limits, metrics)
            self._vectors = Vectors(self._batcher, cache, self.limits.deadline_s)
            self._batcher.start()
            self._engine = engine
            then(settings)
        except CanvasError as problem:
            self._fail(str(problem))
        except Exception as problem:
            logger.exception("the model could not be loaded")
            self._fail(f"the model could not be loaded: {type(problem).__name__}: {problem}")

    def _open_further(self, engine: Engine, settings: Settings) -> None:
        from canvas_fm.inference.search.index import Index
        from canvas_fm.models.checkpoint import load
        from canvas_fm.models.folder import read_kind
        from serving.core.hosted_refiner import open_refiners

        for name, path in settings.models.items():
            if read_kind(Path(path))[0] == "detector":  # for refiners that judge by what it sees
                self.detectors[name] = load(path, device=engine.encoder.device, kind="detector")
            else:
                self._engines[name] = engine.further(name, path)
        self.indexes = {name: Index.open(path) for name, path in settings.indexes.items()}
        served, detectors = list(self._engines.values()), list(self.detectors.values())
        self.refiners = open_refiners(settings.refiners, engine, served, detectors)

    def _run(self, key: Hashable, crops: np.ndarray) -> np.ndarray:
        assert isinstance(key, Key)
        engine = next(each for each in self.every_engine() if each.name == key.model)
        return (
            engine.embed(key.pool, crops) if key.layer is None else engine.embed(key.pool, crops, key.layer)
        )

    def busy(self) -> bool:
        """Whether a request waits for a model or is worked on; asked by what lets requests go first."""
        assert self._batcher is not None
        return bool(self._batcher.held_rows or self.model_pool.pending or self.search_pool.pending)

    def _fail(self, sentence: str) -> None:
        self._engine, self._failure = None, sentence
        self._on_failure(sentence)

    @property
    def ready(self) -> bool:
        """True once a crop went through the model."""
        return self._engine is not None and self._batcher is not None and self._batcher.alive

    @property
    def alive(self) -> bool:
        """False where only a new process helps."""
        return self._failure is None and (self._batcher is None or self._batcher.alive)

    def require_ready(self) -> Engine:
        """The default model; Refusal (503) until it is loaded."""
        if self._engine is None or self._batcher is None:
            reason = "the service could not start" if self._failure else "the model is still being loaded"
            raise Refusal(503, f"{reason}; ask /readyz again in a moment", retry_after_s=1)
        return self._engine

    @property
    def engine(self) -> Engine:
        """The default model; Refusal (503) until it is loaded."""
        return self.require_ready()

    @property
    def engines(self) -> dict[str, Engine]:
        """All models by name, the default first."""
        self.require_ready()
        return dict(self._engines)

    def engine_for(self, model: str | None) -> Engine:
        """A model by name or sha256, the default for None; Refusal (404) for one that is not served."""
        default = self.engine
        if model is None:
            return default
        for engine in self._engines.values():
            if model in (engine.name, engine.encoder.sha256):
                return engine
        raise Refusal(404, f"no model is served as {model[:100]!r}; served: {', '.join(self._engines)}")

    def every_engine(self) -> Iterator[Engine]:
        """All models, those too of refiners that are not served by name."""
        behind = {hosted.engine.name: hosted.engine for hosted in self.refiners.values() if hosted.engine}
        return iter(list((behind | self._engines).values()))

    def serve_too(self, name: str, engine: Engine) -> Engine:
        """Serve a model under a name; the one that has the name already where that is so."""
        return self._engines.setdefault(name, engine)

    def registered(self, name: str) -> Volume:
        """A registered volume; Refusal (404) where there is none of that name."""
        return self.volume(self.engine, name).volume

    async def embed(
        self,
        crops: np.ndarray,
        window: Window | None,
        pool: str | None,
        layer: int | None = None,
        model: str | None = None,
    ) -> np.ndarray:
        """Embeddings (n, d) of crops as they came over the wire; their values are checked here."""
        return await self.embed_by(self.engine_for(model), crops, window, pool, layer)

    async def embed_by(
        self, engine: Engine, crops: np.ndarray, window: Window | None, pool: str | None, layer: int | None
    ) -> np.ndarray:
        """The same by a model that need not be among those that are served by name."""
        key = key_of(engine, pool, layer)
        try:
            engine.check_kind(crops.dtype, crops.shape, window)
            self.check_reply(engine, key, len(crops))
            if window is None:
                crops = await asyncio.to_thread(engine.check, crops, None)
        except CanvasError as problem:
            raise refused(problem) from problem
        # Raw integers stay as they came until their batch, which halves what a full queue holds.
        prepare = None if window is None else (lambda part: engine.check(part, window))
        crops = crops.reshape(len(crops), 1, *crops.shape[-3:])
        return await self.vectors.get(engine, key, crops, prepare, window)

    def volume(self, engine: Engine, name: str) -> HostedVolume:
        """A registered volume as a model reads it; Refusal for one that is not there or does not fit it."""
        hosted = engine.volumes.get(name)
        if hosted is None and name in self.engine.volumes:
            raise Refusal(
                422, f"the model {engine.name} does not fit the volume {name!r}: another voxel size"
            )
        if hosted is None:
            names = ", ".join(sorted(engine.volumes)) or "none"
            raise Refusal(404, f"no volume is registered as {name[:100]!r}; registered: {names}")
        return hosted

    def check_reply(self, engine: Engine, key: Key, rows: int) -> None:
        """Refuse (413) a reply of more bytes than may come in: a vector for each patch is 64 times one."""
        size, most = 4 * rows * math.prod(engine.one_shape(key.pool)), self.limits.max_body_mb
        if size > most * 2**20:
            megabytes = f"{size / 2**20:,.2f} MB; {most:g} MB are the most"
            raise Refusal(413, f"the {key.pool} of {rows} crops are {megabytes}: send fewer")

    @property
    def vectors(self) -> Vectors:
        """What makes vectors of checked crops, once the model is loaded."""
        assert self._vectors is not None
        return self._vectors

    def check_room(self, rows: int) -> None:
        """Refuse crops that the queue would not take in, before they are all there; a cache may hold them."""
        if self._vectors is not None:
            self._vectors.check_room(rows)
