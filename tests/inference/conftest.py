"""What the inference tests share: a tiny encoder, a volume and points on it, an index of made-up vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import canvas_fm as cf
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.inference.embed.store.embedding_store import Embeddings, write_store
from canvas_fm.inference.search import inverted_lists as search_lists
from canvas_fm.inference.search.index import index_store as search_store

CROP = (8, 16, 16)
VOXEL_UM = (4.0, 1.8, 1.8)
DIM = 16  # of the vectors of `clumps`


def make_encoder(folder: Path, *, seed: int = 0, crop_zyx=CROP, **options: Any):
    """A random-initialised encoder of 64 patches and 48 numbers a vector."""
    from canvas_fm.models.encoder.mae import DecoderConfig, MaskedAutoencoder
    from canvas_fm.models.encoder.vit import EncoderConfig
    from canvas_fm.models.load_model import save_encoder

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


def by_hand(encoder, volume, zyx, pool="mean") -> np.ndarray:
    """One point at a time: pad, cut, window and pool in plain numpy."""
    low, high = volume.window_by(encoder.config.window_rule)
    margin = 20
    padded = np.pad(volume.read((0, 0, 0), volume.shape_zyx).astype(np.float64), margin)
    rows = []
    for point in zyx:
        start = [int(np.floor(p + 0.5)) - s // 2 + margin for p, s in zip(point, CROP, strict=True)]
        crop = padded[tuple(slice(a, a + s) for a, s in zip(start, CROP, strict=True))]
        crop = np.clip((crop - low) / (high - low), 0, 1).astype(np.float32)
        with torch.inference_mode():
            tokens = encoder.net.tokens(torch.from_numpy(crop)[None, None])[0].numpy()
        grid = tokens[1:].reshape(4, 4, 4, -1)
        mean, centre = tokens[1:].mean(0), grid[1:3, 1:3, 1:3].mean((0, 1, 2))
        rows.append({"mean": mean, "cls": tokens[0], "centre": centre, "contrast": centre - mean}[pool])
    return np.stack(rows)


def assert_same(a: np.ndarray, b: np.ndarray, relative: float) -> None:
    assert a.shape == b.shape
    off = np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)
    assert off.max() <= relative, f"off by {off.max():.3g} of the norm, row {off.argmax()}"


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


def clumps(n: int, seed: int) -> np.ndarray:
    """Vectors in clumps, of different lengths, as embeddings are."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(20, DIM))
    spread = centres[rng.integers(0, 20, n)] + 0.4 * rng.normal(size=(n, DIM))
    return (spread * rng.uniform(0.5, 2, (n, 1))).astype(np.float32)


def write_cells(folder: Path, name: str, n: int = 300, marker: str | None = "NeuN", **changes) -> Embeddings:
    """An embeddings store written by hand; `vectors`, `columns` and attributes may be given."""
    seed = sum(map(ord, name))
    rng = np.random.default_rng(seed)
    vectors = changes.pop("vectors", None)
    vectors = clumps(n, seed) if vectors is None else vectors
    n = len(vectors)
    columns = changes.pop("columns", None)
    if columns is None:
        columns = {
            "score": rng.random(n).astype(np.float32),
            "region": rng.choice(["CTX", "HPF µ", ""], n),
            "label": rng.integers(0, 2, n),
        }
    points = Points(rng.uniform(0, 50, (n, 3)), columns)
    about = ATTRIBUTES | {"volume": name, "marker": marker, "inputs": {"volume": name, "n": n}} | changes
    write_store(folder / f"{name}.emb.zarr", vectors, points, about)
    return Embeddings.open(folder / f"{name}.emb.zarr")


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Embeddings]:
    folder = tmp_path_factory.mktemp("stores")
    return [write_cells(folder, "a"), write_cells(folder, "b", 200, "TH")]


@pytest.fixture(scope="session")
def index(stores, tmp_path_factory: pytest.TempPathFactory) -> cf.Index:
    return cf.Index.build(stores, tmp_path_factory.mktemp("indexes") / "cells.index")


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thresholds so low that a few hundred rows take the structures of millions."""
    monkeypatch.setattr(search_lists, "FLAT_MOST", 100)
    monkeypatch.setattr(search_lists, "LIST_ROWS", 256)
    monkeypatch.setattr("canvas_fm.inference.search.nearest.FEW", 0)
    monkeypatch.setattr(search_store, "BLOCK", 64)
    monkeypatch.setattr(search_lists, "BLOCK", 64)


def whole(stores) -> np.ndarray:
    return np.concatenate([each.vectors for each in stores])


def nearest(query: np.ndarray, vectors: np.ndarray, k: int, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """The oracle: one vector at a time, in float64."""
    query, vectors = query.astype(np.float64), vectors.astype(np.float64)
    if metric == "cosine":
        distance = 1 - vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    else:
        distance = np.linalg.norm(vectors - query, axis=1)
    order = np.argsort(distance, kind="stable")[:k]
    return order, distance[order]
