"""Preprocessing of crops as torch operations, the same numbers as `Window.apply`, and their checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from canvas_fm.errors import CanvasError

WindowLike = Any  # (low, high), a Window, or a tensor (n, 2) with a window for each crop


def windowed(
    crops: Shaped[Tensor, n * sizes], window: WindowLike | None, channels: int = 1, *, check: bool = True
) -> Float[Tensor, n * sizes]:
    """Crops as floats in [0, 1]: (v − low) / (high − low) of raw intensities, clipped; floats as they are.

    `window` is (low, high) of the volume that the crops are from, or (n, 2) with one for each crop; of
    several channels (c, 2) or (n, c, 2). Without a window crops are windowed already; integers, and with
    `check` values outside [0, 1], are refused.
    """
    if window is None:
        if not crops.is_floating_point():
            raise CanvasError(
                f"crops are {crops.dtype}; raw intensities need their volume's window: "
                "model(crops, window=volume.window_by(model.config.window_rule))"
            )
        if check and crops.numel() and not _in_range(crops):
            raise CanvasError(
                f"crops have values from {crops.min():.6g} to {crops.max():.6g}; this model takes values in "
                "[0, 1]: give raw intensities together with window=(low, high)"
            )
        return crops
    limits = torch.as_tensor(window, dtype=torch.float64, device="cpu" if _plain(window) else None)
    per_crop = (2,) if channels == 1 else (channels, 2)
    if tuple(limits.shape) not in (per_crop, (len(crops), *per_crop)):
        each = "(low, high)" if channels == 1 else f"(low, high) of each of the {channels} channels"
        rows = ", ".join(map(str, (len(crops), *per_crop)))
        raise CanvasError(f"window has shape {tuple(limits.shape)}; give {each}, or ({rows}) for these crops")
    low, high = limits[..., 0], limits[..., 1]
    if check and not bool((low < high).all()):
        raise CanvasError("window has no width; give low and high with low < high")
    if channels == 1:
        like = (-1, *(1,) * (crops.ndim - 1)) if limits.ndim == 2 else ()
    else:
        like = (-1, channels, *(1,) * (crops.ndim - 2))
    scale = (1.0 / (high - low)).float().reshape(like).to(crops.device)
    return ((crops.float() - low.float().reshape(like).to(crops.device)) * scale).clamp(0.0, 1.0)


def check_shape(crops: Tensor, channels: int, sizes_zyx: Sequence[int] | None, what: str) -> Tensor:
    """Crops (n, channels, z, y, x) of a model; (n, z, y, x) gains its channel, other shapes are refused."""
    if crops.ndim == 4 and channels == 1:
        crops = crops[:, None]
    sizes = ("z", "y", "x") if sizes_zyx is None else tuple(sizes_zyx)
    if crops.ndim != 5 or crops.shape[1] != channels or (sizes_zyx and tuple(crops.shape[2:]) != sizes):
        raise CanvasError(
            f"crops have shape {tuple(crops.shape)}; this {what} takes (n, {channels}, "
            f"{', '.join(map(str, sizes))})"
        )
    return crops


def eager() -> bool:
    """Whether values can be looked at: not while torch traces, compiles or exports."""
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing())


def _in_range(crops: Tensor) -> bool:
    low, high = crops.detach().aminmax()
    return bool(low >= 0) and bool(high <= 1)


def _plain(window: object) -> bool:
    return not isinstance(window, Tensor)
