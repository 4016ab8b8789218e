"""Everything that a worker process serves: models, volumes, indexes and refiners, opened in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from canvas_fm.data.volume.volume import Volume
from canvas_fm.inference.embed.encoder_runner import device_for
from canvas_fm.inference.search.index.index import Index
from canvas_fm.models.load_model import Detector, Encoder, load
from serving.core.models.hosted_refiner import HostedRefiner, open_refiners
from serving.core.models.model_host import Engine, encoder_first
from serving.core.volumes.remote_volumes import open_volume
from serving.protocol.errors import NameTaken
from serving.protocol.settings import ServiceSettings


@dataclass
class OpenedModels:
    """Models, volumes, indexes and refiners by name; `engine` is the default encoder, None without one."""

    settings: ServiceSettings
    engine: Engine | None
    device: torch.device
    volumes: dict[str, Volume]
    engines: dict[str, Engine] = field(default_factory=dict)
    detectors: dict[str, Detector] = field(default_factory=dict)
    indexes: dict[str, Index] = field(default_factory=dict)
    refiners: dict[str, HostedRefiner] = field(default_factory=dict)

    @staticmethod
    def open(settings: ServiceSettings, load_engine: Callable[[ServiceSettings], Engine]) -> OpenedModels:
        """Open all that the settings name; CanvasError for the first that cannot be served."""
        settings = encoder_first(settings)
        engine = None if settings.model is None else load_engine(settings)
        hosted = {} if engine is None else {name: each.volume for name, each in engine.volumes.items()}
        volumes = {
            name: hosted.get(name) or open_volume(settings, each) for name, each in settings.volumes.items()
        }
        device = device_for(settings.backend, settings.device) if engine is None else engine.encoder.device
        opened = OpenedModels(settings, engine, device, volumes)
        if engine is not None:
            opened.engines[engine.name] = engine
        for name, path in settings.models.items():
            opened.add(name, path)
        opened.indexes = {name: Index.open(path) for name, path in settings.indexes.items()}
        encoders, detectors = list(opened.engines.values()), list(opened.detectors.values())
        opened.refiners = open_refiners(settings, device, encoders, detectors, opened._beside)
        return opened

    def add(self, name: str, path: str) -> Engine | Detector:
        """Open one more encoder or detector; NameTaken where another model has its name."""
        model = load(path, device=self.device)
        served = {known: engine.encoder for known, engine in self.engines.items()} | self.detectors
        if name in served and model.sha256 != served[name].sha256:
            raise NameTaken(f"another model is served as {name!r}; give another name")
        if isinstance(model, Encoder):
            return self.engines.setdefault(name, self._beside(model, name))
        return self.detectors.setdefault(name, model)

    def _beside(self, encoder: Encoder, name: str) -> Engine:
        return Engine.beside(encoder.to(self.device), name, self.volumes, self.settings)
