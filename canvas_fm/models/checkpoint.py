"""Model folders opened for use: weights, preprocessing and identity together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from canvas_fm.data.volume.window import WindowRule
from canvas_fm.errors import CanvasError, ModelMismatch
from canvas_fm.models.convmixer import HeatMapNet
from canvas_fm.models.device import pick_device
from canvas_fm.models.folder.config import (
    AmplitudeConfig,
    ConvMixerConfig,
    DecoderConfig,
    EncoderConfig,
    Pool,
    RelativeConfig,
)
from canvas_fm.models.folder.folder import (
    check_config,
    fill,
    model_name,
    model_sha256,
    read_kind,
    write_model,
)
from canvas_fm.models.mae import MaskedAutoencoder
from canvas_fm.models.vit import ViTEncoder
from canvas_fm.shipped import find

__all__ = ["Detector", "Encoder", "load", "model_sha256", "save_again", "save_detector", "save_encoder"]

ENCODER_FILE, DECODER_FILE = "model.safetensors", "decoder.safetensors"
DETECTOR_FILE = "model.safetensors"

T = TypeVar("T")


class ModelConfig(BaseModel):
    """Everything needed to use an encoder's weights: `config.json` of its folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["encoder"] = "encoder"
    format_version: Literal[1] = 1
    architecture: EncoderConfig
    decoder: DecoderConfig | None = None
    voxel_um: tuple[float, float, float]
    window_rule: WindowRule = WindowRule()
    pool: Pool = "mean"
    provenance: dict[str, Any] = {}
    weights: dict[str, str]
    sha256: str


class DetectorConfig(BaseModel):
    """Everything needed to use a detector's weights: `config.json` of its folder.

    The heat map is smoothed by a Gaussian of `smooth_um`; a maximum of it is a cell iff it is at or above
    `threshold`, the operating threshold, and no hotter voxel lies within `min_distance_um`. With `amplitude`
    what is compared with the threshold is the score that joins the heat and the blob's brightness, with
    `relative` the score against the strongest detections around.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["detector"] = "detector"
    format_version: Literal[1] = 1
    architecture: ConvMixerConfig
    voxel_um: tuple[float, float, float]
    window_rule: WindowRule = WindowRule()
    threshold: float = Field(gt=0, lt=1)
    min_distance_um: float = Field(gt=0)
    smooth_um: float = Field(0.0, ge=0)
    amplitude: AmplitudeConfig | None = None
    relative: RelativeConfig | None = None
    provenance: dict[str, Any] = {}
    weights: dict[str, str]
    sha256: str


class Encoder:
    """An encoder with its preprocessing and identity.

    `net` maps float32 crops (n, 1, z, y, x) in [0, 1] to embeddings; `mae` also reconstructs, where the
    folder carries a decoder.
    """

    def __init__(
        self,
        config: ModelConfig,
        net: ViTEncoder,
        mae: MaskedAutoencoder | None,
        path: Path | None = None,
        *,
        name: str | None = None,
    ) -> None:
        self.config, self.net, self._mae, self.path, self._name = config, net, mae, path, name
        net.pool = config.pool
        self.device = next(net.parameters()).device
        self._kept: dict[Hashable, Any] = {}
        self._making = threading.Lock()

    @property
    def name(self) -> str:
        """Folder name; for `runs/NAME/encoder` the run's."""
        return self._name or model_name(self.path, self.sha256, "encoder")

    @property
    def sha256(self) -> str:
        """Identity by which embeddings, refiners and indexes refer to this encoder."""
        return self.config.sha256

    @property
    def dim(self) -> int:
        """Dimension of an embedding."""
        return self.config.architecture.dim

    @property
    def mae(self) -> MaskedAutoencoder:
        """Encoder with decoder; CanvasError if the folder has no decoder."""
        if self._mae is None:
            raise CanvasError(
                f"{self.path or 'this encoder'} has no {DECODER_FILE}, so it cannot reconstruct; "
                "embeddings do not need it"
            )
        return self._mae

    def kept(self, key: Hashable, make: Callable[[], T]) -> T:
        """Memoised result of `make` under a key, such as a compiled form; lives as long as this object."""
        with self._making:
            if key not in self._kept:
                self._kept[key] = make()
            cached: T = self._kept[key]
            return cached

    def forget(self) -> None:
        """Drop all memoised results, because a file on disk changed."""
        with self._making:
            self._kept.clear()

    def to(self, device: str | torch.device) -> Encoder:
        """Move the weights; returns itself."""
        place = pick_device(device)
        if place != self.device:
            self.forget()  # what is kept holds the weights of the old place
        self.device = place
        (self._mae or self.net).to(self.device)
        return self


class Detector:
    """A detector with its preprocessing; `net` maps (n, channels, z, y, x) to heat-map logits."""

    def __init__(self, config: DetectorConfig, net: HeatMapNet, path: Path | None = None) -> None:
        self.config, self.net, self.path = config, net, path
        self.device = next(net.parameters()).device

    @property
    def name(self) -> str:
        """Folder name; for `runs/NAME/detector` the run's."""
        return model_name(self.path, self.sha256, "detector")

    @property
    def sha256(self) -> str:
        """Identity by which candidates and refiners refer to this detector."""
        return self.config.sha256

    def to(self, device: str | torch.device) -> Detector:
        """Move the weights; returns itself."""
        self.device = pick_device(device)
        self.net.to(self.device)
        return self


