"""Validation of crops, points and channels for a model, shared by Python, command line and HTTP."""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Float64

from canvas_fm.data.points.points import as_zyx, check_inside
from canvas_fm.data.volume.window import Window
from canvas_fm.errors import CanvasError, counted

if TYPE_CHECKING:
    from canvas_fm.data.volume.volume import Volume, Zyx
    from canvas_fm.models.load_model import ModelConfig


def check_crops(
    crops: Any, config: ModelConfig, *, window: Window | tuple[float, float] | None = None
) -> Float32[np.ndarray, "n c z y x"]:
    """Validate crops: float32 in [0, 1], shape (n, c, z, y, x) of the encoder's `config`.

    `crops` are (n, c, z, y, x), of one channel also (n, z, y, x): float32 or float64 that went through their
    volume's window, or raw integers of one channel together with that `window` (low, high). The result may
    share memory with `crops`.

    Refused with a CanvasError: another shape or axis order, another dtype, no crops at all, NaN, infinity,
    values outside [0, 1], and floats with a window (it would be applied twice).
    """
    try:
        array = np.asarray(crops)
    except (TypeError, ValueError) as problem:  # ragged lists, tensors on another device
        raise CanvasError(f"crops are no array of numbers: {problem}") from problem
    channels = config.architecture.channels
    _check_shape(array.shape, channels, config.architecture.crop_zyx)
    _check_dtype(array.dtype, window, channels)
    array = array.reshape(array.shape[0], channels, *array.shape[-3:])
    if window is not None:
        return _windowed(array, window)
    _check_finite(array)
    # Compared as float32: what rounds to 1 on the way to the encoder is not above 1.
    with np.errstate(over="ignore"):
        low, high = np.float32(array.min()), np.float32(array.max())
    if low < 0 or high > 1:
        raise CanvasError(
            f"crops have values from {low:.6g} to {high:.6g}; this encoder takes values in [0, 1]: "
            "apply the volume's window first, or give raw integers together with that window"
        )
    return array.astype(np.float32, copy=False)


def _check_shape(shape: tuple[int, ...], channels: int, crop_zyx: Zyx) -> None:
    expected = f"this encoder takes (n, {channels}, {', '.join(map(str, crop_zyx))})"
    if channels > 1:
        expected += ", the channels being signal and background"
    whole = shape[1:2] == (channels,) if len(shape) == 5 else channels == 1
    if len(shape) not in (4, 5) or shape[-3:] != tuple(crop_zyx) or not whole:
        hint = _axis_hint(shape, tuple(crop_zyx)) if channels == 1 else ""
        raise CanvasError(f"crops have shape {shape}; {expected}{hint}")
    if shape[0] == 0:
        raise CanvasError(f"crops have shape {shape}, which is no crop at all; {expected} with n at least 1")


def _axis_hint(shape: tuple[int, ...], crop_zyx: tuple[int, ...]) -> str:
    """Hint if the same voxels are there in another axis order."""
    if shape == crop_zyx:
        return "; a single crop needs its leading axis: crops[None]"
    for axis_order in permutations("zyx"):
        sizes = tuple(crop_zyx["zyx".index(axis)] for axis in axis_order)
        order = ", ".join(axis_order)
        if shape[1:] == (*sizes, 1):
            return f"; these look like (n, {order}, channel): the axes are n, channel, z, y, x"
        if shape[1:] in (sizes, (1, *sizes)):
            return f"; these look like {order}: the axes are z, y, x, so transpose them"
    return ""


def _check_dtype(dtype: np.dtype, window: object, channels: int) -> None:
    if channels > 1 and (window is not None or dtype.kind in "iu"):
        raise CanvasError(
            f"crops are {dtype}{'' if window is None else ' and came with a window'}; each of the {channels} "
            "channels of this encoder has a window of its own: apply them, and give float32 in [0, 1]"
        )
    if dtype.kind in "iu":
        if window is None:
            raise CanvasError(
                f"crops are {dtype}; raw integers need their volume's window (low, high) with them, "
                "else give float32 in [0, 1]"
            )
    elif dtype.kind != "f" or dtype.itemsize not in (4, 8):
        raise CanvasError(f"crops are {dtype}; give float32 in [0, 1], or uint16 with the volume's window")
    elif window is not None:
        raise CanvasError(
            f"crops are {dtype} and came with a window; floats are windowed already: leave the window out, "
            "or give the raw integers"
        )


def _windowed(array: np.ndarray, window: Window | tuple[float, float]) -> Float32[np.ndarray, "n 1 z y x"]:
    low, high = window
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise CanvasError(f"the window is {low:g} to {high:g}; give two finite numbers, the lower one first")
    return Window(float(low), float(high)).apply(array)


def _check_finite(array: np.ndarray) -> None:
    if np.isfinite(array.min()) and np.isfinite(array.max()):  # which carry NaN and infinities along
        return
    bad = ~np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    raise CanvasError(
        f"{bad.sum()} of {counted(len(bad), 'crop')} hold NaN or infinite values, the first is "
        f"crop {bad.argmax()}; "
        "every value has to be in [0, 1]"
    )


def check_points(points_zyx: Any, shape_zyx: Zyx) -> Float64[np.ndarray, "n 3"]:
    """Validate points as float64 (n, 3), z, y, x voxels of level 0, at least one, all inside the volume.

    Refused with a CanvasError: no points, another shape, what is no finite number, and points outside (how
    many, and the first).
    """
    zyx = as_zyx(points_zyx)
    if not len(zyx):
        raise CanvasError(
            "there are no points to embed; give at least one row of z, y, x in voxels of level 0"
        )
    check_inside(zyx, shape_zyx)
    return zyx


def input_channels(name: str, channels: int, volume: Volume, background: Volume | None) -> list[Volume]:
    """The volumes of a model's input channels, checked against its training and against each other."""
    if (background is None) != (channels == 1):
        raise CanvasError(
            f"{name} was trained {'with' if channels == 2 else 'without'} a background channel: "
            f"{'give --background VOLUME' if channels == 2 else 'leave --background out'}"
        )
    if background is None:
        return [volume]
    if background.shape_zyx != volume.shape_zyx:
        raise CanvasError(
            f"the background {background.path} has shape {background.shape_zyx}, the volume "
            f"{volume.path} {volume.shape_zyx}"
        )
    return [volume, background]
