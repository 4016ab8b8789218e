"""Reconstruction of masked crops by an encoder's decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from canvas_fm.errors import CanvasError
from canvas_fm.inference.input_checks import check_crops
from canvas_fm.models.encoder.mae import masked_count
from canvas_fm.models.encoder.vit import unpatchify
from canvas_fm.models.load_model import Encoder

_RATIO = 0.75  # of a model whose provenance names none


@dataclass(frozen=True)
class Reconstructed:
    """Windowed crops, predictions of every voxel, and the patch mask."""

    crops: Float[np.ndarray, "n z y x"]
    prediction: Float[np.ndarray, "n z y x"]
    masked: Bool[np.ndarray, "n tokens"]


def reconstruct_crops(
    encoder: Encoder, crops: Float[np.ndarray, "n ..."], *, mask_ratio: float, seed: int = 0
) -> Reconstructed:
    """Mask each windowed crop at random and predict it; reproducible by seed on every device.

    A decoder of patch targets is given the mean and the deviation of each hidden patch
    (`encoder.config.decoder.masked_statistics`). Raises CanvasError for crops of another shape, a ratio
    that masks nothing or everything, and a model without its decoder.
    """
    mae, config = encoder.mae, encoder.config.architecture
    if not 0 < mask_ratio < 1 or masked_count(mask_ratio, config.tokens) in (0, config.tokens):
        raise CanvasError(
            f"mask ratio {mask_ratio} masks nothing or everything; give one between 0.02 and 0.98"
        )
    checked = check_crops(crops, encoder.config)
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        result = mae(torch.from_numpy(checked).to(encoder.device), mask_ratio, generator=generator)
    voxels = unpatchify(result.patches.float(), config.grid_zyx, config.patch_zyx)
    return Reconstructed(checked[:, 0], voxels[:, 0].cpu().numpy(), result.masked.cpu().numpy())


def trained_mask_ratio(encoder: Encoder) -> float:
    """Mask ratio of the training by the model's provenance, else 0.75."""
    value: Any = encoder.config.provenance
    for key in ("recipe", "model", "mask_ratio"):
        value = value.get(key) if isinstance(value, dict) else None
    return float(value) if isinstance(value, int | float) else _RATIO
