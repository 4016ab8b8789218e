"""Blob detection by the Laplacian of a Gaussian on windowed voxels, the baseline."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64, Int
from scipy.ndimage import gaussian_filter1d

from canvas_fm.data.volume.volume import Zyx, ZyxUm

TRUNCATE = 4.0  # in σ
_AT_ONCE = 64  # places whose surroundings are held at a time


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


def log_peaks(
    voxels: Float32[np.ndarray, "z y x"],
    places_zyx: Int[np.ndarray, "n 3"],
    near_zyx: Zyx,
    sigma_um: float,
    voxel_um: ZyxUm,
) -> Float32[np.ndarray, " n"]:
    """The highest `log_response` within so many voxels of each place, computed there alone.

    Each place by itself, so a value does not depend on what else is asked for. A place costs about as much as
    a thousand voxels of the whole response.
    """
    reach = log_reach(sigma_um, voxel_um)
    around = [np.arange(-far - near, far + near + 1) for far, near in zip(reach, near_zyx, strict=True)]
    (blur_z, bend_z), (blur_y, bend_y), (blur_x, bend_x) = (
        _filters(sigma_um / um, near) for um, near in zip(voxel_um, near_zyx, strict=True)
    )
    both_x = np.concatenate([blur_x, bend_x], axis=1)
    peaks = np.empty(len(places_zyx), np.float32)
    for start in range(0, len(places_zyx), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        z, y, x = (
            _reflected(places_zyx[rows, axis, None] + around[axis], voxels.shape[axis]) for axis in range(3)
        )
        box = voxels[z[:, :, None, None], y[:, None, :, None], x[:, None, None, :]].astype(np.float64)
        blurred, bent = np.split(box @ both_x, 2, axis=3)
        across = bend_y.T @ blurred + blur_y.T @ bent
        once = blur_y.T @ blurred
        flat = (len(box), len(blur_z), -1)
        response = bend_z.T @ once.reshape(flat) + blur_z.T @ across.reshape(flat)
        peaks[rows] = response.reshape(len(box), -1).max(axis=1)
    return peaks


def _filters(sigma: float, near: int) -> tuple[Float64[np.ndarray, "a b"], Float64[np.ndarray, "a b"]]:
    """A Gaussian and −σ² times its second derivative, as matrices from a line of voxels to its middle."""
    far = int(TRUNCATE * sigma + 0.5)
    impulse = np.zeros(2 * far + 1)
    impulse[far] = 1.0
    shifted = np.arange(2 * near + 1)
    both = []
    for order, scale in ((0, 1.0), (2, -(sigma**2))):
        taps = scale * gaussian_filter1d(impulse, sigma, order=order, truncate=TRUNCATE, mode="constant")
        matrix = np.zeros((2 * (far + near) + 1, 2 * near + 1))
        for shift in shifted:
            matrix[shift : shift + len(taps), shift] = taps
        both.append(matrix)
    return both[0], both[1]


def _reflected(index: Int[np.ndarray, "n w"], size: int) -> Int[np.ndarray, "n w"]:
    """Indices beyond an axis' ends, mirrored at them as `log_response` mirrors voxels."""
    index = index % (2 * size)
    return np.minimum(index, 2 * size - 1 - index)
