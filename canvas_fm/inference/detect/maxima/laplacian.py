"""Blob detection by the Laplacian of a Gaussian on windowed voxels, the baseline."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32
from scipy.ndimage import gaussian_filter1d

from canvas_fm.data.volume.volume import Zyx, ZyxUm

TRUNCATE = 4.0  # in σ


def log_reach(sigma_um: float, voxel_um: ZyxUm) -> Zyx:
    """Receptive field of the response, in voxels."""
    z, y, x = (int(TRUNCATE * sigma_um / um + 0.5) for um in voxel_um)
    return z, y, x


def log_response(
    voxels: Float32[np.ndarray, "z y x"], sigma_um: float, voxel_um: ZyxUm
) -> Float32[np.ndarray, "z y x"]:
    """−σ²·∇² of the voxels smoothed by a Gaussian of `sigma_um` (µm): high in bright blobs of radius σ·√3.

    Lengths are in µm, so planes that lie farther apart count no more than pixels. Borders are reflected.
    """
    sigma = [sigma_um / um for um in voxel_um]

    def along(part: np.ndarray, axis: int, order: int) -> np.ndarray:
        blurred = gaussian_filter1d(part, sigma[axis], axis=axis, order=order, truncate=TRUNCATE)
        return np.multiply(blurred, np.float32(-(sigma[axis] ** 2) if order else 1.0), out=blurred)

    # Seven passes in place of nine: each axis' first blur serves the second derivatives along the others.
    once = along(voxels, 2, 0)
    across = along(once, 1, 2)
    across += along(along(voxels, 2, 2), 1, 0)
    response = along(along(once, 1, 0), 0, 2)
    response += along(across, 0, 0)
    return response
