"""The refiner's folder: config.json and model.safetensors, identified by one sha256."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from canvas_fm.errors import CanvasError, ModelMismatch
from canvas_fm.heads.features.feature_set import Provenance
from canvas_fm.heads.refine.calibration import Calibration, CountSpread
from canvas_fm.heads.refine.columns import Columns
from canvas_fm.heads.refine.cross_fit import Fitted
from canvas_fm.models.folder import check_config, fill, read_kind, read_weights, write_model
from canvas_fm.models.head_nets import HeadNet
from canvas_fm.models.tuned import TunedBlocks

WEIGHTS, BLOCKS = "model.safetensors", "blocks.safetensors"


class BlockProvenance(BaseModel):
    """Model behind a block: name, sha256, and the settings that determine its values."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    sha256: str
    settings: dict[str, Any] = {}


class Block(BaseModel):
    """Columns `start` to `stop` of the features, and their model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    start: int
    stop: int
    made: BlockProvenance | None = None


class Spread(BaseModel):
    """Stored CountSpread."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shared: float
    factor: float
    regions: int


class Tuned(BaseModel):
    """Fine-tuned blocks `first` to `last` (excluded) of the encoder `base`, in `blocks.safetensors`.

    The block `mae` of the features is then made by `base` with these blocks, under a sha256 of its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str
    base_sha256: str
    first: int
    last: int


class RefinerConfig(BaseModel):
    """Everything needed to use a refiner's weights: `config.json` of its folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["refiner"] = "refiner"
    format_version: Literal[1] = 1
    settings: dict[str, Any]
    blocks: list[Block]
    classes: list[int | bool | str]
    hidden: int
    calibration: Literal["temperature", "isotonic"]
    knots: int
    threshold: float
    C: float | None
    count_spread: Spread
    split: str
    split_warning: str | None
    skipped: int
    cross_validation: dict[str, Any]
    tuned: Tuned | None = None
    provenance: dict[str, Any] = {}
    weights: dict[str, str]
    sha256: str


@dataclass(frozen=True)
class RefinerState:
    """Contents of a refiner's folder; `settings` are the constructor's, without `blocks`."""

    settings: Mapping[str, Any]
    blocks: dict[str, slice]
    dim: int
    columns: Columns
    provenance: Mapping[str, Provenance]
    classes: np.ndarray
    fitted: Fitted
    skipped: int
    tuned: TunedBlocks | None


def write_refiner(state: RefinerState, folder: Path, provenance: dict[str, Any]) -> str:
    """Write a refiner's folder atomically; returns its sha256. Inverse of `read_refiner`."""
    fitted = state.fitted
    net = fitted.net.to("cpu")
    blocks = []
    for name, part in state.blocks.items():
        start, stop, _ = part.indices(state.dim)
        made = state.provenance.get(name)
        by = None if made is None else BlockProvenance(**made.as_dict())
        blocks.append(Block(name=name, start=start, stop=stop, made=by))
    config = {
        "settings": {**state.settings, "device": "cpu"},
        "blocks": blocks,
        "classes": state.classes.tolist(),
        "hidden": 0 if net.last is None else net.last.in_features,
        "calibration": fitted.calibration.method,
        "knots": net.calibration.shape[1],
        "threshold": fitted.threshold,
        "C": fitted.C,
        "count_spread": fitted.spread._asdict(),
        "split": fitted.split,
        "split_warning": fitted.warning,
        "skipped": state.skipped,
        "cross_validation": fitted.figures,
        "provenance": provenance,
    }
    modules: dict[str, Any] = {WEIGHTS: net}
    if state.tuned is not None:
        config["tuned"] = state.tuned.as_dict()
        modules[BLOCKS] = state.tuned.state
    write_model(folder, RefinerConfig, config, modules, torch.float32)
    return read_config(folder).sha256


def read_config(folder: Path) -> RefinerConfig:
    """Validated config of a refiner's folder; ModelMismatch for a folder of another kind."""
    kind, raw = read_kind(folder)
    if kind != "refiner":
        raise ModelMismatch(f"{folder / 'config.json'} says kind {kind!r}; a refiner was expected")
    return check_config(folder, raw, RefinerConfig, {WEIGHTS, BLOCKS})


def read_refiner(folder: Path) -> tuple[RefinerState, str]:
    """Fitted refiner and sha256 from its folder, verified."""
    config = read_config(folder)
    blocks = {block.name: slice(block.start, block.stop) for block in config.blocks}
    dim = max(block.stop for block in config.blocks)
    columns = Columns.of(
        blocks, dim, *(config.settings[name] for name in ("variant", "cut", "ratio", "reduce"))
    )
    net = HeadNet(columns.width, config.hidden, config.knots)
    fill(net, folder, config.weights, WEIGHTS)
    net.eval().requires_grad_(False)
    state = RefinerState(
        settings=config.settings,
        blocks=blocks,
        dim=dim,
        columns=columns,
        provenance={
            one.name: Provenance(**one.made.model_dump()) for one in config.blocks if one.made is not None
        },
        classes=np.array(config.classes),
        fitted=Fitted(
            net=net,
            calibration=Calibration(config.calibration, net.calibration.numpy().astype(np.float64)),
            spread=CountSpread(**config.count_spread.model_dump()),
            threshold=config.threshold,
            C=config.C,
            split=config.split,
            warning=config.split_warning,
            figures=config.cross_validation,
        ),
        skipped=config.skipped,
        tuned=_tuned(folder, config),
    )
    return state, config.sha256


def _tuned(folder: Path, config: RefinerConfig) -> TunedBlocks | None:
    """Fine-tuned blocks of the folder; CanvasError unless they give the encoder of the fit."""
    if config.tuned is None:
        return None
    tuned_config = config.tuned
    state = read_weights(folder, config.weights, BLOCKS)
    tuned = TunedBlocks(
        tuned_config.base, tuned_config.base_sha256, tuned_config.first, tuned_config.last, state
    )
    sha256s = {block.made.sha256 for block in config.blocks if block.made is not None}
    if tuned.sha256 not in sha256s:
        raise CanvasError(f"{folder / BLOCKS} holds other blocks than this refiner was fitted with")
    return tuned
