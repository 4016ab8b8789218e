"""Sampled planes reduced to means of blocks, one held at a time, for estimates of shading."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Num

from canvas_fm.errors import CanvasError

LEAST = 4  # planes that a shading is estimated from


@dataclass(frozen=True)
class ReducedPlanes:
    """Planes (n, y, x) without the camera's dark value, at most `side` blocks a side."""

    light: Float32[np.ndarray, "n y x"]
    dark: Float32[np.ndarray, "y x"] | float
    shape_yx: tuple[int, int]


def reduce_planes(
    planes: Iterable[Num[np.ndarray, "y x"]],
    side: int,
    dark: Float32[np.ndarray, "rows columns"] | float | None = None,
) -> ReducedPlanes:
    """Means of blocks less the dark value, by default the darkest; CanvasError where planes are too few."""
    means, darkest, shape = [], np.inf, (0, 0)
    for plane in planes:
        shape = (plane.shape[0], plane.shape[1])
        darkest = min(darkest, _darkest(plane))
        means.append(_means(plane, side))
    if len(means) < LEAST:
        raise CanvasError(f"{len(means)} planes are too few to estimate a shading from; give {LEAST} or more")
    if not all(np.isfinite(each).all() for each in means):
        raise CanvasError("the sampled planes hold NaN or infinite values; replace them first")
    if dark is None:
        dark = darkest
    elif isinstance(dark, np.ndarray) and dark.shape != shape:
        raise CanvasError(f"the dark image has shape {dark.shape}, the planes {shape}")
    below = _means(dark, side) if isinstance(dark, np.ndarray) else np.float32(dark)
    return ReducedPlanes(np.stack(means) - below, dark, shape)


def dark_value(planes: Iterable[Num[np.ndarray, "y x"]]) -> float:
    """The camera's value without light: what 1 voxel in 1,000 of the darkest plane stays below."""
    return min(map(_darkest, planes))


def enlarged(
    surface: Num[np.ndarray, "rows columns"], shape_yx: tuple[int, int]
) -> Float32[np.ndarray, "y x"]:
    """A surface of means of blocks at every voxel, linear between the blocks' centres."""
    for axis, (whole, few) in enumerate(zip(shape_yx, surface.shape, strict=True)):
        step = max(1, whole // few)
        place = np.clip((np.arange(whole) + 0.5) / step - 0.5, 0, few - 1)
        low = np.minimum(place.astype(int), max(few - 2, 0))
        share = (place - low).astype(np.float32).reshape([-1 if at == axis else 1 for at in range(2)])
        high = np.minimum(low + 1, few - 1)
        surface = surface.take(low, axis) * (1 - share) + surface.take(high, axis) * share
    return surface.astype(np.float32)


def _darkest(plane: Num[np.ndarray, "y x"]) -> float:
    return float(np.quantile(plane, 0.001))


def _means(plane: Num[np.ndarray, "y x"], side: int) -> Float32[np.ndarray, "rows columns"]:
    steps = [max(1, -(-n // side)) for n in plane.shape]
    height, width = (n // s for n, s in zip(plane.shape, steps, strict=True))
    cut = plane[: height * steps[0], : width * steps[1]]
    return cut.reshape(height, steps[0], width, steps[1]).mean(axis=(1, 3), dtype=np.float32)
