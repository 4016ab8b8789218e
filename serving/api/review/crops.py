"""Voxels for the review's page: crops around candidates, and planes of their surroundings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped

from canvas_fm.data.crops.reader import crop_starts
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.zyx import Zyx, ZyxUm

VIEW_UM: ZyxUm = (32.0, 58.0, 58.0)  # the CANVAS paper's 8 × 32 × 32 voxels of 4 × 1.8 × 1.8 µm
PLANE = 192  # voxels of a plane of the surroundings


def view_zyx(volume: Volume) -> Zyx:
    """Size in voxels of the crops that are shown, even and at least four."""
    z, y, x = (
        int(min(64, max(4, 2 * round(um / size / 2))))
        for um, size in zip(VIEW_UM, volume.voxel_um, strict=True)
    )
    return z, y, x


def crops_at(volume: Volume, centres_zyx: np.ndarray, size_zyx: Zyx) -> Shaped[np.ndarray, "n z y x"]:
    """Raw voxels around each place, zero outside the volume, as `sendable`."""
    starts = crop_starts(centres_zyx, size_zyx)
    crops = [volume.read((int(z), int(y), int(x)), size_zyx) for z, y, x in starts]
    return sendable(np.stack(crops))


def plane_at(volume: Volume, centre_zyx: Sequence[float], size: int = PLANE) -> Shaped[np.ndarray, "1 y x"]:
    """One plane around a place."""
    return crops_at(volume, np.asarray(centre_zyx, np.float64)[None], (1, size, size))[0]


def sendable(voxels: np.ndarray) -> np.ndarray:
    """As uint16 where nothing is lost, else float32 with NaN as 0."""
    if voxels.dtype.kind in "ui" and voxels.dtype.itemsize <= 2 and voxels.min(initial=0) >= 0:
        return voxels.astype("<u2")
    return np.nan_to_num(voxels.astype("<f4"))
