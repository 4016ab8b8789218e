"""Models, volumes and indexes of one worker process, and its batcher."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

import numpy as np

from canvas_fm.errors import CanvasError
from serving.core.batching.batcher import Batcher
from serving.core.batching.thread_pool import BoundedExecutor
from serving.core.embed.crops import Key, Vectors, Window, check_reply, key_of, make_batcher
from serving.core.embed.projections import Projections
from serving.core.embed.vector_cache import VectorCache
from serving.core.volumes.tiles import Tiles
from serving.observe.metrics import Metrics
from serving.protocol.errors import Refusal
from serving.protocol.json_process.parser import JsonParser
from serving.protocol.settings import NO_SETTINGS, Limits, ServiceSettings

if TYPE_CHECKING:  # torch is imported by the thread that loads the model, while the port already answers
    import torch

    from canvas_fm.data.volume.volume import Volume
    from canvas_fm.heads.features.whiten import Whitening
    from canvas_fm.inference.search.index.index import Index
    from canvas_fm.models.load_model import Detector
    from serving.core.models.hosted_refiner import HostedRefiner
    from serving.core.models.model_host import Engine
    from serving.core.models.opened_models import OpenedModels
    from serving.core.volumes.registered_volume import HostedVolume, RegisteredVolume

logger = logging.getLogger(__name__)


def _load(settings: ServiceSettings) -> Engine:
    from serving.core.models.model_host import Engine

    return Engine.load(settings)


class Core:
    """Loads models in the background, then serves; errors are Refusals, or CanvasErrors of the library.

    `on_failure` is told the sentence when the model or a volume cannot be served.
    """

    def __init__(
        self,
        settings: Callable[[], ServiceSettings],
        *,
        load: Callable[[ServiceSettings], Engine] = _load,
        on_failure: Callable[[str], None] = lambda sentence: None,
        after_load: Callable[[], None] = lambda: None,
    ) -> None:
        self._read_settings, self._load = settings, load
        self._on_failure, self._after_load = on_failure, after_load
        self.settings = NO_SETTINGS
        self._engine: Engine | None = None
        self._engines: dict[str, Engine] = {}
        self.detectors: dict[str, Detector] = {}
        self.volumes: dict[str, Volume] = {}
        self._opened: OpenedModels
        self.device: torch.device
        self.indexes: dict[str, Index] = {}
        self.refiners: dict[str, HostedRefiner] = {}
        self.whitenings: dict[str, tuple[Index, Whitening]] = {}
        self.projections: Projections
        self._batcher: Batcher | None = None
        self._vectors: Vectors | None = None
        # Searches beside each other; what goes through a model outside the batcher one after the other.
        self.search_pool: BoundedExecutor
        self.model_pool: BoundedExecutor
        self.tile_pool: BoundedExecutor
        self.json_pool: BoundedExecutor
        self.json_parser: JsonParser
        self.tiles: Tiles
        self._loaded = False
        self._failure: str | None = None
        self._loading: asyncio.Task[None] | None = None

    async def start(self, then: Callable[[ServiceSettings], None] = lambda settings: None) -> None:
        """Start loading in the background; call `then` when done."""
        self.settings = settings = self._read_settings()
        self._engines, self.detectors, self.volumes, self.indexes, self.refiners = {}, {}, {}, {}, {}
        self.projections = Projections(self.limits.max_map_cells)
        self._engine = self._batcher = self._vectors = self._failure = None
        self._loaded = False
        deadline_s = self.limits.deadline_s
        self.search_pool = BoundedExecutor("search", deadline_s, threads=2, max_pending=128)
        self.model_pool = BoundedExecutor("model pool", deadline_s, max_pending=32)
        self.tile_pool = BoundedExecutor("tiles", deadline_s, threads=2, max_pending=256)
        self.json_pool, self.json_parser = (
            BoundedExecutor("large JSON", deadline_s, max_pending=16),
            JsonParser(),
        )
        self.tiles = Tiles()
        self._loading = asyncio.create_task(self._open(settings, then), name="load the model")

    async def stop(self) -> None:
        """Finish running work, refuse the rest."""
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)
        self.search_pool.stop()
        self.model_pool.stop()
        self.tile_pool.stop()
        self.json_pool.stop()
        await asyncio.to_thread(self.json_parser.stop)
        self.projections.stop()
        if self._batcher is not None:
            await self._batcher.stop()

    async def _open(self, settings: ServiceSettings, then: Callable[[ServiceSettings], None]) -> None:
        try:
            self.settings, engine = await asyncio.to_thread(self._open_all, settings)
            self._after_load()
            metrics = Metrics.of_this_process()
            most = self.limits.cache_mb * 2**20
            cache = VectorCache(most, metrics.cache) if most else None
            self._batcher = make_batcher(self._run, self.max_batch, self.limits, metrics)
            self._vectors = Vectors(self._batcher, cache, self.limits.deadline_s)
            self._batcher.start()
            self._engine = engine
            self._loaded = True
            then(settings)
        except CanvasError as problem:
            self.fail(str(problem))
        except Exception as problem:
            logger.exception("the model could not be loaded")
            self.fail(f"the model could not be loaded: {type(problem).__name__}: {problem}")

    def _open_all(self, settings: ServiceSettings) -> tuple[ServiceSettings, Engine | None]:
        """All that is served; the default model is an encoder or none."""
        from serving.core.models.opened_models import OpenedModels

        opened = self._opened = OpenedModels.open(settings, self._load)
        self._engines, self.detectors, self.volumes = opened.engines, opened.detectors, opened.volumes
        self.device, self.indexes, self.refiners = opened.device, opened.indexes, opened.refiners
        return opened.settings, opened.engine

    def open_model(self, name: str, path: str) -> Engine | Detector:
        """Serve one more encoder or detector; CanvasError where another model has its name."""
        return self._opened.add(name, path)

    def _run(self, key: Hashable, crops: np.ndarray) -> np.ndarray:
        assert isinstance(key, Key)
        engine = next(each for each in self.every_engine() if each.name == key.model)
        return engine.embed(key.pool, crops, key.layer)

    def busy(self) -> bool:
        """Whether a request waits or runs, so that background work can yield."""
        assert self._batcher is not None
        return bool(self._batcher.held_rows or self.model_pool.pending or self.search_pool.pending)

    def fail(self, sentence: str) -> None:
        """Be of no use until a restart, and say why."""
        self._loaded, self._failure = False, sentence
        self._on_failure(sentence)

    @property
    def limits(self) -> Limits:
        """Limits of the service."""
        return self.settings.limits

    @property
    def ready(self) -> bool:
        """True once a crop has passed through the model."""
        return self._loaded and self._batcher is not None and self._batcher.alive

    @property
    def alive(self) -> bool:
        """False if only a restart helps."""
        return self._failure is None and (self._batcher is None or self._batcher.alive)

    @property
    def max_batch(self) -> int:
        """Crops that go through a model together."""
        from serving.core.models.model_host import max_batch

        return max_batch(self.settings, self.device.type)

    def require_ready(self) -> ServiceSettings:
        """The default model; Refusal (503) until it is loaded."""
        if not self._loaded:
            reason = "the service could not start" if self._failure else "the model is still being loaded"
            raise Refusal(503, f"{reason}; ask /readyz again in a moment", retry_after_s=1)
        return self.settings

    @property
    def engine(self) -> Engine:
        """The default encoder; Refusal (503) until it is loaded, (404) where detectors alone are served."""
        self.require_ready()
        if self._engine is None:
            raise Refusal(
                404, "no encoder is served here, only detectors: start the service with an encoder too"
            )
        return self._engine

    @property
    def engines(self) -> dict[str, Engine]:
        """All encoders by name, the default first."""
        self.require_ready()
        return dict(self._engines)

    def engine_for(self, model: str | None) -> Engine:
        """An encoder by name or sha256, the default for None; Refusal (404) for one that is not served."""
        self.require_ready()
        if model is None:
            return self.engine
        for engine in self._engines.values():
            if model in (engine.name, engine.sha256):
                return engine
        if model in self.detectors:
            raise Refusal(404, f"{model!r} is a detector; this needs an encoder")
        names = ", ".join(self._engines) or "none"
        raise Refusal(404, f"no model is served as {model[:100]!r}; served: {names}")

    def every_engine(self) -> list[Engine]:
        """All models, including those of refiners that are not served by name."""
        behind = {hosted.engine.name: hosted.engine for hosted in self.refiners.values() if hosted.engine}
        return [*(behind | self._engines).values()]

    def registered(self, name: str) -> Volume:
        """A registered volume; Refusal (404) if unknown."""
        self.require_ready()
        if name not in self.volumes:
            names = ", ".join(sorted(self.volumes)) or "none"
            raise Refusal(404, f"no volume is registered as {name[:100]!r}; registered: {names}")
        return self.volumes[name]

    def view(self, name: str, model: str | None) -> RegisteredVolume:
        """A registered volume as an encoder reads it, or as it is looked at where none reads it alone.

        Its window is then that of the encoder's rule, and without an encoder of the first detector's.
        """
        engine = self.engine_for(model) if model is not None or self._engine is not None else None
        if engine is not None and engine.crop_shape[0] == 1:
            return self.volume(engine, name)
        from canvas_fm.data.volume.window import DEFAULT_RULE
        from serving.core.volumes.registered_volume import RegisteredVolume

        volume = self.registered(name)
        models = [*self.detectors.values()] if engine is None else [engine.encoder]
        rule = models[0].config.window_rule if models else DEFAULT_RULE
        return RegisteredVolume(name, volume, volume.window_by(rule))

    async def embed(
        self, engine: Engine, crops: np.ndarray, window: Window | None, pool: str | None, layer: int | None
    ) -> np.ndarray:
        """Embeddings (n, d) of received crops, whose values are validated here."""
        key = key_of(engine, pool, layer)
        engine.check_kind(crops.dtype, crops.shape, window)
        check_reply(engine, key, len(crops), self.limits)
        if window is None:
            crops = await asyncio.to_thread(engine.check, crops, None)
        # Raw integers stay as they came until their batch, which halves what a full queue holds.
        prepare = None if window is None else (lambda part: engine.check(part, window))
        crops = crops.reshape(len(crops), *engine.crop_shape)
        return await self.vectors.get(engine, key, crops, prepare, window)

    def volume(self, engine: Engine, name: str) -> HostedVolume:
        """A registered volume as a model reads it; Refusal if unknown or incompatible."""
        self.registered(name)
        if engine.crop_shape[0] > 1:
            raise Refusal(
                422,
                f"the model {engine.name} takes signal and background; the volume {name!r} is one channel: "
                f"send crops of shape {engine.crop_shape} (channel, z, y, x)",
            )
        if name not in engine.volumes:
            raise Refusal(
                422, f"the model {engine.name} does not fit the volume {name!r}: another voxel size"
            )
        return engine.volumes[name]

    @property
    def vectors(self) -> Vectors:
        """The function that embeds checked crops, once the model is loaded."""
        assert self._vectors is not None
        return self._vectors

    def check_room(self, rows: int) -> None:
        """Refuse crops that the queue would not accept, before they are all received; hits need no room."""
        if self._vectors is not None:
            self._vectors.check_room(rows)
