"""Uneven illumination of a channel: shading estimated from its own planes, or measured, divided out.

The model is that of low-rank flat-field correction (BaSiC; Peng et al. 2017, Nature Communications 8, 14836):
a plane is shading × its own brightness, plus what is sparse (cells). Here shading is a smooth surface in
logarithms, a polynomial, and sparse is what medians and a robust loss leave out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from jaxtyping import Float32, Num
from numpy.polynomial import legendre

from canvas_fm.errors import CanvasError
from canvas_fm.prepare.corrections.flat_field.reduced import LEAST, reduce_planes

_WORKED_AT = 96  # voxels a side to which planes are reduced for the estimate
_ROUNDS = 12


@dataclass(frozen=True)
class FlatField:
    """A surface with mean 1, and the camera's dark value: (plane − dark) / flat + dark."""

    flat: Float32[np.ndarray, "y x"]
    dark: Float32[np.ndarray, "y x"] | float = 0.0

    def divide(self, plane: Float32[np.ndarray, "y x"]) -> Float32[np.ndarray, "y x"]:
        """The plane under even light, in the same unit."""
        if plane.shape != self.flat.shape:
            raise CanvasError(f"the flat image has shape {self.flat.shape}, the planes {plane.shape}")
        return (plane - self.dark) / self.flat + self.dark


def read_flat(path: Path) -> Float32[np.ndarray, "y x"]:
    """A plane from a .tif or .npy file."""
    try:
        image = np.load(path) if path.suffix == ".npy" else tifffile.imread(path)
    except Exception as problem:  # tifffile raises whatever a damaged file makes it
        raise CanvasError(f"{path} cannot be read: {problem}") from problem
    if image.ndim != 2 or not np.isfinite(image).all():
        raise CanvasError(
            f"{path} has shape {image.shape}; a flat or dark image is one plane of finite values"
        )
    return image.astype(np.float32)


def given_flat_field(
    flat: Float32[np.ndarray, "y x"], dark: Float32[np.ndarray, "rows columns"] | float
) -> FlatField:
    """From measured images: the flat one less the dark one, over its mean."""
    if isinstance(dark, np.ndarray) and dark.shape != flat.shape:
        raise CanvasError(f"the dark image has shape {dark.shape}, the flat image {flat.shape}")
    light = flat - dark
    if not light.min() > 0:
        raise CanvasError("the flat image is nowhere to be darker than the dark one; are they exchanged?")
    return FlatField((light / light.mean()).astype(np.float32), dark)


def estimate_flat_field(
    planes: Iterable[Num[np.ndarray, "y x"]],
    *,
    degree: int = 4,
    dark: Float32[np.ndarray, "rows columns"] | float | None = None,
) -> FlatField:
    """The shading that planes or tiles of one channel share; of the planes one is held at a time.

    `dark` is by default the darkest value (`dark_value`). Structure that lies at the same place in
    all planes cannot be told from shading: give planes from all over, or tiles. Raises CanvasError where too
    little is lit.
    """
    reduced = reduce_planes(planes, _WORKED_AT, dark)
    small = reduced.light
    lit = small > 0.25 * np.quantile(small, 0.75)
    light = np.log(np.where(lit, small, 1))
    surface = _basis(small.shape[1:], degree)
    seen = lit.sum(axis=0) >= LEAST
    if seen.mean() < 0.3:
        raise CanvasError(
            f"only {seen.mean():.0%} of the plane is lit in the sampled planes; give a flat image"
        )
    log_flat = _fit(light, lit & seen, surface)
    flat = np.exp(_basis(reduced.shape_yx, degree) @ log_flat).reshape(reduced.shape_yx)
    return FlatField((flat / flat.mean()).astype(np.float32), reduced.dark)


def _fit(light: np.ndarray, lit: np.ndarray, surface: np.ndarray) -> np.ndarray:
    """Coefficients of the surface: it and each plane's brightness in turns, by reweighted least squares."""
    flat_light, weight = light.reshape(len(light), -1), lit.reshape(len(lit), -1).astype(float)
    coefficients = np.zeros(surface.shape[1])
    for _ in range(_ROUNDS):
        rest = flat_light - surface @ coefficients
        brightness = np.array(
            [np.median(row[w > 0]) if (w > 0).any() else 0.0 for row, w in zip(rest, weight, strict=True)]
        )
        rest = rest - brightness[:, None]
        spread = 1.4826 * np.median(np.abs(rest[weight > 0])) + 1e-6
        robust = weight / (1 + (rest / (2 * spread)) ** 2)
        each = robust.sum(axis=0)
        target = (robust * (flat_light - brightness[:, None])).sum(axis=0)
        gram = (surface * each[:, None]).T @ surface + 1e-6 * each.sum() * np.eye(surface.shape[1])
        coefficients = np.linalg.solve(gram, surface.T @ target)
    return coefficients


def _basis(shape: Sequence[int], degree: int) -> np.ndarray:
    """Products of Legendre polynomials up to a total degree, without the constant, as columns."""
    y, x = (legendre.legvander(np.linspace(-1, 1, n), degree) for n in shape)
    columns = [
        np.outer(y[:, a], x[:, b]).ravel() for a in range(degree + 1) for b in range(degree + 1 - a) if a + b
    ]
    return np.stack(columns, axis=1)
