"""Features under comparison: encoders, untrained encoders, PCA and shape, on clean and disturbed crops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32
from scipy.ndimage import gaussian_filter

from canvas_fm.data.zyx import Zyx, ZyxUm
from canvas_fm.heads.features.shape import shape_crop, shape_features
from canvas_fm.inference.embed.embed import embed_crops
from canvas_fm.models.encoder.random_encoder import random_encoder
from canvas_fm.models.load_model import Encoder

SHIFT_ZYX = (0, 2, 2)  # voxels that a disturbed crop lies off its cell


class Crops(NamedTuple):
    """Windowed crops with a margin around each cell, so that shifted ones can be cut."""

    wide: Float32[np.ndarray, "n wz wy wx"]
    voxel_um: ZyxUm

    def cut(self, crop_zyx: Zyx, shift_zyx: Zyx = (0, 0, 0)) -> Float32[np.ndarray, "n z y x"]:
        """Crops with the cell at voxel size // 2, or shifted by `shift_zyx`."""
        starts = [
            n // 2 - s // 2 + t for n, s, t in zip(self.wide.shape[1:], crop_zyx, shift_zyx, strict=True)
        ]
        z, y, x = (slice(a, a + s) for a, s in zip(starts, crop_zyx, strict=True))
        return self.wide[:, z, y, x]


def margin_crop(crop_zyx: Zyx, voxel_um: ZyxUm) -> Zyx:
    """Crop size with room for `shape_features` and the shift."""
    z, y, x = (
        max(c + 2 * t + 2, s + 2 * t)
        for c, s, t in zip(crop_zyx, shape_crop(voxel_um), SHIFT_ZYX, strict=True)
    )
    return z, y, x


def disturbances(seed: int = 0) -> dict[str, Callable[[Crops], Crops]]:
    """Simulated changes of microscope and annotation; each maps crops to crops."""

    def gain(crops: Crops) -> Crops:
        factor = np.exp(np.random.default_rng(seed).uniform(-0.7, 0.7, (len(crops.wide), 1, 1, 1)))
        return crops._replace(wide=np.clip(crops.wide * factor, 0, 1).astype(np.float32))

    def blur(crops: Crops) -> Crops:
        return crops._replace(wide=gaussian_filter(crops.wide, (0, 0.4, 0.8, 0.8)))

    def noise(crops: Crops) -> Crops:
        deviation = 0.3 * crops.wide.std(axis=(1, 2, 3), keepdims=True)
        drawn = np.random.default_rng(seed + 1).standard_normal(crops.wide.shape, np.float32)
        return crops._replace(wide=np.clip(crops.wide + deviation * drawn, 0, 1))

    def shift(crops: Crops) -> Crops:
        return crops._replace(wide=np.roll(crops.wide, [-s for s in SHIFT_ZYX], axis=(1, 2, 3)))

    def together(crops: Crops) -> Crops:
        return gain(noise(blur(shift(crops))))

    return {"gain": gain, "blur": blur, "noise": noise, "shift": shift, "all": together}


def encoder_features(encoder: Encoder, pool: str | None, crops: Crops) -> Float32[np.ndarray, "n d"]:
    """The encoder's embeddings with the given pooling, by default its own."""
    return embed_crops(encoder, crops.cut(encoder.config.architecture.crop_zyx), pool=pool)


def feature_makers(
    encoders: Mapping[str, Encoder],
    crops: Crops,
    fitted: Bool[np.ndarray, " n"],
    *,
    pool: str | None,
    seeds: int,
) -> dict[str, Callable[[Crops], np.ndarray]]:
    """Feature functions of crops by name; PCA is fitted on the crops marked by `fitted`.

    Untrained twins have the first encoder's architecture; their name ends in a seed.
    """
    first = next(iter(encoders.values()))
    crop_zyx = first.config.architecture.crop_zyx
    twins = {f"untrained {seed}": random_encoder(first.config, seed=seed) for seed in range(seeds)}
    makers: dict[str, Callable[[Crops], np.ndarray]] = {}
    for name, encoder in {**encoders, **twins}.items():
        makers[name] = partial(encoder_features, encoder, pool)
    project = _pca(_contrast(crops.cut(crop_zyx)[fitted]))
    makers["PCA-64"] = lambda crops: project(_contrast(crops.cut(crop_zyx)))
    makers["shape"] = lambda crops: shape_features(crops.cut(shape_crop(crops.voxel_um)), crops.voxel_um)
    return makers


def _contrast(crops: Float32[np.ndarray, "n z y x"]) -> Float32[np.ndarray, "n v"]:
    """Standardised voxels of each crop, (x − mean) / deviation: input of a contrast-normalised encoder."""
    flat = crops.reshape(len(crops), -1)
    return (flat - flat.mean(axis=1, keepdims=True)) / (flat.std(axis=1, keepdims=True) + 0.005)


def _pca(flat: Float32[np.ndarray, "n v"]) -> Callable[[np.ndarray], np.ndarray]:
    from sklearn.decomposition import PCA

    model = PCA(n_components=min(64, *flat.shape), random_state=0).fit(flat)
    transform: Callable[[np.ndarray], np.ndarray] = model.transform
    return transform
