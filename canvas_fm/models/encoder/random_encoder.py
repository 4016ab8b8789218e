"""An untrained encoder as baseline."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from canvas_fm.data.zyx import ZyxUm
from canvas_fm.models.encoder.vit import EncoderConfig, ViTEncoder
from canvas_fm.models.load_model import Encoder, ModelConfig


def random_encoder(
    like: ModelConfig | None = None, *, voxel_um: ZyxUm = (4.0, 1.8, 1.8), seed: int = 0
) -> Encoder:
    """Randomly initialised encoder with architecture, window, voxel size and pooling of another.

    Without `like` it has the paper's architecture, for `voxel_um`. The same seed gives the same weights; they
    are nowhere on disk, and instead of a sha256 it is known by architecture and seed.
    """
    architecture = EncoderConfig() if like is None else like.architecture
    shape = hashlib.sha256(architecture.model_dump_json().encode()).hexdigest()
    name = f"random-{shape[:12]}-seed-{seed}"
    if like is None:
        config = ModelConfig(architecture=architecture, voxel_um=voxel_um, weights={}, sha256=name)
    else:
        update: dict[str, Any] = {"decoder": None, "provenance": {}, "weights": {}, "sha256": name}
        config = like.model_copy(update=update)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ViTEncoder(config.architecture)
    net.eval().requires_grad_(False)
    return Encoder(config, net, None)