def save_encoder(
    folder: str | Path,
    model: MaskedAutoencoder | ViTEncoder,
    *,
    voxel_um: tuple[float, float, float],
    window_rule: WindowRule | None = None,
    pool: Pool = "mean",
    provenance: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Encoder:
    """Write an encoder, with its decoder if it has one, as a model folder; returns it as `load` would.

    The folder appears whole or not at all; one that was there before is replaced.
    """
    mae = model if isinstance(model, MaskedAutoencoder) else None
    net = model if isinstance(model, ViTEncoder) else model.encoder
    settings = {
        "architecture": net.config,
        "decoder": None if mae is None else mae.decoder_config,
        "voxel_um": voxel_um,
        "window_rule": window_rule or WindowRule(),
        "pool": pool,
        "provenance": provenance or {},
    }
    modules: dict[str, nn.Module] = {ENCODER_FILE: net}
    if mae is not None:
        modules[DECODER_FILE] = mae.decoder
    write_model(Path(folder), ModelConfig, settings, modules, dtype)
    return load(folder, kind="encoder")


def save_again(encoder: Encoder, folder: str | Path, dtype: torch.dtype = torch.float16) -> Encoder:
    """Write an encoder again with weights of another dtype; returns it as loaded.

    With its decoder where it has one. In float16 a folder is half as large, for a release; it computes in
    float32 all the same. It is another model with another sha256, which its provenance keeps: what is fitted
    on one refuses the other.
    """
    config = encoder.config
    provenance = {**config.provenance, "weights_of": encoder.sha256, "weights_as": str(dtype)}
    rule, um = config.window_rule, config.voxel_um
    return save_encoder(
        folder,
        encoder.net if config.decoder is None else encoder.mae,
        voxel_um=um,
        window_rule=rule,
        pool=config.pool,
        provenance=provenance,
        dtype=dtype,
    )


def save_detector(
    folder: str | Path,
    net: HeatMapNet,
    *,
    voxel_um: tuple[float, float, float],
    threshold: float,
    min_distance_um: float,
    smooth_um: float = 0.0,
    window_rule: WindowRule | None = None,
    amplitude: AmplitudeConfig | None = None,
    relative: RelativeConfig | None = None,
    provenance: dict[str, Any] | None = None,
) -> Detector:
    """Write a detector as a model folder atomically; returns it as `load` would."""
    settings = {
        "architecture": net.config,
        "voxel_um": voxel_um,
        "window_rule": window_rule or WindowRule(),
        "threshold": threshold,
        "min_distance_um": min_distance_um,
        "smooth_um": smooth_um,
        "amplitude": amplitude,
        "relative": relative,
        "provenance": provenance or {},
    }
    write_model(Path(folder), DetectorConfig, settings, {DETECTOR_FILE: net}, torch.float32)
    return load(folder, kind="detector")


@overload
def load(model: str | Path, *, device: str | torch.device = "cpu", kind: Literal["encoder"]) -> Encoder: ...
@overload
def load(model: str | Path, *, device: str | torch.device = "cpu", kind: Literal["detector"]) -> Detector: ...
@overload
def load(model: str | Path, *, device: str | torch.device = "cpu", kind: None = None) -> Any: ...
def load(
    model: str | Path,
    *,
    device: str | torch.device = "cpu",
    kind: Literal["encoder", "detector"] | None = None,
) -> Encoder | Detector:
    """Open a model folder, or a shipped model by name; every file is verified.

    What comes back is an Encoder or a Detector, as the folder says; with `kind` the other is refused. Raises
    CanvasError where a file is missing or changed or a key is unknown, ModelMismatch for another class.
    """
    folder = find("model", model)
    found_kind, raw = read_kind(folder)
    if found_kind not in (("encoder", "detector") if kind is None else (kind,)):
        expected_kind = {"encoder": "an encoder", "detector": "a detector"}.get(
            str(kind), "encoder or detector"
        )
        raise ModelMismatch(
            f"{folder / 'config.json'} says kind {found_kind!r}; {expected_kind} was expected"
        )
    opened = _open_encoder(folder, raw) if found_kind == "encoder" else _open_detector(folder, raw)
    return opened.to(device)


def _open_encoder(folder: Path, raw: dict[str, Any]) -> Encoder:
    config = check_config(folder, raw, ModelConfig, {ENCODER_FILE, DECODER_FILE})
    mae: MaskedAutoencoder | None = None
    if config.decoder is None or not (folder / DECODER_FILE).exists():
        net = ViTEncoder(config.architecture)
    else:
        mae = MaskedAutoencoder(config.architecture, config.decoder)
        net = mae.encoder
        fill(mae.decoder, folder, config.weights, DECODER_FILE)
    fill(net, folder, config.weights, ENCODER_FILE)
    whole: nn.Module = mae if mae is not None else net
    whole.eval().requires_grad_(False)
    return Encoder(config, net, mae, folder)


def _open_detector(folder: Path, raw: dict[str, Any]) -> Detector:
    config = check_config(folder, raw, DetectorConfig, {DETECTOR_FILE})
    net = HeatMapNet(config.architecture)
    fill(net, folder, config.weights, DETECTOR_FILE)
    net.eval().requires_grad_(False)
    net.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return Detector(config, net, folder)
