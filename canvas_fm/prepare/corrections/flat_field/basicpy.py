"""Shading by BaSiC (Peng et al. 2017, Nature Communications 8, 14836) as the package BaSiCPy 2 fits it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float32, Num

from canvas_fm.errors import CanvasError, MissingExtra
from canvas_fm.prepare.corrections.flat_field.flat_field import FlatField
from canvas_fm.prepare.corrections.flat_field.reduced import enlarged, reduce_planes

_SIDE = 256  # blocks a side that BaSiCPy gets; it works at 128
_LEAST_LIGHT = 0.02  # of the mean: darker is no shading of a microscope


def fit_basicpy(
    planes: Iterable[Num[np.ndarray, "y x"]],
    *,
    dark: Float32[np.ndarray, "rows columns"] | float | None = None,
) -> FlatField:
    """The shading that planes of one channel share, by BaSiCPy with its own defaults on one CPU thread.

    `dark` is subtracted first, by default the darkest value: BaSiCPy calls its own estimate of it unstable.
    MissingExtra without the package, CanvasError where it finds no shading.
    """
    try:
        from basicpy import BaSiC
    except ImportError as problem:
        raise MissingExtra("BaSiCPy 2", "basicpy", "--flat-method basicpy") from problem
    import torch

    if "device" not in getattr(BaSiC, "model_fields", {}):
        raise CanvasError("this BaSiCPy is older than 2; pip install 'canvas-fm[basicpy]'")
    reduced = reduce_planes(planes, _SIDE, dark)
    if not (reduced.light != reduced.light[:, :1, :1]).any():
        raise CanvasError("the sampled planes hold one value each; no shading can be estimated from them")
    threads = torch.get_num_threads()
    # Sums of several threads differ in their last bits, and so would a conversion that resumes.
    torch.set_num_threads(1)
    try:
        model = BaSiC(get_darkfield=False, device="cpu")
        model.fit(reduced.light)
    except Exception as problem:  # of torch, numpy and its own
        raise CanvasError(
            f"BaSiCPy cannot estimate a shading from these planes: {problem}; leave --flat-method out, or "
            "give a flat image with --flat"
        ) from problem
    finally:
        torch.set_num_threads(threads)
    flat = np.asarray(model.flatfield)
    if not (np.isfinite(flat).all() and flat.min() > _LEAST_LIGHT):
        raise CanvasError(
            f"BaSiCPy found a shading from {flat.min():.2g} to {flat.max():.2g} of its mean, which is no "
            "microscope's; leave --flat-method out, or give a flat image with --flat"
        )
    surface = enlarged(flat, reduced.shape_yx)
    return FlatField(surface / surface.mean(), reduced.dark)
