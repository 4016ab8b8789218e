"""Small labelled cubes of bright balls and dim spots, a recipe of a few steps and its training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.training.detector.targets import Labelled
from canvas_fm.training.detector.train import train_detector
from canvas_fm.training.mae.training_crops import VolumeSource
from canvas_fm.training.recipe.detector_recipe import DetectorRecipe
from canvas_fm.training.recipe.read_recipe import read_recipe_of

VOXEL_UM = (4.0, 2.0, 2.0)


SHAPE = (24, 48, 48)


TINY: dict[str, Any] = {
    "kind": "detector",
    "model": {"dim": 8, "depth": 1, "kernel_zyx": [3, 3, 3]},
    "target": {"radius_um": 5.0},
    "data": {"crops": 24, "crop_zyx": [8, 16, 16]},
    "training": {
        "steps": 6, "batch": 4, "learning_rate": 1e-2, "log_every": 2, "checkpoint_every": 2,
        "precision": "fp32",
    },
    "detection": {"min_distance_um": 6.0, "smooth_um": 1.0, "tolerance_um": 6.0},
    "evaluation": {"figures": False},
}  # fmt: skip


def tiny(**changes: Any) -> DetectorRecipe:
    return read_recipe_of(
        DetectorRecipe, TINY, [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    )


def write_cube(
    folder: Path, name: str, seed: int, *, brightness: float = 1.0, marker: str = "cFos"
) -> tuple[Path, Path]:
    """Bright balls, which are cells, and dimmer and narrower spots, which are none."""
    random = np.random.default_rng(seed)
    path = folder / name / "raw.zarr"
    path.parent.mkdir(parents=True)
    places = np.stack([random.integers(2, n - 2, 40) for n in SHAPE], axis=1)
    apart = [
        row for row, p in enumerate(places) if row == 0 or np.abs(places[:row] - p).max(axis=1).min() > 6
    ]
    places = places[apart]
    cells, spots = places[: len(places) // 2], places[len(places) // 2 :]
    voxels = np.zeros(SHAPE)
    voxels[tuple(cells.T)], other = 6e4, np.zeros(SHAPE)
    other[tuple(spots.T)] = 4e3
    image = gaussian_filter(voxels, (1, 2, 2)) + gaussian_filter(other, (0.4, 0.7, 0.7))
    image = brightness * (image + random.normal(100, 10, SHAPE).clip(0))
    with Volume.create(path, SHAPE, voxel_um=VOXEL_UM, chunk_zyx=(8, 16, 16), marker=marker) as writer:
        writer.write((0, 0, 0), image.astype(np.uint16))
    Points(cells.astype(float)).write(path.parent / "centroids.csv")
    return path, path.parent / "centroids.csv"


def train(cubes, out: Path, recipe: DetectorRecipe | None = None, **options: Any):
    volumes, points = zip(*cubes, strict=True)
    return train_detector(recipe or tiny(), volumes, points, out=out, device="cpu", show=False, **options)


def labels_of(cube: tuple[Path, Path], boxes: Any = None, resample_to: Any = None) -> Labelled:
    volume = Volume.open(cube[0])
    boxes = np.array([[0, 0, 0, *SHAPE]] if boxes is None else boxes)
    return Labelled(VolumeSource("a", volume, resample_to), Points.read(cube[1]).zyx, boxes)
