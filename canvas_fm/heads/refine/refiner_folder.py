"""A refiner as a folder: config.json and model.safetensors, known by one sha256 as every model is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from canvas_fm.errors import CanvasError, ModelMismatch
from canvas_fm.heads.features.feature_set import Made
from canvas_fm.heads.refine.calibration import Calibration, CountSpread
from canvas_fm.heads.refine.columns import Columns
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.models.folder import check_config, fill, read_kind, read_weights, write_model
from canvas_fm.models.head_nets import HeadNet
from canvas_fm.models.tuned import TunedBlocks
from canvas_fm.shipped import find

WEIGHTS, BLOCKS = "model.safetensors", "blocks.safetensors"


class MadeBy(BaseModel):
    """The model behind a block: its name, sha256, and the settings that decide the numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    sha256: str
    settings: dict[str, Any] = {}


class Block(BaseModel):
    """Columns `start` to `stop` of the features, and what made them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    start: int
    stop: int
    made: MadeBy | None = None


class Spread(BaseModel):
    """How far counts of regions are off; see CountSpread."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shared: float
    factor: float
    regions: int


class Tuned(BaseModel):
    """Blocks `first` to `last` (excluded) of the encoder `base` that were fitted too: `blocks.safetensors`.

    The block `mae` of the features is then made by `base` with these blocks, under a sha256 of its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str
    base_sha256: str
    first: int
    last: int


class RefinerConfig(BaseModel):
    """All that a refiner's weights need in order to be used rightly: `config.json` of its folder."""

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


def save_refiner(refiner: Refiner, folder: Path, provenance: dict[str, Any]) -> str:
    """Write a fitted refiner as a folder, whole or not at all, and return its sha256.

    `Refiner.load` gives back what predicts the same numbers.
    """
    from sklearn.utils.validation import check_is_fitted

    check_is_fitted(refiner)
    net = refiner.net_.to("cpu")
    settings = {name: value for name, value in refiner.get_params().items() if name != "blocks"}
    blocks = []
    for name, part in refiner.blocks_.items():
        start, stop, _ = part.indices(refiner.n_features_in_)
        made = refiner.made_.get(name)
        by = None if made is None else MadeBy(**made.as_dict())
        blocks.append(Block(name=name, start=start, stop=stop, made=by))
    config = {
        "settings": settings | {"device": "cpu"},
        "blocks": blocks,
        "classes": refiner.classes_.tolist(),
        "hidden": 0 if net.last is None else net.last.in_features,
        "calibration": refiner.calibration_.method,
        "knots": net.calibration.shape[1],
        "threshold": refiner.threshold_,
        "C": refiner.C_,
        "count_spread": refiner.count_spread_._asdict(),
        "split": refiner.split_,
        "split_warning": refiner.split_warning_,
        "skipped": refiner.skipped_,
        "cross_validation": refiner.cross_validation_,
        "provenance": provenance,
    }
    modules: dict[str, Any] = {WEIGHTS: net}
    if (tuned := refiner.tuned_) is not None:
        config["tuned"] = tuned.as_dict()
        modules[BLOCKS] = tuned.state
    write_model(folder, RefinerConfig, config, modules, torch.float32)
    return read_config(folder).sha256


def read_config(folder: Path) -> RefinerConfig:
    """The config of a refiner's folder, checked; ModelMismatch where the folder is of another kind."""
    kind, raw = read_kind(folder)
    if kind != "refiner":
        raise ModelMismatch(f"{folder / 'config.json'} says kind {kind!r}; a refiner was expected")
    return check_config(folder, raw, RefinerConfig, {WEIGHTS, BLOCKS})


def load_refiner(given: str | Path) -> Refiner:
    """A fitted refiner from its folder, or from the shipped one of that name; every byte is checked."""
    folder = find("model", given)
    config = read_config(folder)
    blocks = {block.name: slice(block.start, block.stop) for block in config.blocks}
    refiner = Refiner(**config.settings, blocks=blocks)
    dim = max(block.stop for block in config.blocks)
    columns = Columns.of(blocks, dim, refiner.variant, refiner.cut, refiner.ratio, refiner.reduce)
    net = HeadNet(columns.width, config.hidden, config.knots)
    fill(net, folder, config.weights, WEIGHTS)
    refiner.n_features_in_ = dim
    refiner.blocks_, refiner.columns_ = blocks, columns
    refiner.made_ = {
        block.name: Made(**block.made.model_dump()) for block in config.blocks if block.made is not None
    }
    refiner.classes_ = np.array(config.classes)
    refiner.net_ = net.eval().requires_grad_(False)
    refiner.calibration_ = Calibration(config.calibration, net.calibration.numpy().astype(np.float64))
    refiner.threshold_, refiner.C_ = config.threshold, config.C
    refiner.count_spread_ = CountSpread(**config.count_spread.model_dump())
    refiner.split_, refiner.split_warning_ = config.split, config.split_warning
    refiner.skipped_, refiner.cross_validation_ = config.skipped, config.cross_validation
    refiner.tuned_ = _tuned(folder, config)
    refiner.sha256_ = config.sha256
    refiner.folder_ = folder
    return refiner


def _tuned(folder: Path, config: RefinerConfig) -> TunedBlocks | None:
    """The fine-tuned blocks of the folder; CanvasError unless they make what the refiner was fitted on."""
    if config.tuned is None:
        return None
    said = config.tuned
    state = read_weights(folder, config.weights, BLOCKS)
    tuned = TunedBlocks(said.base, said.base_sha256, said.first, said.last, state)
    made = {block.made.sha256 for block in config.blocks if block.made is not None}
    if tuned.sha256 not in made:
        raise CanvasError(f"{folder / BLOCKS} holds other blocks than this refiner was fitted with")
    return tuned
