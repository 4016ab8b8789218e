"""A user's program: mypy checks it against the types that the package ships, and a test runs it."""

from __future__ import annotations

from typing import assert_type

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

import canvas_fm as cf
from canvas_fm.models.load_model import Encoder, load


def vectors(encoder: Encoder, brain: cf.Volume, points: cf.Points) -> np.ndarray:
    """Embeddings of the points, by the torch module itself."""
    assert_type(brain.shape, tuple[int, int, int])
    assert_type(encoder.dim, int)
    crops = cf.CropDataset(brain, points, model=encoder)
    batches = [encoder(crop) for crop, _ in DataLoader(crops, batch_size=8)]
    return torch.cat(batches).numpy()


def main() -> tuple[np.ndarray, np.ndarray]:
    """Vectors of a data loader, and those of `embed`."""
    brain, cells, *_ = cf.sample("microglia")
    encoder = load("base-5", kind="encoder")
    assert_type(encoder, Encoder)
    head: nn.Module = nn.Linear(encoder.num_features, 2)
    few = cf.Points(cells.zyx[:20])
    found = vectors(encoder, brain, few)
    assert head(torch.from_numpy(found)).shape == (20, 2)
    return found, cf.embed(encoder, brain, few.zyx, precision="fp32")
