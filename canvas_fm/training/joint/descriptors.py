"""Descriptors of an encoder, fitted on places of its training volumes when it is written."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from canvas_fm.models.encoder.vit import ViTEncoder
from canvas_fm.models.folder.network_config import DescriptorsConfig
from canvas_fm.training.mae.augment import to_unit
from canvas_fm.training.mae.training_crops import CropSet

_PLACES = 4096
_OF_TOKENS = 1024  # crops whose tokens say how much an embedding's columns deviate


def with_descriptors(
    net: ViTEncoder, pool: str, config: DescriptorsConfig, crops: Float[Tensor, "n 1 z y x"]
) -> ViTEncoder:
    """The encoder with descriptors fitted on these crops, which deviate on average as its pooled tokens do.

    So a column of the one weighs as much as one of the other where embeddings are compared.
    """
    described = ViTEncoder(net.config.model_copy(update={"descriptors": config})).eval()
    described.load_state_dict(net.state_dict(), strict=False)
    assert described.descriptors is not None
    with torch.inference_mode():
        some = crops[:: max(1, len(crops) // _OF_TOKENS)]
        tokens = torch.cat([described.pooled(described.tokens(part), pool) for part in some.split(64)])
    described.descriptors.fit(crops, float(tokens.std(dim=0).mean()))
    return described


def crops_of(
    places: CropSet, crop_zyx: tuple[int, int, int], show: bool | None
) -> Float[Tensor, "n 1 z y x"]:
    """Windowed crops around some thousand places, equally many of every volume, of the boxes around them."""
    each = max(1, _PLACES // len(places.sources))
    few = [starts[:each] for starts in places.starts_zyx]
    some = CropSet(places.sources, few, places.crop_zyx, places.rule)
    raw, windows = some.read(label="crops for descriptors", show=show), torch.from_numpy(some.windows)
    low = [box // 2 - crop // 2 for box, crop in zip(places.crop_zyx, crop_zyx, strict=True)]
    z, y, x = (slice(start, start + size) for start, size in zip(low, crop_zyx, strict=True))
    order = np.random.default_rng(0).permutation(len(raw))  # volumes mixed, wherever some are taken
    return to_unit(raw[:, z, y, x], windows)[torch.from_numpy(order)]
