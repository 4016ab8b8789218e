"""Model folders: `config.json` and safetensors, verified before use and identified by one sha256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from canvas_fm.errors import CanvasError, ModelMismatch
from canvas_fm.files.atomic import new_folder
from canvas_fm.models.device import pick_device

CONFIG = "config.json"
C = TypeVar("C", bound=BaseModel)


def model_sha256(config: dict[str, Any]) -> str:
    """A model's identity: canonical JSON of its config without `sha256`, then each weight file's sha256."""
    rest = {key: value for key, value in config.items() if key != "sha256"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    digest = hashlib.sha256(canonical.encode())
    for name in sorted(config["weights"]):
        digest.update(str(config["weights"][name]).encode())
    return digest.hexdigest()


def model_name(path: Path | None, sha256: str, kind: str) -> str:
    """Folder name; for `runs/NAME/encoder` and `runs/NAME/detector` the run's."""
    if path is None:
        return sha256[:12]
    path = path.resolve()
    return path.parent.name if path.name == kind else path.name


def write_model(
    folder: Path,
    config: type[BaseModel],
    settings: Mapping[str, Any],
    modules: Mapping[str, nn.Module | Mapping[str, torch.Tensor]],
    dtype: torch.dtype,
) -> None:
    """Write a model folder: modules (or weights) by file name, `settings` of its `config`.

    The config's weights and identity are worked out here.

    The folder appears whole or not at all; one that was there before is replaced.
    """
    files = {name: save_tensors(_state(module, dtype)) for name, module in modules.items()}
    weights = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    unsigned = config(**settings, weights=weights, sha256="").model_dump(mode="json")
    unsigned["sha256"] = model_sha256(unsigned)
    _write_folder(folder, files | {CONFIG: _config_bytes(unsigned)})


def read_kind(folder: Path) -> tuple[str, dict[str, Any]]:
    """Model class of a folder, and its unvalidated config."""
    path = folder / CONFIG
    if not path.is_file():
        raise CanvasError(f"{folder} is no model folder: it has no {CONFIG}")
    try:
        raw = json.loads(path.read_bytes())
    except ValueError as problem:
        raise CanvasError(
            f"{path} is damaged: it is not JSON ({problem}); copy the model folder anew"
        ) from problem
    if not isinstance(raw, dict):
        raise CanvasError(f"{path} is damaged: it holds a {type(raw).__name__}, not an object")
    return str(raw.get("kind")), raw


def check_config(folder: Path, raw: dict[str, Any], kind: type[C], files: set[str]) -> C:
    """Validate a config as its class: keys, values, weight files and identity."""
    path = folder / CONFIG
    try:
        config = kind.model_validate(raw)
    except ValidationError as problem:
        _refuse(path, problem)
    if set(raw["weights"]) - files:
        raise CanvasError(f"{path} names weight files {sorted(raw['weights'])}; unknown to this version")
    if model_sha256(raw) != raw["sha256"] or _config_bytes(raw) != path.read_bytes():
        raise CanvasError(
            f"{path} was changed: its content does not give the sha256 that it states; copy it anew"
        )
    return config


def checked_config(folder: Path) -> dict[str, Any]:
    """Unparsed config of a model of any kind, after verifying its identity and all weight files."""
    _, raw = read_kind(folder)
    if model_sha256(raw) != raw.get("sha256"):
        raise CanvasError(f"{folder / CONFIG} was changed: it does not give the sha256 that it states")
    for name in raw["weights"]:
        read_weights(folder, raw["weights"], name)
    return raw


def fill(module: nn.Module, folder: Path, weights: Mapping[str, str], name: str) -> None:
    """Load a weight file into a module after verifying its sha256."""
    try:
        module.load_state_dict(read_weights(folder, weights, name))
    except RuntimeError as problem:
        reason = str(problem).splitlines()[-1].strip()
        raise ModelMismatch(
            f"{folder / name} does not fit the architecture in {CONFIG}: {reason}"
        ) from problem


def read_weights(folder: Path, weights: Mapping[str, str], name: str) -> dict[str, torch.Tensor]:
    """Weights of a file as float32, whatever their stored dtype, after verifying its sha256."""
    path = folder / name
    if not path.is_file():
        raise CanvasError(f"{path} is missing; copy the model folder anew")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != weights.get(name):
        raise CanvasError(
            f"{path} is damaged or was changed: its sha256 is not the one in {CONFIG}; copy the model folder "
            "anew"
        )
    try:
        state = load_tensors(data)
    except SafetensorError as problem:
        raise CanvasError(f"{path} is not a safetensors file: {problem}") from problem
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def _config_bytes(config: dict[str, Any]) -> bytes:
    return (json.dumps(config, indent=1) + "\n").encode()


def _state(module: nn.Module | Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    state = module.state_dict() if isinstance(module, nn.Module) else module
    return {
        name: value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype).contiguous()
        for name, value in state.items()
    }


def _write_folder(folder: Path, files: dict[str, bytes]) -> None:
    with new_folder(folder) as temporary:
        for name, data in files.items():
            (temporary / name).write_bytes(data)


def _refuse(path: Path, problem: ValidationError) -> NoReturn:
    first = problem.errors()[0]
    where = ".".join(map(str, first["loc"])) or "the whole"
    if first["type"] == "extra_forbidden":
        raise CanvasError(f"{path} has the key {where!r}, which this version does not know") from problem
    raise CanvasError(f"{path}, {where}: {first['msg']} (given {str(first['input'])[:80]!r})") from problem


class LoadedModel(nn.Module):
    """A net with the config of its folder: identity, moves between devices, changes since it was loaded."""

    config: Any
    net: Any

    def __init__(self, config: Any, net: nn.Module, path: Path | None) -> None:
        super().__init__()
        self.config, self.net, self.path = config, net, path
        self.training = net.training
        self._weights, self._edited = _versions(net), False

    @property
    def name(self) -> str:
        """Folder name; for `runs/NAME/encoder` and `runs/NAME/detector` the run's."""
        return model_name(self.path, self.sha256, self.config.kind)

    @property
    def sha256(self) -> str:
        """Identity by which embeddings, candidates, refiners and indexes refer to this model."""
        sha256: str = self.config.sha256
        return sha256

    @property
    def edited(self) -> bool:
        """Whether the weights were changed since loading, so that the sha256 is no longer theirs."""
        return self._edited or _versions(self.net) != self._weights

    def check_unedited(self) -> None:
        """Raise ModelMismatch for a model whose results would carry the sha256 of other weights."""
        if self.edited:
            raise ModelMismatch(
                f"the weights of {self.name} were changed since it was loaded, so its sha256 is not theirs; "
                "save it first: model = cf.save(model, FOLDER)"
            )

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or convert the weights as `nn.Module.to`; `"auto"` is a GPU where there is one. Returns
        itself."""
        if args and isinstance(args[0], str):
            args = (pick_device(args[0]), *args[1:])
        return super().to(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_edited": self.edited}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._weights = _versions(self.net)


def _versions(module: nn.Module) -> tuple[int, ...]:
    """Counters that torch raises with each change in place, of all parameters and buffers."""
    tensors = [*module.parameters(), *module.buffers()]
    return tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors)
