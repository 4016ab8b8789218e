"""Model folders: `config.json` and safetensors, checked before use, named by one sha256."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from canvas_fm.data.disk import disk_full_is_said, sync_folder
from canvas_fm.data.window import WindowRule
from canvas_fm.errors import CanvasError, ModelMismatch
from canvas_fm.models.device import pick_device
from canvas_fm.models.mae import DecoderConfig, MaskedAutoencoder
from canvas_fm.models.vit import EncoderConfig, Pool, ViTEncoder
from canvas_fm.shipped import find

FORMAT_VERSION = 1
ENCODER_FILE, DECODER_FILE = "model.safetensors", "decoder.safetensors"


class ModelConfig(BaseModel):
    """All that an encoder's weights need in order to be used rightly: `config.json` of its folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["encoder"] = "encoder"
    format_version: Literal[1] = FORMAT_VERSION
    architecture: EncoderConfig
    decoder: DecoderConfig | None = None
    voxel_um: tuple[float, float, float]
    window_rule: WindowRule = WindowRule()
    pool: Pool = "mean"
    provenance: dict[str, Any] = {}
    weights: dict[str, str]
    sha256: str


def model_sha256(config: dict[str, Any]) -> str:
    """A model's identity: canonical JSON of its config without `sha256`, then each weight file's sha256."""
    rest = {key: value for key, value in config.items() if key != "sha256"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    digest = hashlib.sha256(canonical.encode())
    for name in sorted(config["weights"]):
        digest.update(str(config["weights"][name]).encode())
    return digest.hexdigest()


class Encoder:
    """An encoder as it is used: weights, preprocessing and identity together.

    `net` maps float32 crops (n, 1, z, y, x) in [0, 1] to embeddings; `mae` also reconstructs, where the
    folder carries a decoder.
    """

    def __init__(
        self, config: ModelConfig, net: ViTEncoder, mae: MaskedAutoencoder | None, path: Path | None = None
    ) -> None:
        self.config, self.net, self._mae, self.path = config, net, mae, path
        self.device = next(net.parameters()).device

    @property
    def name(self) -> str:
        """The folder's name; for `runs/NAME/encoder` the run's."""
        if self.path is None:
            return self.sha256[:12]
        path = self.path.resolve()
        return path.parent.name if path.name == "encoder" else path.name

    @property
    def sha256(self) -> str:
        """The identity by which embeddings, refiners and indexes know this encoder."""
        return self.config.sha256

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.config.architecture.dim

    @property
    def mae(self) -> MaskedAutoencoder:
        """Encoder and decoder; an error where the folder carries no decoder."""
        if self._mae is None:
            raise CanvasError(
                f"{self.path or 'this encoder'} has no {DECODER_FILE}, so it cannot reconstruct; "
                "embeddings do not need it"
            )
        return self._mae

    def to(self, device: str | torch.device) -> Encoder:
        """Move the weights; returns itself."""
        self.device = pick_device(device)
        (self._mae or self.net).to(self.device)
        return self


def save_encoder(
    folder: str | Path,
    mae: MaskedAutoencoder,
    *,
    voxel_um: tuple[float, float, float],
    window_rule: WindowRule | None = None,
    pool: Pool = "mean",
    provenance: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Encoder:
    """Write encoder and decoder as a model folder, and return the encoder as `load` would.

    The folder appears whole or not at all; one that was there before is replaced.
    """
    folder = Path(folder)
    files = {
        ENCODER_FILE: save_tensors(_state(mae.encoder, dtype)),
        DECODER_FILE: save_tensors(_state(mae.decoder, dtype)),
    }
    unsigned = ModelConfig(
        architecture=mae.encoder.config,
        decoder=mae.decoder_config,
        voxel_um=voxel_um,
        window_rule=window_rule or WindowRule(),
        pool=pool,
        provenance=provenance or {},
        weights={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        sha256="",
    ).model_dump(mode="json")
    unsigned["sha256"] = model_sha256(unsigned)
    _write_folder(folder, files | {"config.json": _config_bytes(unsigned)})
    return load(folder)


def load(model: str | Path, *, device: str | torch.device = "cpu") -> Encoder:
    """Open a model folder, or a model that is shipped by name, and check every byte of it.

    Raises CanvasError where a file is missing or changed, a key is unknown, or the folder holds another class
    of model.
    """
    folder = find("model", model)
    config = _read_config(folder)
    encoder_weights = _read_weights(folder, config, ENCODER_FILE)
    if config.decoder is None or not (folder / DECODER_FILE).exists():
        net, mae = ViTEncoder(config.architecture), None
    else:
        mae = MaskedAutoencoder(config.architecture, config.decoder)
        net = mae.encoder
        _fill(mae.decoder, _read_weights(folder, config, DECODER_FILE), folder / DECODER_FILE)
    _fill(net, encoder_weights, folder / ENCODER_FILE)
    whole: nn.Module = mae if mae is not None else net
    whole.eval().requires_grad_(False)
    return Encoder(config, net, mae, folder).to(device)


def _config_bytes(config: dict[str, Any]) -> bytes:
    return (json.dumps(config, indent=1) + "\n").encode()


def _state(module: nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {k: v.detach().to("cpu", dtype).contiguous() for k, v in module.state_dict().items()}


def _write_folder(folder: Path, files: dict[str, bytes]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with disk_full_is_said(folder):
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
        try:
            for name, data in files.items():
                with (temporary / name).open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            temporary.chmod(0o755)
            sync_folder(temporary)
            aside = temporary.with_suffix(".old")
            if folder.exists():
                folder.replace(aside)
            temporary.replace(folder)
            sync_folder(folder.parent)
            shutil.rmtree(aside, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _read_config(folder: Path) -> ModelConfig:
    path = folder / "config.json"
    if not path.is_file():
        raise CanvasError(f"{folder} is no model folder: it has no config.json")
    try:
        data = path.read_bytes()
        raw = json.loads(data)
    except ValueError as problem:
        raise CanvasError(f"{path} is damaged: it is not JSON ({problem})") from problem
    if not isinstance(raw, dict):
        raise CanvasError(f"{path} is damaged: it holds a {type(raw).__name__}, not an object")
    if raw.get("kind") != "encoder":
        raise ModelMismatch(f"{path} says kind {raw.get('kind')!r}; an encoder was expected")
    try:
        config = ModelConfig.model_validate(raw)
    except ValidationError as problem:
        _refuse(path, problem)
    if set(config.weights) - {ENCODER_FILE, DECODER_FILE}:
        raise CanvasError(f"{path} names weight files {sorted(config.weights)}; unknown to this version")
    if model_sha256(raw) != config.sha256 or _config_bytes(raw) != data:
        raise CanvasError(
            f"{path} was changed: its content does not give the sha256 that it states; copy it anew"
        )
    return config


def _refuse(path: Path, problem: ValidationError) -> NoReturn:
    first = problem.errors()[0]
    where = ".".join(map(str, first["loc"])) or "the whole"
    if first["type"] == "extra_forbidden":
        raise CanvasError(f"{path} has the key {where!r}, which this version does not know") from problem
    raise CanvasError(f"{path}, {where}: {first['msg']} (given {str(first['input'])[:80]!r})") from problem


def _read_weights(folder: Path, config: ModelConfig, name: str) -> dict[str, torch.Tensor]:
    path = folder / name
    if not path.is_file():
        raise CanvasError(f"{path} is missing; copy the model folder anew")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != config.weights.get(name):
        raise CanvasError(f"{path} is damaged or was changed: its sha256 is not the one in config.json")
    try:
        return load_tensors(data)
    except SafetensorError as problem:
        raise CanvasError(f"{path} is not a safetensors file: {problem}") from problem


def _fill(module: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    try:
        module.load_state_dict({k: v.float() for k, v in state.items()})
    except RuntimeError as problem:
        reason = str(problem).splitlines()[-1].strip()
        raise ModelMismatch(f"{path} does not fit the architecture in config.json: {reason}") from problem
