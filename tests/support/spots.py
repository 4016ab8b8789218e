"""Volumes of bright cells and dimmer spots, which detectors and refiners of the tests tell apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.data.volume.volume import Volume


def write_spots(
    path: Path,
    voxels: np.ndarray,
    places: np.ndarray,
    label: np.ndarray,
    voxel_um: Any,
    chunk: int,
    **options: Any,
) -> Volume:
    """Write `voxels` with a bright spot at each place (z, y, x) of label 1 and a dimmer one at the others."""
    for (z, y, x), cell in zip(places, label, strict=True):
        voxels[z, y - 1 : y + 2, x - 1 : x + 2] += 900 if cell else 300
    chunk_zyx = (8, chunk, chunk)
    with Volume.create(path, voxels.shape, voxel_um=voxel_um, chunk_zyx=chunk_zyx, **options) as writer:
        writer.write((0, 0, 0), voxels.astype(np.uint16))
    return Volume.open(path)
