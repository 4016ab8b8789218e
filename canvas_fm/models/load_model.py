"""Model folders opened for use: weights, preprocessing and identity together."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import nn

from canvas_fm.data.volume.window import WindowRule
from canvas_fm.errors import CanvasError, ModelMismatch
from canvas_fm.files.shipped import find
from canvas_fm.models.detector.convmixer import HeatMapNet
from canvas_fm.models.encoder.mae import MaskedAutoencoder
from canvas_fm.models.encoder.vit import ViTEncoder
from canvas_fm.models.folder.model_config import DetectorConfig, ModelConfig
from canvas_fm.models.folder.model_folder import check_config, fill, model_sha256, read_kind, write_model
from canvas_fm.models.folder.network_config import AmplitudeConfig, Pool, RelativeConfig
from canvas_fm.models.pretrained.detector import Detector
from canvas_fm.models.pretrained.encoder import DECODER_FILE, Encoder

__all__ = [
    "Detector",
    "DetectorConfig",
    "Encoder",
    "ModelConfig",
    "load",
    "model_sha256",
    "save",
    "save_again",
    "save_detector",
    "save_encoder",
]

ENCODER_FILE = DETECTOR_FILE = "model.safetensors"


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


def save(model: nn.Module, folder: str | Path) -> Encoder | Detector:
    """Write a loaded model as it is now, after a fine-tuning for one; returns it as `load` would.

    It is another model with another sha256; its provenance has that of the weights that it started from.
    """
    if isinstance(model, Encoder):
        return save_again(model, folder, torch.float32)
    if not isinstance(model, Detector):
        raise CanvasError(
            f"save takes an encoder or detector that load gave, not a {type(model).__name__}; save the "
            "encoder in it, and what you put behind it by torch.save"
        )
    config = model.config
    return save_detector(
        folder,
        model.net,
        voxel_um=config.voxel_um,
        threshold=config.threshold,
        min_distance_um=config.min_distance_um,
        smooth_um=config.smooth_um,
        window_rule=config.window_rule,
        amplitude=config.amplitude,
        relative=config.relative,
        provenance={**config.provenance, "weights_of": config.sha256},
    )


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
