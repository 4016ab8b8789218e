"""Hand-crafted features of a candidate: intensity at several scales in µm, contrast, shape."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from jaxtyping import Float32, Float64

from canvas_fm.data.crops.reader import CropReader
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.volume.window import WindowRule
from canvas_fm.data.zyx import Zyx, ZyxUm
from canvas_fm.models.folder.network_config import centre_offsets_um

RADII_UM = (3.0, 6.0, 10.0, 16.0, 24.0)
PERCENTILES = (5, 25, 50, 75, 95)
# Intensity in medians of the volume: blind to the gain, and no cell is so bright that it is cut.
SHAPE_RULE = WindowRule("median", 0.0, 64.0)
_VOXELS = 4_000_000  # of the crops that are worked on at once


def shape_crop(voxel_um: ZyxUm) -> Zyx:
    """Crop size in voxels that contains the largest ball, odd on every axis."""
    z, y, x = (2 * math.ceil(RADII_UM[-1] / size) + 1 for size in voxel_um)
    return z, y, x


def shape_of_points(
    volume: Volume,
    points_zyx: Float64[np.ndarray, "n 3"],
    *,
    rule: WindowRule = SHAPE_RULE,
    reader: CropReader | None = None,
) -> Float32[np.ndarray, "n k"]:
    """`shape_features` of points of a volume, rows in the order given, at the volume's own voxel size.

    Needs no model. Bounded memory: some crops at a time. `reader` keeps decoded chunks from call to call.
    """
    crop_zyx = shape_crop(volume.voxel_um)
    reader = reader or CropReader(volume, crop_zyx)
    window = volume.window_by(rule)
    features = np.empty((len(points_zyx), len(feature_names())), np.float32)
    for rows, crops in reader.batches_points(points_zyx, max(1, _VOXELS // math.prod(crop_zyx))):
        features[rows] = shape_features(window.apply(crops), volume.voxel_um)
    return features


def feature_names() -> list[str]:
    """Column names of `shape_features`."""
    balls = [
        f"{statistic} within {r:g} um" for r in RADII_UM for statistic in ("mean", "maximum", "deviation")
    ]
    shells = [f"mean from {a:g} to {b:g} um" for a, b in pairwise(RADII_UM)]
    contrasts = [f"contrast at {r:g} um" for r in RADII_UM[:-1]]
    box = [f"percentile {p} of the box" for p in PERCENTILES]
    shape = [
        "centre",
        "volume above half, um3",
        "offset of the centre of mass, um",
        *(f"axis {n} of the moments, um" for n in (1, 2, 3)),
        "elongation",
        "flatness",
    ]
    return [*balls, *shells, *contrasts, *box, *shape]


def shape_features(crops: Float32[np.ndarray, "n z y x"], voxel_um: ZyxUm) -> Float32[np.ndarray, "n k"]:
    """Intensity, contrast and shape around the centre of each crop; columns as in `feature_names`.

    Crops are windowed, of `shape_crop` voxels, z, y, x. Distances are in µm, so that the numbers mean the
    same at any voxel size. Moments are those of what rises above the median of the outer shell, within
    10 µm.
    """
    offsets = centre_offsets_um(crops.shape[1:], voxel_um)
    distance = np.sqrt((offsets**2).sum(axis=1))
    flat = crops.reshape(len(crops), -1).astype(np.float64)
    inside = [distance <= max(radius, distance.min()) for radius in RADII_UM]
    means, columns = [], []
    for ball in inside:
        part = flat[:, ball]
        means.append(part.mean(axis=1))
        columns += [means[-1], part.max(axis=1), part.std(axis=1)]
    shells = [flat[:, b & ~a].mean(axis=1) for a, b in pairwise(inside)]
    columns += shells
    columns += [mean - shell for mean, shell in zip(means, shells, strict=False)]
    columns += list(np.percentile(flat, PERCENTILES, axis=1))
    ground = np.median(flat[:, inside[-1] & ~inside[-2]], axis=1)
    columns.append(flat[:, int(np.argmin(distance))])
    columns += _shape(flat, ground, offsets, inside[2], float(np.prod(voxel_um)))
    return np.stack(columns, axis=1).astype(np.float32)


def _shape(
    flat: Float64[np.ndarray, "n v"],
    ground: Float64[np.ndarray, " n"],
    offsets: Float64[np.ndarray, "v 3"],
    near: np.ndarray,
    voxel_um3: float,
) -> list[Float64[np.ndarray, " n"]]:
    """Size at half height, and moments of inertia of the intensity above background."""
    above = np.maximum(flat[:, near] - ground[:, None], 0.0)
    half = 0.5 * above.max(axis=1, keepdims=True)
    volume = ((above >= half) & (half > 0)).sum(axis=1) * voxel_um3
    weight = above / np.maximum(above.sum(axis=1, keepdims=True), 1e-9)
    place = offsets[near]
    centre = weight @ place
    square = np.einsum("nv,vi,vj->nij", weight, place, place) - centre[:, :, None] * centre[:, None, :]
    axes = np.sqrt(np.maximum(np.linalg.eigvalsh(square), 0.0))[:, ::-1]
    longest = np.maximum(axes[:, 0], 1e-9)
    return [
        volume,
        np.sqrt((centre**2).sum(axis=1)),
        *axes.T,
        axes[:, 1] / longest,
        axes[:, 2] / longest,
    ]
