"""Stripes of the light sheet removed from a plane: the FFT-wavelet hybrid filter.

Source: Münch, Trtik, Marone, Stampanoni 2009, Optics Express 17, 8567. The plane's logarithm is cut into
wavelet bands; of each band that holds detail across the stripes, the slowest frequencies along them are
damped. Two things differ from that paper, both because cells must not move. Foreground is clipped to its
surroundings before the filter, so that a bright cell leaves no dark row behind and loses no height; what the
filter removes from the background is then divided out of both. And the frequencies are those of a cosine
transform, so that a shadow that fades along its way does not wrap around the plane.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import pywt
from jaxtyping import Float32
from scipy.fft import dct, idct
from scipy.ndimage import gaussian_filter, uniform_filter1d

from canvas_fm.errors import CanvasError
from canvas_fm.prepare.options import DestripeOptions

Number = TypeVar("Number", int, float)
_SURROUNDINGS = 12.0  # voxels, the standard deviation of what foreground is held against
_SOFT = 0.5  # robust deviations over which background passes into foreground


class Destriper:
    """Removes stripes from planes, each by itself; `offset` is the camera's value without light."""

    def __init__(self, options: DestripeOptions, offset: float = 0.0) -> None:
        if options.wavelet not in pywt.wavelist(kind="discrete"):
            raise CanvasError(
                f"there is no wavelet {options.wavelet!r}; db3, sym4, bior2.2 and others are known"
            )
        self.options, self.offset = options, offset

    def remove(self, plane: Float32[np.ndarray, "y x"]) -> Float32[np.ndarray, "y x"]:
        """The plane without its stripes, intensities in the same unit."""
        light = np.log(np.maximum(plane - self.offset, 0) + 1)
        for axis in range(len(self.options.stripes_along)):
            light -= self._stripes(light, axis)
        return np.where(plane > self.offset, np.exp(light) - 1 + self.offset, plane).astype(np.float32)

    def _stripes(self, light: np.ndarray, at: int) -> np.ndarray:
        """The logarithm of the stripes along one axis."""
        along_y = self.options.stripes_along[at] == "y"
        rows = light.T if along_y else light
        clipped, foreground = clip_foreground(rows, self.options.stripe_foreground)
        level = _of(self.options.stripe_level, at)
        stripes = band_stripes(clipped, _of(self.options.stripe_sigma, at), level, self.options.wavelet)
        if self.options.foreground_sigma:
            sigma = _of(self.options.foreground_sigma, at)
            beneath = band_stripes(clipped, sigma, level, self.options.wavelet)
            stripes += foreground * (beneath - stripes)
        return stripes.T if along_y else stripes


def _of(values: Sequence[Number], at: int) -> Number:
    """The value of one axis, where one may stand for all."""
    return values[at] if len(values) > 1 else values[0]


def clip_foreground(
    light: Float32[np.ndarray, "y x"], deviations: float
) -> tuple[Float32[np.ndarray, "y x"], Float32[np.ndarray, "y x"]]:
    """The plane with what stands out of its surroundings cut to their level, and how far it does (0 to 1)."""
    smooth = gaussian_filter(light, _SURROUNDINGS, mode="nearest", truncate=3)
    rest = light - smooth
    spread = 1.4826 * float(np.median(np.abs(rest - np.median(rest)))) or 1e-3
    limit = deviations * spread
    foreground = np.clip((rest - limit) / (_SOFT * spread), 0, 1).astype(np.float32)
    return np.where(rest > limit, smooth, light).astype(np.float32), foreground


def band_stripes(
    light: Float32[np.ndarray, "y x"], sigma: float, level: int, wavelet: str
) -> Float32[np.ndarray, "y x"]:
    """What the hybrid filter takes out of a plane whose stripes run along x.

    `sigma` is the standard deviation of the damped band, in cycles a plane's width, the same in every wavelet
    level; `level` 0 is as many levels as the plane allows.
    """
    most = pywt.dwtn_max_level(light.shape, wavelet)
    levels = min(level or most, most)
    if levels < 1:
        raise CanvasError(
            f"a plane of {light.shape} is too small for the wavelet {wavelet}; leave destriping out"
        )
    details, rest = [], light
    for _ in range(levels):
        rest, (across, _, _) = pywt.dwt2(rest, wavelet, mode="symmetric")
        spectrum = dct(across, axis=1, norm="ortho")
        cycles = np.arange(spectrum.shape[1], dtype=np.float32) / 2
        spectrum *= np.exp(-(cycles**2) / (2 * sigma**2))
        details.append((idct(spectrum, axis=1, norm="ortho"), rest.shape))
    stripes = np.zeros_like(rest)
    for across, _ in reversed(details):
        stripes = stripes[: across.shape[0], : across.shape[1]]
        stripes = pywt.idwt2((stripes, (across, None, None)), wavelet, mode="symmetric")
    return stripes[: light.shape[0], : light.shape[1]].astype(np.float32)


def stripe_energy(plane: Float32[np.ndarray, "y x"], offset: float = 0.0, along: str = "x") -> float:
    """Mean square of the row-to-row variation that a whole row shares, in logarithms of the background."""
    light = np.log(np.maximum(plane - offset, 0) + 1)
    rows = np.median(light if along == "x" else light.T, axis=1)
    return float(np.mean((rows - uniform_filter1d(rows, 31, mode="nearest")) ** 2))


def decibels(before: float, after: float) -> float:
    """How far an energy fell."""
    return 10 * math.log10(max(before, 1e-300) / max(after, 1e-300))
