"""Cache of features, at the original and other contrasts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import BadInput
from canvas_fm.files.resumable import read_part, write_part
from canvas_fm.heads.features.extractor import Extractor
from canvas_fm.heads.features.feature_set import FeatureSet, Provenance, beside


def other_contrasts(contrasts: Sequence[float]) -> tuple[float, ...]:
    """Contrasts for augmentation, without 1 and duplicates; BadInput for one that is not above 0."""
    for contrast in contrasts:
        if not 0 < contrast < float("inf"):
            raise BadInput(f"contrast is {contrast}; give numbers above 0, 1 is the brain as it is")
    return tuple(sorted({float(contrast) for contrast in contrasts} - {1.0}))


def features_at(
    contrast: float,
    extractor: Extractor,
    volume: Volume,
    points_zyx: Float64[np.ndarray, "n 3"],
    keep: Path | None,
    *,
    group: str,
    background: Volume | None = None,
    show: bool | None = None,
) -> FeatureSet:
    """`Extractor.features` with the volume's contrast multiplied; `keep` may be a cache folder."""
    if contrast != 1:
        volume = volume.at_contrast(contrast)
        background = None if background is None else background.at_contrast(contrast)
    options: dict[str, Any] = {"group": group, "background": background, "show": show}
    if keep is None:
        return extractor.features(volume, points_zyx, **options)
    return cached_features(extractor, volume, points_zyx, keep, **options)


def cached_features(
    extractor: Extractor,
    volume: Volume,
    points_zyx: Float64[np.ndarray, "n 3"],
    folder: Path,
    *,
    group: str,
    background: Volume | None = None,
    show: bool | None = None,
) -> FeatureSet:
    """`Extractor.features` from the cache `folder` if present, else computed and stored there.

    Each block is a file of its own, so that what one model says is worked out once, alone or not. What was
    made of damage that was read as zeros is not kept: it would be taken, unsaid, when that is mended.
    """
    extractor.check(volume, background)
    points = hashlib.sha256(np.ascontiguousarray(points_zyx, "<f8").tobytes()).hexdigest()
    parts: dict[str, tuple[Float32[np.ndarray, "n k"], Provenance]] = {}
    for model_extractor in extractor.alone():
        behind = background if model_extractor.takes_background else None
        paths = {}
        for block in model_extractor.layout:
            inputs = model_extractor.of_block(block).identity(volume, behind) | {"points": points}
            digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
            paths[block] = folder / f"{group.replace('/', '_')}-{block}-{digest[:16]}.part"
        parts_read = {block: read_part(path) for block, path in paths.items()}
        cached = {block: part.arrays["x"] for block, part in parts_read.items() if part is not None}
        if len(cached) < len(paths):
            features = model_extractor.features(volume, points_zyx, group=group, background=behind, show=show)
            for block in paths.keys() - cached.keys():
                cached[block] = features.block(block)
                if not any(each.bad_chunks for each in (volume, behind) if each is not None):
                    write_part(paths[block], {"x": cached[block]})
        parts |= {block: (cached[block], model_extractor.provenance[block]) for block in paths}
    return beside(parts, group)
