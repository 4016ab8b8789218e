"""Two small cubes with blobs, and a recipe that trains on them in a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from canvas_fm.data.volume.volume import Volume
from canvas_fm.training.recipe.read_recipe import read_recipe
from canvas_fm.training.recipe.recipe import Recipe

TINY: dict[str, Any] = {
    "model": {
        "encoder": {"crop_zyx": [8, 16, 16], "patch_zyx": [2, 4, 4], "dim": 24, "depth": 1, "heads": 2},
        "decoder": {"dim": 12, "depth": 1, "heads": 2},
        "mask_ratio": 0.75,
    },
    "data": {"crops": 24},
    "training": {
        "steps": 8, "batch": 8, "learning_rate": 1e-3, "precision": "fp32",
        "log_every": 3, "checkpoint_every": 4,
    },
    "evaluation": {"crops": 6, "batch": 4, "figures": False},
}  # fmt: skip


def blobs(shape_zyx: tuple[int, int, int], seed: int) -> np.ndarray:
    """Bright balls on a dim noisy ground, uint16."""
    random = np.random.default_rng(seed)
    voxels = random.normal(100, 5, shape_zyx)
    grid = np.indices(shape_zyx)
    for _ in range(40):
        centre = random.uniform(0, shape_zyx)
        away = sum((grid[axis] - centre[axis]) ** 2 for axis in range(3))
        voxels += random.uniform(300, 2000) * np.exp(-away / 8)
    return voxels.clip(0).astype(np.uint16)


def write_cube(folder: Path, name: str, seed: int, voxel_um: tuple[float, float, float]) -> Path:
    path = folder / name / "raw.zarr"
    path.parent.mkdir(parents=True)
    voxels = blobs((24, 40, 40), seed)
    with Volume.create(path, voxels.shape, voxel_um=voxel_um, chunk_zyx=(8, 16, 16)) as writer:
        writer.write((0, 0, 0), voxels)
    return path


@pytest.fixture(scope="session")
def cubes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """a/raw.zarr and b/raw.zarr."""
    folder = tmp_path_factory.mktemp("cubes")
    return [write_cube(folder, name, seed, (4.0, 1.8, 1.8)) for seed, name in enumerate("ab")]


@pytest.fixture
def tiny() -> Callable[..., Recipe]:
    """`tiny("training.steps=3", …)`: a recipe for seconds."""
    return lambda *overrides: read_recipe(TINY, overrides)
