"""Description of an exported model for bioimage.io: `rdf.yaml`, format 0.5."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from canvas_fm.models.load_model import Detector, DetectorConfig, Encoder
from canvas_fm.version import __version__

_PAPER = {
    "text": "Toward Generalizable Whole Brain Representations with High-Resolution Light-Sheet Data",
    "url": "https://arxiv.org/abs/2603.29842",
}


_CHANNELS = ["signal", "background"]


def description(
    model: Encoder | Detector,
    graph: Path,
    card: Path,
    tensors: Mapping[str, Path],
    sha256: str,
    opset: int,
) -> str:
    """YAML of a model description: its inputs, output, weights and test tensors, all files beside it."""
    encoder = isinstance(model, Encoder)
    what = "Embeddings of 3D crops" if encoder else "Heat map of cell centres"
    author = {"name": "The canvas-fm developers"}
    content = {
        "format_version": "0.5.4",
        "type": "model",
        "name": f"canvas-fm {model.name}".replace("/", "-"),
        "description": f"{what} of whole-brain light-sheet microscopy. {_rest(model)}",
        "authors": [author],
        "cite": [_PAPER],
        "license": "Apache-2.0",
        "version": __version__,
        "documentation": card.name,
        "tags": ["light-sheet-microscopy", "brain", "3d", "embedding" if encoder else "cell-detection"],
        "inputs": [_crops(model, tensors["crops"]), _window(model, tensors["window"])],
        "outputs": [_output(model, tensors["output"])],
        "config": {"bioimageio": {"reproducibility_tolerance": [{"absolute_tolerance": 1e-5}]}},
        "weights": {
            "onnx": {
                "source": graph.name,
                "sha256": sha256,
                "opset_version": opset,
                "comment": f"canvas-fm model with sha256 {model.sha256}",
            }
        },
    }
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)
    return text


def _rest(model: Encoder | Detector) -> str:
    """Steps that the graph leaves to its user."""
    config = model.config
    um = " x ".join(f"{each:g}" for each in config.voxel_um)
    rule = config.window_rule
    text = f"Voxels of {um} um (z, y, x); the window is that of the whole volume by the rule {rule}."
    if isinstance(config, DetectorConfig):
        text += (
            f" Smooth the heat map by {config.smooth_um:g} um; maxima at or above {config.threshold:g}, "
            f"{config.min_distance_um:g} um apart, are cells."
        )
    return text


def _crops(model: Encoder | Detector, test: Path) -> dict[str, Any]:
    sizes: list[Any]
    if isinstance(model, Encoder):
        sizes = list(model.config.architecture.crop_zyx)
    else:
        sizes = [{"min": 4 * patch, "step": patch} for patch in model.config.architecture.patch_zyx]
    space = [
        {"type": "space", "id": axis, "size": size, "scale": um, "unit": "micrometer"}
        for axis, size, um in zip("zyx", sizes, model.config.voxel_um, strict=True)
    ]
    names = _CHANNELS[: model.config.architecture.channels]
    return {
        "id": "crops",
        "description": "raw intensities",
        "axes": [{"type": "batch"}, {"type": "channel", "channel_names": names}, *space],
        "data": {"type": "float32"},
        "test_tensor": {"source": test.name},
    }


def _window(model: Encoder | Detector, test: Path) -> dict[str, Any]:
    channels = model.config.architecture.channels
    each = [] if channels == 1 else [{"type": "index", "id": "of_channel", "size": channels}]
    return {
        "id": "window",
        "description": "intensities that become 0 and 1, of the volume that each crop is from",
        "axes": [{"type": "batch"}, *each, {"type": "channel", "channel_names": ["low", "high"]}],
        "data": {"type": "float32"},
        "test_tensor": {"source": test.name},
    }


def _output(model: Encoder | Detector, test: Path) -> dict[str, Any]:
    axes: list[dict[str, Any]]
    if isinstance(model, Encoder):
        name, text = "embeddings", f"one vector a crop, pooling {model.config.pool}"
        axes = [{"type": "index", "size": model.dim}]
    else:
        name, text = "heatmap", "probability of a cell centre at every voxel, before smoothing"
        axes = [
            {
                **{"type": "space", "id": axis, "size": {"tensor_id": "crops", "axis_id": axis}},
                **{"scale": um, "unit": "micrometer"},
            }
            for axis, um in zip("zyx", model.config.voxel_um, strict=True)
        ]
    return {
        "id": name,
        "description": text,
        "axes": [{"type": "batch"}, *axes],
        "data": {"type": "float32"},
        "test_tensor": {"source": test.name},
    }
