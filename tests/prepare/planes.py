"""Planes and volumes for the tests of preparation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile

SHAPE = (70, 90, 75)
UM = (2.0, 2.0, 2.0)


def voxels(shape: tuple[int, int, int] = SHAPE, dtype: str = "uint16") -> np.ndarray:
    """Every voxel holds its running index, modulo a prime that fits the type."""
    return (
        (np.arange(np.prod(shape)) % (65_521 if np.dtype(dtype).itemsize > 1 else 251))
        .astype(dtype)
        .reshape(shape)
    )


def write_planes(folder: Path, planes: np.ndarray, pattern: str = "plane_{:04d}.tif") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for z, plane in enumerate(planes):
        tifffile.imwrite(folder / pattern.format(z), plane)
    return folder


def bytes_of(store: Path) -> dict[str, bytes]:
    """Every file of a store."""
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}
