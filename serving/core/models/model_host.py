"""A served encoder and its registered volumes; every call is the library's own function."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32

from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.metrics.reconstruction import four_rows
from canvas_fm.files.shipped import card_of
from canvas_fm.inference.backends.int8_check import find_check
from canvas_fm.inference.embed.encoder_runner import Runner, device_for
from canvas_fm.inference.embed.reconstruct import reconstruct_crops, trained_mask_ratio
from canvas_fm.inference.input_checks import check_crops
from canvas_fm.models.folder.model_folder import read_kind
from canvas_fm.models.load_model import Encoder, load
from serving.core.volumes.registered_volume import HostedVolume
from serving.core.volumes.remote_volumes import open_volume
from serving.protocol.schemas import ModelInfo, Pool
from serving.protocol.settings import ServiceSettings


class Engine:
    """An encoder on its device, and volumes by name; thread-safe."""

    def __init__(
        self, encoder: Encoder, volumes: dict[str, HostedVolume], settings: ServiceSettings, name: str = ""
    ) -> None:
        self.encoder, self.volumes, self.settings = encoder, volumes, settings
        self.name, self.sha256 = name or encoder.name, encoder.sha256
        self.max_batch = max_batch(settings, encoder.device.type)
        self._model = threading.Lock()  # held where crops go through the model outside the batcher's thread
        self._runners: dict[tuple[str | None, int | None], Runner] = {}

    @classmethod
    def load(cls, settings: ServiceSettings) -> Engine:
        """Open default model and volumes and run one crop; CanvasError for what cannot be served."""
        assert settings.model is not None
        place = device_for(settings.backend, settings.device)
        encoder = load(settings.model, device=place, kind="encoder")
        volumes = {}
        if encoder.config.architecture.channels == 1:  # a registered volume is one channel
            volumes = {
                name: HostedVolume(name, open_volume(settings, served), encoder, settings)
                for name, served in settings.volumes.items()
            }
        return cls(encoder, volumes, settings, settings.name).tried()

    @classmethod
    def beside(
        cls, encoder: Encoder, name: str, volumes: Mapping[str, Volume], settings: ServiceSettings
    ) -> Engine:
        """Another opened model on the same volumes, as far as they are compatible."""
        engine = cls(encoder, {}, settings, name).tried()
        fitting = {each: engine.fitting(each, volume) for each, volume in volumes.items()}
        engine.volumes = {each: hosted for each, hosted in fitting.items() if hosted is not None}
        return engine

    def hosted(self, name: str, volume: Volume) -> HostedVolume:
        """A volume as this model reads it; CanvasError where it does not fit."""
        return HostedVolume(name, volume, self.encoder, self.settings)

    def fitting(self, name: str, volume: Volume) -> HostedVolume | None:
        """The volume as this model reads it, None for another voxel size."""
        try:
            return self.hosted(name, volume)
        except CanvasError:
            return None

    def tried(self) -> Engine:
        """Itself after a warm-up crop."""
        self.embed(self.pool, np.zeros((1, *self.crop_shape), np.float32))
        return self

    @property
    def pool(self) -> Pool:
        return self.encoder.config.pool

    @property
    def crop_zyx(self) -> tuple[int, int, int]:
        return self.encoder.config.architecture.crop_zyx

    @property
    def crop_shape(self) -> tuple[int, int, int, int]:
        """Channels, z, y, x of one crop."""
        return (self.encoder.config.architecture.channels, *self.crop_zyx)

    def check_kind(self, dtype: np.dtype, shape: tuple[int, ...], window: tuple[float, float] | None) -> None:
        """Refuse crops by dtype and shape before their values are received; CanvasError as `check_crops`."""
        crop_shape = (min(shape[0], 1), *shape[1:]) if shape else ()
        try:
            self.check(np.broadcast_to(np.zeros((), dtype), crop_shape), window)
        except CanvasError:  # the same again with all rows, for a sentence that names the shape as given
            self.check(np.broadcast_to(np.zeros((), dtype), shape), window)
            raise

    def check(
        self, crops: np.ndarray, window: tuple[float, float] | None
    ) -> Float32[np.ndarray, "n c z y x"]:
        """The library's validation and window."""
        return check_crops(crops, self.encoder.config, window=window)

    def check_layer(self, pool: str | None, layer: int | None) -> tuple[str, int | None]:
        """(pool, layer) with the model's default pooling; CanvasError if unavailable."""
        runner = self._runner(pool, layer)
        return runner.pool, runner.layer

    def _runner(self, pool: str | None, layer: int | None) -> Runner:
        if (pool, layer) not in self._runners:  # of which there are as many as pools times blocks
            settings = self.settings
            runner = Runner(self.encoder, pool, None, settings.precision, layer, settings.backend)
            self._runners[pool, layer] = runner
        return self._runners[pool, layer]

    def one_shape(self, pool: str, layer: int | None) -> tuple[int, ...]:
        """Output shape of one crop: (d,), of `tokens` (tokens, d), of `grid` (d, z, y, x)."""
        return self._runner(pool, layer).one_shape

    def embed(
        self, pool: str, crops: Float32[np.ndarray, "n c z y x"], layer: int | None = None
    ) -> Float32[np.ndarray, "n ..."]:
        """Embeddings of validated crops in one batch."""
        with self._model:
            return self._runner(pool, layer)(crops)

    def reconstruct(
        self, crops: Float32[np.ndarray, "n c z y x"], mask_ratio: float | None, seed: int
    ) -> tuple[Float32[np.ndarray, "n 4 z y x"], Bool[np.ndarray, "n tokens"]]:
        """The paper's four rows of each crop: original, masked (0), reconstruction, merged; and the mask."""
        ratio = trained_mask_ratio(self.encoder) if mask_ratio is None else mask_ratio
        with self._model:
            result = reconstruct_crops(self.encoder, crops, mask_ratio=ratio, seed=seed)
        patch_zyx = self.encoder.config.architecture.patch_zyx
        return four_rows(result.crops, result.masked, result.prediction, patch_zyx), result.masked

    def model_info(self) -> ModelInfo:
        config = self.encoder.config
        runner, int8 = self._runner(None, None), find_check(self.encoder)
        return ModelInfo(
            name=self.name,
            sha256=self.sha256,
            architecture=config.architecture.model_dump(mode="json"),
            crop_zyx=self.crop_zyx,
            voxel_um=config.voxel_um,
            window_rule=dataclasses.asdict(config.window_rule),
            pool=config.pool,
            dimension=self.encoder.dim,
            layers=config.architecture.depth,
            reconstructs=config.decoder is not None,
            reconstruction_given=None if config.decoder is None else config.decoder.masked_statistics,
            backend=runner.backend,
            precision=runner.precision,
            int8=None if int8 is None else int8.summary(),
            card=None if self.encoder.path is None else card_of(self.encoder.path),
            mask_ratio=trained_mask_ratio(self.encoder),
        )


def max_batch(settings: ServiceSettings, device: str) -> int:
    """Crops that go through a model together."""
    return settings.limits.max_batch or (64 if device == "cpu" else 1024)


def encoder_first(settings: ServiceSettings) -> ServiceSettings:
    """The settings with the first encoder among the models as the default; none where all are detectors."""
    if settings.model is None or read_kind(Path(settings.model))[0] != "detector":
        return settings
    models = {settings.name or Path(settings.model).name: settings.model} | settings.models
    encoders = (name for name, path in models.items() if read_kind(Path(path))[0] != "detector")
    first = next(encoders, None)
    rest = {name: path for name, path in models.items() if name != first}
    default = {"model": None, "name": ""} if first is None else {"model": models[first], "name": first}
    return settings.model_copy(update=default | {"models": rest})
