"""Features that are kept for the next fit or report, of the volumes as they are and at other contrasts."""

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
    """Contrasts to see brains at beside 1, each once; BadInput for one that is not above 0."""
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
    """As `Extractor.features`, the volume as if stained so many times as strongly; `keep` may be a folder."""
    if contrast != 1:
        volume = volume.at_contrast(contrast)
        background = None if background is None else background.at_contrast(contrast)
    same: dict[str, Any] = {"group": group, "background": background, "show": show}
    if keep is None:
        return extractor.features(volume, points_zyx, **same)
    return cached_features(extractor, volume, points_zyx, keep, **same)


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
    """As `Extractor.features`, read from `folder` where the same were worked out before, else kept there.

    Each block is a file of its own, so that what one model says is worked out once, alone or not. What was
    made of damage that was read as zeros is not kept: it would be taken, unsaid, when that is mended.
    """
    extractor.check(volume, background)
    points = hashlib.sha256(np.ascontiguousarray(points_zyx, "<f8").tobytes()).hexdigest()
    parts: dict[str, tuple[Float32[np.ndarray, "n k"], Provenance]] = {}
    for one in extractor.alone():
        behind = background if one.detector is not None else None
        paths = {}
        for block in one.layout:
            inputs = one.of_block(block).identity(volume, behind) | {"points": points}
            digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
            paths[block] = folder / f"{group.replace('/', '_')}-{block}-{digest[:16]}.part"
        parts_read = {block: read_part(path) for block, path in paths.items()}
        found = {block: part.arrays["x"] for block, part in parts_read.items() if part is not None}
        if len(found) < len(paths):
            features = one.features(volume, points_zyx, group=group, background=background, show=show)
            for block in paths.keys() - found.keys():
                found[block] = features.block(block)
                if not any(each.bad_chunks for each in (volume, behind) if each is not None):
                    write_part(paths[block], {"x": found[block]})
        parts |= {block: (found[block], one.provenance[block]) for block in paths}
    return beside(parts, group)
