"""A volume of bright cells among dimmer spots, its candidates, and a tiny encoder and detector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.heads.features.feature_set import FeatureSet
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.models.detector.convmixer import ConvMixerConfig, HeatMapNet
from canvas_fm.models.encoder.mae import DecoderConfig, MaskedAutoencoder
from canvas_fm.models.encoder.vit import EncoderConfig
from canvas_fm.models.load_model import Detector, Encoder, save_detector, save_encoder
from tests.heads.made_up import cells
from tests.support.spots import write_spots

VOXEL_UM = (4.0, 2.0, 2.0)
SHAPE = (16, 64, 64)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return make_encoder(tmp_path_factory.mktemp("encoders") / "tiny")


def make_encoder(folder: Path, seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    architecture = EncoderConfig(crop_zyx=(4, 8, 8), patch_zyx=(1, 2, 2), dim=24, depth=2, heads=2)
    mae = MaskedAutoencoder(architecture, DecoderConfig(dim=12, depth=1, heads=2))
    return save_encoder(folder, mae, voxel_um=VOXEL_UM)


@pytest.fixture(scope="session")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    torch.manual_seed(1)
    net = HeatMapNet(ConvMixerConfig(dim=4, depth=1, kernel_zyx=(3, 3, 3)))
    folder = tmp_path_factory.mktemp("detectors") / "spots"
    return save_detector(folder, net, voxel_um=VOXEL_UM, threshold=0.5, min_distance_um=6)


def spots(path: Path, seed: int, n: int = 80, **options: Any) -> tuple[Volume, Points]:
    """A volume with n candidates of which a half, the bright ones, are cells: column `label`."""
    random = np.random.default_rng(seed)
    voxels = random.integers(100, 200, SHAPE)
    places = random.permutation(np.stack(np.meshgrid(range(2, 15, 4), range(3, 62, 6), range(3, 62, 6),
                                                     indexing="ij"), -1).reshape(-1, 3))[:n]  # fmt: skip
    label = np.arange(n) % 2
    volume = write_spots(path, voxels, places, label, VOXEL_UM, 32, **options)
    notes = np.array([f"row {row}" for row in range(n)])
    return volume, Points(places.astype(float), {"label": label, "note": notes})


@pytest.fixture(scope="session")
def brains(tmp_path_factory: pytest.TempPathFactory, _own_cache: None) -> list[tuple[Volume, Points]]:
    """Three volumes `a`, `b` and `c` with their candidates."""
    folder = tmp_path_factory.mktemp("brains")
    return [spots(folder / f"{name}.zarr", seed) for seed, name in enumerate("abc")]


TASK_SHAPE = (18, 96, 96)


def shapes(path: Path, seed: int, gain: float) -> tuple[Volume, Points, Points]:
    """A volume of spots, round ones cells, small and stretched ones none; its candidates and its true cells.

    Candidates carry their own score and labels 1, 0 and a few −1; three true cells have no candidate.
    """
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid((5, 12), range(8, 92, 11), range(8, 92, 11), indexing="ij"), -1).reshape(
        -1, 3
    )
    centre = grid + random.uniform(-1.4, 1.4, grid.shape) * (0.7, 1, 1)
    kind = random.random(len(grid)) < 0.35
    z, y, x = np.meshgrid(*map(np.arange, TASK_SHAPE), indexing="ij", sparse=True)
    image = random.normal(100, 12, TASK_SHAPE)
    height = random.uniform(220, 420, len(grid))
    for (cz, cy, cx), cell, high in zip(centre, kind, height, strict=True):
        other = (2.5, 2.5, 2.5) if random.random() < 0.5 else (2.5, 2.5, 9.0)
        deep, tall, wide = (5.0, 5.0, 5.0) if cell else other
        r2 = ((z - cz) * 4 / deep) ** 2 + ((y - cy) * 2 / tall) ** 2 + ((x - cx) * 2 / wide) ** 2
        image += high * np.exp(-0.5 * r2)
    with Volume.create(path, TASK_SHAPE, voxel_um=VOXEL_UM, chunk_zyx=(8, 32, 32)) as writer:
        writer.write((0, 0, 0), np.clip(image * gain, 0, 65535).astype(np.uint16))
    label = kind.astype(np.int64)
    label[::29] = -1
    own = height / 400 + 0.15 * kind + random.normal(0, 0.05, len(grid))
    shown = np.ones(len(grid), bool)
    shown[np.flatnonzero(label == 1)[:3]] = False
    points = Points(centre[shown], {"score": own[shown], "label": label[shown]})
    return Volume.open(path), points, Points(centre[label == 1])


@pytest.fixture(scope="session")
def shape_volumes(
    tmp_path_factory: pytest.TempPathFactory, _own_cache: None
) -> list[tuple[Volume, Points, Points]]:
    """Three volumes of about 125 candidates, the third six times as bright."""
    folder = tmp_path_factory.mktemp("shapes")
    gains = {"a": 1.0, "b": 1.5, "c": 6.0}
    return [shapes(folder / f"{name}.zarr", seed, gains[name]) for seed, name in enumerate(gains)]


@pytest.fixture(scope="session")
def pooled(shape_volumes: list[tuple[Volume, Points, Points]]) -> Any:
    """The three volumes as one task, tolerance 6 µm."""
    from canvas_fm.heads.compare.pooled_candidates import PooledCandidates
    from canvas_fm.heads.labels.candidates import Candidates

    return PooledCandidates([Candidates.of(*given, tolerance_um=6.0) for given in shape_volumes])


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without figures, where a test is about their numbers."""
    monkeypatch.setattr("canvas_fm.viewing.report.write._draw", lambda *_: [])


@pytest.fixture(scope="module")
def data() -> tuple[FeatureSet, np.ndarray]:
    return cells()


@pytest.fixture(scope="module")
def fitted(data) -> Refiner:
    return Refiner(C=0.01).fit(*data)
