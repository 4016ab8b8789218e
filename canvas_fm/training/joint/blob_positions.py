"""Training positions: boxes around bright blobs (Laplacian of a Gaussian), and random ones."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Int64
from scipy.ndimage import maximum_filter

from canvas_fm.data.crops.crop_positions import check_crop_fits
from canvas_fm.data.volume.volume import Volume, Zyx
from canvas_fm.data.volume.window import WindowRule
from canvas_fm.inference.detect.maxima.laplacian import log_reach, log_response

_BLOCK_ZYX: Zyx = (32, 128, 128)
_MOST_BLOCKS = 64  # of a large volume so many are looked at, drawn at random
_LEAST = 0.01  # response in the window below which a maximum is the noise of an empty place
_FAVOUR = 1.5  # the strongest come most often: rank = count · u^1.5 for an even u


def draw_positions(
    volume: Volume, box_zyx: Zyx, n: int, *, blobs: float, blob_um: float, rule: WindowRule, seed: int
) -> Int64[np.ndarray, "n 3"]:
    """First voxels of `n` boxes inside the volume, in random order; reproducible by seed.

    A share `blobs` of them has a bright blob of σ `blob_um` at voxel size // 2, the strongest most often; the
    rest, and all where no blob is found, is anywhere. Raises CanvasError where the box is larger than the
    volume.
    """
    check_crop_fits(volume.shape_zyx, box_zyx, volume.name)
    random = np.random.default_rng(seed)
    room = np.asarray(volume.shape_zyx) - np.asarray(box_zyx)
    starts = random.integers(0, room + 1, (n, 3))
    blob_starts = find_blobs(volume, blob_um, rule, random) - np.asarray(box_zyx) // 2
    blob_starts = blob_starts[((blob_starts >= 0) & (blob_starts <= room)).all(axis=1)]
    if len(blob_starts):
        count = round(n * blobs)
        starts[:count] = blob_starts[(len(blob_starts) * random.random(count) ** _FAVOUR).astype(np.int64)]
    return random.permutation(starts).astype(np.int64)


def find_blobs(
    volume: Volume, sigma_um: float, rule: WindowRule, random: np.random.Generator
) -> Int64[np.ndarray, "m 3"]:
    """Local maxima of the Laplacian of a Gaussian, strongest first, in random blocks."""
    window, halo = volume.window_by(rule), np.asarray(log_reach(sigma_um, volume.voxel_um))
    footprint = [2 * max(1, round(sigma_um / um)) + 1 for um in volume.voxel_um]
    places, strengths = [np.empty((0, 3), np.int64)], [np.empty(0, np.float32)]
    for low, high in _blocks(volume.shape_zyx, random):
        start = np.maximum(low - halo, 0)
        stop = np.minimum(high + halo, volume.shape_zyx)
        voxels = window.apply(volume.read(tuple(start), tuple(stop - start)))
        response = log_response(voxels, sigma_um, volume.voxel_um)
        at = np.argwhere((response == maximum_filter(response, footprint)) & (response > _LEAST))
        at_volume = at + start
        in_block = ((at_volume >= low) & (at_volume < high)).all(axis=1)
        places.append(at_volume[in_block])
        strengths.append(response[tuple(at[in_block].T)])
    return np.concatenate(places)[np.argsort(-np.concatenate(strengths), kind="stable")]


def _blocks(shape_zyx: Zyx, random: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    counts = [math.ceil(n / b) for n, b in zip(shape_zyx, _BLOCK_ZYX, strict=True)]
    total = math.prod(counts)
    chosen = (
        random.choice(total, min(total, _MOST_BLOCKS), replace=False)
        if total < 2**24
        else (random.integers(0, total, _MOST_BLOCKS))
    )
    lows = np.stack(np.unravel_index(np.unique(chosen), counts), axis=1) * _BLOCK_ZYX
    return [(low, np.minimum(low + _BLOCK_ZYX, shape_zyx)) for low in lows]
