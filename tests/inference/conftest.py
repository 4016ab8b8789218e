"""A tiny encoder, a volume and points on it, as the inference tests share them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from canvas_fm.data.points import Points
from canvas_fm.data.volume import Volume
from canvas_fm.inference.embeddings import write_store

CROP = (8, 16, 16)
VOXEL_UM = (4.0, 1.8, 1.8)


def make_encoder(folder: Path, *, seed: int = 0, crop_zyx=CROP, **options: Any):
    """A random-initialised encoder of 64 patches and 48 numbers a vector."""
    from canvas_fm.models.checkpoint import save_encoder
    from canvas_fm.models.mae import DecoderConfig, MaskedAutoencoder
    from canvas_fm.models.vit import EncoderConfig

    torch.manual_seed(seed)
    patch = tuple(size // 4 for size in crop_zyx)
    architecture = EncoderConfig(crop_zyx=crop_zyx, patch_zyx=patch, dim=48, depth=2, heads=3)
    mae = MaskedAutoencoder(architecture, DecoderConfig(dim=24, depth=1, heads=2))
    return save_encoder(folder, mae, **{"voxel_um": VOXEL_UM, **options})


def noise(shape_zyx: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4000, shape_zyx).astype(np.uint16)


def write_volume(path: Path, voxels: np.ndarray, **options: Any) -> Volume:
    settings = {"voxel_um": VOXEL_UM, "dtype": voxels.dtype, "chunk_zyx": (8, 16, 16), **options}
    with Volume.create(path, voxels.shape, **settings) as writer:
        writer.write((0, 0, 0), voxels)
    return Volume.open(path)


def random_points(shape_zyx: tuple[int, int, int], n: int, seed: int = 0) -> Points:
    """Points in no order, with columns of every kind."""
    rng = np.random.default_rng(seed)
    zyx = rng.uniform(-0.5, np.asarray(shape_zyx) - 0.51, (n, 3))
    columns = {
        "label": rng.integers(0, 2, n),
        "score": rng.random(n).astype(np.float32),
        "region": rng.choice(np.array(["CTX", "HPF µ", ""]), n),
        "seen": rng.random(n) > 0.5,
    }
    return Points(zyx=zyx, columns=columns, meta={"volume": "brain"})


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory):
    return make_encoder(tmp_path_factory.mktemp("models") / "encoder")


@pytest.fixture(scope="session")
def volume(tmp_path_factory: pytest.TempPathFactory, _own_cache: None) -> Volume:
    return write_volume(tmp_path_factory.mktemp("volumes") / "brain.zarr", noise((30, 50, 70)))


@pytest.fixture(scope="session")
def points(volume: Volume) -> Points:
    return random_points(volume.shape_zyx, 150)


ATTRIBUTES = {
    "encoder_sha256": "ab" * 32,
    "encoder": "tiny",
    "pool": "mean",
    "precision": "fp32",
    "volume": "brain",
    "marker": "NeuN",
    "voxel_um": list(VOXEL_UM),
    "window": [3.0, 300.0],
}


@pytest.fixture
def store(tmp_path: Path) -> tuple[Path, np.ndarray, Points]:
    """A store written by hand: path, its vectors, its points."""
    points = random_points((30, 50, 70), 60)
    vectors = np.random.default_rng(1).normal(size=(60, 12)).astype(np.float32)
    write_store(tmp_path / "cells.emb.zarr", vectors, points, ATTRIBUTES)
    return tmp_path / "cells.emb.zarr", vectors, points
