"""The refiner's folder: config.json and model.safetensors, identified by one sha256."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from canvas_fm.errors import CanvasError, ModelMismatch
from canvas_fm.files.option_sets import FrozenModel
from canvas_fm.heads.features.feature_set import Provenance
from canvas_fm.heads.refine.columns import Columns
from canvas_fm.heads.refine.counts.candidate_recall import CandidateRecall
from canvas_fm.heads.refine.counts.count_interval import CountSpread
from canvas_fm.heads.refine.fit.cross_fit import Fitted
from canvas_fm.heads.refine.head.calibration import Calibration
from canvas_fm.heads.refine.head.head_models import Part
from canvas_fm.models.folder.model_folder import check_config, fill, read_kind, read_weights, write_model
from canvas_fm.models.heads.boosted_trees import BlendNet, TreeEnsemble
from canvas_fm.models.heads.nets import HeadNet
from canvas_fm.models.heads.tuned_blocks import TunedBlocks

WEIGHTS, BLOCKS = "model.safetensors", "blocks.safetensors"


class BlockProvenance(FrozenModel):
    """Model behind a block: name, sha256, and the settings that determine its values."""

    name: str
    sha256: str
    settings: dict[str, Any] = Field(default_factory=dict)


class Block(FrozenModel):
    """Columns `start` to `stop` of the features, and their model."""

    name: str
    start: int
    stop: int
    made: BlockProvenance | None = None


class Spread(FrozenModel):
    """Stored CountSpread."""

    shared: float
    factor: float
    regions: int
    log_odds: float = 0.0


class HeadPart(FrozenModel):
    """One model of a blended head: boosted trees (their sizes), or a linear one, on some of the blocks."""

    kind: Literal["logistic", "trees"]
    blocks: list[str]
    trees: int = 0
    nodes: int = 0
    depth: int = 0


class Tuned(FrozenModel):
    """Fine-tuned blocks `first` to `last` (excluded) of the encoder `base`, in `blocks.safetensors`.

    The block `mae` of the features is then made by `base` with these blocks, under a sha256 of its own.
    """

    base: str
    base_sha256: str
    first: int
    last: int


class RefinerConfig(FrozenModel):
    """Everything needed to use a refiner's weights: `config.json` of its folder."""

    kind: Literal["refiner"] = "refiner"
    format_version: Literal[1, 2] = 2
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
    parts: list[HeadPart] = Field(default_factory=list)
    recalls: list[CandidateRecall] = Field(default_factory=list)
    provenance: dict[str, Any] = Field(default_factory=dict)
    weights: dict[str, str]
    sha256: str


@dataclass(frozen=True)
class RefinerState:
    """Contents of a refiner's folder; `settings` are the constructor's, without `blocks`."""

    settings: Mapping[str, Any]
    blocks: dict[str, slice]
    dim: int
    columns: Columns
    parts: Sequence[Part]
    provenance: Mapping[str, Provenance]
    classes: np.ndarray
    fitted: Fitted
    skipped: int
    tuned: TunedBlocks | None
    recalls: Sequence[CandidateRecall] = ()
    fit_provenance: Mapping[str, Any] = field(default_factory=dict)


def write_refiner(state: RefinerState, folder: Path, provenance: dict[str, Any]) -> str:
    """Write a refiner's folder atomically; returns its sha256. Inverse of `read_refiner`."""
    fitted = state.fitted
    net = fitted.net.to("cpu")
    blocks = []
    for name, part in state.blocks.items():
        start, stop, _ = part.indices(state.dim)
        of_block = state.provenance.get(name)
        by = None if of_block is None else BlockProvenance(**of_block.as_dict())
        blocks.append(Block(name=name, start=start, stop=stop, made=by))
    config = {
        "settings": {**state.settings, "device": "cpu"},
        "blocks": blocks,
        "classes": state.classes.tolist(),
        "hidden": 0 if isinstance(net, BlendNet) or net.last is None else net.last.in_features,
        "parts": _parts(state, net),
        "calibration": fitted.calibration.method,
        "knots": net.calibration.shape[1],
        "threshold": fitted.threshold,
        "C": fitted.C,
        "count_spread": fitted.spread._asdict(),
        "split": fitted.split,
        "split_warning": fitted.warning,
        "skipped": state.skipped,
        "cross_validation": fitted.figures,
        "recalls": list(state.recalls),
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
    net = _net(config, columns)
    fill(net, folder, config.weights, WEIGHTS)
    net.eval().requires_grad_(False)
    state = RefinerState(
        settings=config.settings,
        blocks=blocks,
        dim=dim,
        columns=columns,
        parts=[Part(part.kind, tuple(part.blocks)) for part in config.parts],
        provenance={
            block.name: Provenance(**block.made.model_dump())
            for block in config.blocks
            if block.made is not None
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
        recalls=config.recalls,
        fit_provenance=config.provenance,
    )
    return state, config.sha256


def _parts(state: RefinerState, net: HeadNet | BlendNet) -> list[HeadPart]:
    """Parts of a blended head; empty for a head of one linear model or MLP."""
    if not isinstance(net, BlendNet):
        return []
    sizes = [
        {"trees": len(part.value), "nodes": part.value.shape[1], "depth": part.depth}
        if isinstance(part, TreeEnsemble)
        else {}
        for part in net.parts
    ]
    return [
        HeadPart(kind=kind.kind, blocks=list(kind.blocks), **size)  # type: ignore[arg-type]
        for kind, size in zip(state.parts, sizes, strict=True)
    ]


def _net(config: RefinerConfig, columns: Columns) -> HeadNet | BlendNet:
    """The head that a config describes, to be filled with its weights."""
    if not config.parts:
        return HeadNet(columns.width, config.hidden, config.knots)
    places = [columns.places(*part.blocks) for part in config.parts]
    parts = [
        TreeEnsemble(part.trees, part.nodes, part.depth) if part.kind == "trees" else HeadNet(len(place))
        for part, place in zip(config.parts, places, strict=True)
    ]
    return BlendNet(parts, places, config.knots)


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
