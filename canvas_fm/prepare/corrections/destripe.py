"""Stripes of the light sheet removed from a plane: the FFT-wavelet hybrid filter.

Source: Münch, Trtik, Marone, Stampanoni 2009, Optics Express 17, 8567. The logarithm of the plane is cut into
wavelet bands; in each band that holds detail across the stripes, the slowest frequencies along them are the
stripes. Three things differ from that paper, all so that cells do not move. Foreground and what is not lit
are left out: the stripes below them are those of the rest of their rows, found in rounds. The surroundings
are taken off first, so that the rim of the tissue is no stripe. And the frequencies are those of a cosine
transform, so that a shadow that fades along its way does not wrap around the plane.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import pywt
from jaxtyping import Bool, Float32
from scipy.fft import dct, idct
from scipy.ndimage import uniform_filter, uniform_filter1d

from canvas_fm.errors import CanvasError
from canvas_fm.prepare.convert_flags import DestripeOptions

Number = TypeVar("Number", int, float)
_SURROUNDINGS = 25  # voxels a side, of a mean taken twice
_LIT = 0.3  # of the upper quartile: what is darker tells nothing of stripes
_ROUNDS = 4  # each sees better what is foreground, and takes what stripes are left
_LEAST_SHARE = 0.3  # of a row that is background: stripes of less are taken in part


class Destriper:
    """Removes stripes from planes, each by itself; `offset` is the camera's value without light."""

    def __init__(self, options: DestripeOptions, offset: float = 0.0) -> None:
        if options.wavelet not in pywt.wavelist(kind="discrete"):
            raise CanvasError(f"there is no wavelet {options.wavelet!r}; db3, sym4, bior2.2 are some")
        self.options, self.offset = options, offset

    def remove(self, plane: Float32[np.ndarray, "y x"]) -> Float32[np.ndarray, "y x"]:
        """The plane without its stripes, intensities in the same unit."""
        linear = np.maximum(plane - self.offset, 0).astype(np.float32)
        lit = linear > _LIT * np.quantile(linear, 0.75)
        if lit.mean() < 0.001:
            return plane
        light = np.log1p(linear)
        for at, axis in enumerate(self.options.stripes_along):
            if axis == "x":
                light = light - self._stripes(light, lit, at)
            else:
                light = light - self._stripes(light.T, lit.T, at).T
        return np.where(plane > self.offset, np.expm1(light) + np.float32(self.offset), plane)

    def _stripes(
        self, light: Float32[np.ndarray, "y x"], lit: Bool[np.ndarray, "y x"], at: int
    ) -> Float32[np.ndarray, "y x"]:
        """The logarithm of the stripes that run along x."""
        opts = self.options
        level, sigma = _of(opts.stripe_level, at), _of(opts.stripe_sigma, at)
        background, stripes = lit, np.zeros_like(light)
        for _ in range(_ROUNDS):
            weight = uniform_twice(background.astype(np.float32))
            around = uniform_twice(np.where(background, light - stripes, 0)) / np.maximum(weight, 1e-3)
            beyond = light - around
            rest = np.abs(beyond - stripes)
            spread = 1.4826 * float(np.median(rest[background][::7]))
            background = lit & (rest < opts.stripe_foreground * max(spread, 1e-4))
            left = np.where(background, beyond - stripes, 0)
            share = background.mean(axis=1, dtype=np.float32)
            share = np.maximum(uniform_filter1d(share, 5, mode="reflect"), np.float32(_LEAST_SHARE))
            stripes = stripes + band_stripes(left, sigma, level, opts.wavelet) / share[:, None]
        if opts.foreground_sigma:
            filled = np.where(background, beyond, stripes)
            below = band_stripes(filled, _of(opts.foreground_sigma, at), level, opts.wavelet)
            weight = np.clip(rest / max(opts.stripe_foreground * spread, 1e-4) - 1, 0, 1)
            stripes = stripes + weight * (below - stripes)
        return stripes.astype(np.float32)


def _of(values: Sequence[Number], at: int) -> Number:
    """The value of one axis, where one may stand for all."""
    return values[at] if len(values) > 1 else values[0]


def uniform_twice(plane: Float32[np.ndarray, "y x"]) -> Float32[np.ndarray, "y x"]:
    """A running mean of a running mean: near to a Gaussian, whatever its width."""
    for _ in range(2):
        plane = uniform_filter(plane, _SURROUNDINGS, mode="reflect")
    return plane


def band_stripes(
    light: Float32[np.ndarray, "y x"], sigma: float, level: int, wavelet: str
) -> Float32[np.ndarray, "y x"]:
    """Stripes of a plane, along x, by the hybrid filter.

    `sigma` is the standard deviation of the damped band, in cycles a plane's width, the same in every wavelet
    level; `level` 0 is as many levels as the plane allows.
    """
    most = pywt.dwtn_max_level(light.shape, wavelet)
    levels = min(level or most, most)
    if levels < 1:
        raise CanvasError(f"planes of {light.shape} are too small for the wavelet {wavelet}; do not destripe")
    # Wavelets err at the first and last rows: these are mirrored ones, which are cut off again.
    beyond = min(3 * 2**levels, light.shape[0])
    details, rest = [], np.pad(light, ((beyond, beyond), (0, 0)), mode="symmetric")
    for _ in range(levels):
        rest, (across, _, _) = pywt.dwt2(rest, wavelet, mode="symmetric")
        spectrum = dct(across, axis=1, norm="ortho")
        cycles = np.arange(spectrum.shape[1], dtype=np.float32) / 2
        spectrum *= np.exp(-(cycles**2) / np.float32(2 * sigma**2))
        details.append(idct(spectrum, axis=1, norm="ortho"))
    stripes = np.zeros_like(rest)
    for across in reversed(details):
        stripes = stripes[: across.shape[0], : across.shape[1]]
        stripes = pywt.idwt2((stripes, (across, None, None)), wavelet, mode="symmetric")
    return stripes[beyond : beyond + light.shape[0], : light.shape[1]].astype(np.float32)


def stripe_energy(plane: Float32[np.ndarray, "y x"], offset: float = 0.0, along: str = "x") -> float:
    """Mean square of what each lit row has beyond the rows around it, in logarithms of its median."""
    linear = np.maximum(plane - offset, 0)
    linear = linear if along == "x" else linear.T
    lit = linear > _LIT * np.quantile(linear, 0.75)
    held = lit.mean(axis=1) > 0.3
    if held.sum() < _SURROUNDINGS:
        return 0.0
    rows = np.array([np.median(row[on]) for row, on in zip(linear[held], lit[held], strict=True)])
    logs = np.log1p(rows)
    return float(np.mean((logs - uniform_filter1d(logs, _SURROUNDINGS, mode="nearest")) ** 2))


def decibels(before: float, after: float) -> float:
    """Ratio of two energies in dB: how far the first fell."""
    return 10 * math.log10(max(before, 1e-12) / max(after, 1e-12))
