"""Sizes of the networks as frozen models, without torch: what recipes and model folders say of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal, Self

import numpy as np
from jaxtyping import Float64, Int64
from pydantic import Field, model_serializer, model_validator

from canvas_fm.files.option_sets import FrozenModel

Pool = Literal["mean", "cls", "centre", "contrast"]
Intensity = Literal["window", "contrast"]


class DescriptorsConfig(FrozenModel):
    """Which descriptors of a crop follow the pooled tokens in an embedding.

    `components` principal components of its contrast; the logarithms of mean, maximum, deviation and minimum
    within balls of `radii_um` around the centre, of the means in the shells between them, and of mean,
    maximum and deviation of the whole; size and moments of what rises above the outermost shell in the ball
    before the last. `voxel_um` is the voxel size that the radii are of.
    """

    components: int = Field(default=96, ge=1)
    radii_um: tuple[float, ...] = Field(default=(2.0, 4.0, 6.0, 9.0, 13.0), min_length=2)
    voxel_um: tuple[float, float, float]

    @property
    def numbers(self) -> int:
        """Number of descriptors."""
        balls, shells, whole, shape = 4 * len(self.radii_um), len(self.radii_um) - 1, 3, 8
        return self.components + balls + shells + whole + shape


def centre_offsets_um(
    crop_zyx: tuple[int, int, int], voxel_um: tuple[float, float, float]
) -> Float64[np.ndarray, "n 3"]:
    """Offset of each voxel of a crop from its centre voxel, size // 2."""
    axes = [(np.arange(n) - n // 2) * um for n, um in zip(crop_zyx, voxel_um, strict=True)]
    return np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)


def ball_voxels(crop_zyx: tuple[int, int, int], config: DescriptorsConfig) -> list[Int64[np.ndarray, " n"]]:
    """Flat indices of a crop's voxels within each radius of its centre."""
    squared = (centre_offsets_um(crop_zyx, config.voxel_um) ** 2).sum(axis=1)
    return [np.flatnonzero(squared <= radius**2 * (1 + 1e-9)) for radius in config.radii_um]


class EncoderConfig(FrozenModel):
    """Sizes of the encoder; crop and patch in voxels z, y, x. The paper's has 10,746,624 parameters.

    `intensity` is what it sees of windowed voxels: `window`, as they are, or `contrast`, in deviations of the
    crop from the crop's mean, so that a spot in bright tissue is like one in dim tissue. With `levels` its
    tokens also know how bright a patch and how large the crop's contrast is, over the crop's mean, which
    `contrast` takes out. With `channels` 2 it sees signal and background, each in its own scale. With
    `descriptors` a crop's embedding is its pooled tokens and, behind them, these.
    """

    crop_zyx: tuple[int, int, int] = (16, 32, 32)
    patch_zyx: tuple[int, int, int] = (4, 8, 8)
    dim: int = 384
    depth: int = 6
    heads: int = 6
    mlp_ratio: float = 4.0
    intensity: Intensity = "window"
    channels: int = 1
    levels: bool = False
    descriptors: DescriptorsConfig | None = None

    @model_serializer(mode="wrap")
    def _as_before(self, write: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Of one channel, without levels and descriptors, as before there were any: its sha256 stays."""
        before = {"channels": 1, "levels": False, "descriptors": None}
        return {key: value for key, value in write(self).items() if before.get(key) != value}

    @model_validator(mode="after")
    def _sizes_fit(self) -> EncoderConfig:
        _check_channels(self.channels)
        if min(*self.crop_zyx, *self.patch_zyx, self.dim, self.depth, self.heads) < 1 or self.mlp_ratio <= 0:
            raise ValueError("every size has to be positive")
        if any(c % p for c, p in zip(self.crop_zyx, self.patch_zyx, strict=True)):
            raise ValueError(f"crop {self.crop_zyx} is not a whole number of patches {self.patch_zyx}")
        if self.dim % 6 or self.dim % self.heads:
            raise ValueError(f"dim {self.dim} has to be divisible by 6 (positions) and by heads {self.heads}")
        if self.levels and (self.intensity != "contrast" or self.channels != 1):
            raise ValueError("levels go with intensity contrast and one channel; leave levels out")
        if self.descriptors is not None:
            self._descriptors_fit(self.descriptors)
        return self

    def _descriptors_fit(self, descriptors: DescriptorsConfig) -> None:
        if self.channels != 1:
            raise ValueError("descriptors are of one channel; leave descriptors out")
        if descriptors.components > math.prod(self.crop_zyx):
            raise ValueError(
                f"descriptors.components is {descriptors.components}, and a crop has "
                f"{math.prod(self.crop_zyx)} voxels; give fewer"
            )
        sizes = [0, *map(len, ball_voxels(self.crop_zyx, descriptors))]
        if len(sizes) == 1 or any(outer <= inner for inner, outer in pairwise(sizes)):
            raise ValueError(
                f"descriptors.radii_um are {descriptors.radii_um}, which hold {sizes[1:]} voxels of "
                f"{descriptors.voxel_um} µm in a crop of {self.crop_zyx}; each has to hold more than the one "
                "before: give other radii"
            )

    @property
    def grid_zyx(self) -> tuple[int, int, int]:
        """Number of patches along z, y, x: (4, 4, 4) for all the paper's crop and patch pairs."""
        z, y, x = (c // p for c, p in zip(self.crop_zyx, self.patch_zyx, strict=True))
        return z, y, x

    @property
    def tokens(self) -> int:
        """Number of patches in a crop."""
        return math.prod(self.grid_zyx)

    @property
    def embedding_dim(self) -> int:
        """Numbers of an embedding: the tokens' width, and the descriptors behind it."""
        return self.dim + (0 if self.descriptors is None else self.descriptors.numbers)

    @property
    def patch_voxels(self) -> int:
        """Number of values in a patch: its voxels in each channel."""
        return self.channels * math.prod(self.patch_zyx)


class DecoderConfig(FrozenModel):
    """Sizes of the decoder; the paper's has 1,903,360 parameters for 4×8×8 patches.

    `targets` is what its output stands for: `voxels`, in the scale in which the encoder sees the crop, or
    `patch`, each patch in deviations from its own mean (He et al., "Masked Autoencoders Are Scalable Vision
    Learners"). To become voxels again the latter needs the mean and the deviation of the patches that were
    hidden, so how near it comes is not to be compared with what predicts those too.
    """

    dim: int = 192
    depth: int = 4
    heads: int = 3
    targets: Literal["voxels", "patch"] = "voxels"

    @property
    def masked_statistics(self) -> str | None:
        """Which statistics of masked patches a voxel prediction was given; None for none."""
        return "mean and deviation of each hidden patch" if self.targets == "patch" else None

    @model_validator(mode="after")
    def _sizes_fit(self) -> DecoderConfig:
        if min(self.dim, self.depth, self.heads) < 1 or self.dim % 6 or self.dim % self.heads:
            raise ValueError(f"decoder dim {self.dim} has to be divisible by 6 and by heads {self.heads}")
        return self


def _check_channels(channels: int) -> None:
    if channels not in (1, 2):
        raise ValueError(f"channels is {channels}; 1 (signal) or 2 (signal and background) expected")


def masked_count(mask_ratio: float, tokens: int = 64) -> int:
    """Number of masked patches: tokens − int(tokens·(1 − ratio)); 10, 23, 36, 48 at .15, .35, .55, .75."""
    return tokens - int(tokens * (1 - mask_ratio))


class LocalContrastConfig(FrozenModel):
    """Options of the local-contrast input; see `LocalContrast`.

    `width` is the window's width in the unit that intensities are compared in: for a window from 0 to 64
    medians 64. `surround_zyx` is the box of patches, odd on each axis, that a voxel is compared with.
    """

    width: float = Field(default=64.0, gt=0)
    surround_zyx: tuple[int, int, int] = (7, 9, 9)

    @model_validator(mode="after")
    def _has_a_centre(self) -> LocalContrastConfig:
        if any(n < 1 or n % 2 == 0 for n in self.surround_zyx):
            raise ValueError(f"surround_zyx {self.surround_zyx} has to be odd on each axis")
        return self


class ConvMixerConfig(FrozenModel):
    """Sizes of the net: patch in voxels, kernel in patches; with `channels` 2 also a background channel."""

    patch_zyx: tuple[int, int, int] = (1, 4, 4)
    dim: int = 48
    depth: int = 4
    kernel_zyx: tuple[int, int, int] = (5, 5, 5)
    channels: int = 1
    contrast: LocalContrastConfig | None = None

    @model_validator(mode="after")
    def _sizes_fit(self) -> ConvMixerConfig:
        if min(*self.patch_zyx, *self.kernel_zyx, self.dim, self.depth) < 1:
            raise ValueError("every size has to be positive")
        if any(k % 2 == 0 for k in self.kernel_zyx):
            raise ValueError(f"kernel {self.kernel_zyx} has to be odd on each axis, so that it has a centre")
        _check_channels(self.channels)
        return self

    @property
    def halo_zyx(self) -> tuple[int, int, int]:
        """Receptive field around a patch in voxels: whole patches, `depth` half kernels deep.

        With local contrast half a surround more.
        """
        around = (1, 1, 1) if self.contrast is None else self.contrast.surround_zyx
        z, y, x = (
            (self.depth * (k // 2) + n // 2) * p
            for k, n, p in zip(self.kernel_zyx, around, self.patch_zyx, strict=True)
        )
        return z, y, x


class ProjectorConfig(FrozenModel):
    """Sizes of the projector between embedding and loss; discarded after training."""

    hidden: int = Field(default=512, gt=0)
    dim: int = Field(default=128, gt=1)


class AmplitudeConfig(FrozenModel):
    """Blob amplitude in a detector's scores; see `canvas_fm.inference.detect.maxima.blob_amplitude`.

    The amplitude is that of a Laplacian of a Gaussian of `sigma_um` on windowed voxels times `unit`: with a
    window from 0 to 64 medians and a unit of 64 it is in medians of the volume. With `relative` its unit is
    that of the detections around instead, in blocks of the detector's `relative`, which has to be given too:
    true for their strongest, by rank, "typical" for the median of the surer ones. Where these are of two
    kinds, bright cells and dim processes or debris, `classes_apart` makes it the median of the bright ones:
    not at all where these are less than the first number of times brighter, in full from the second on.
    """

    sigma_um: float = Field(gt=0)
    weight: float = Field(gt=0)
    unit: float = Field(default=1.0, gt=0)
    relative: bool | Literal["typical"] = False
    classes_apart: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _classes_are_of_typical_ones(self) -> Self:
        if self.classes_apart is None:
            return self
        first, full = self.classes_apart
        if self.relative != "typical":
            raise ValueError("amplitude.classes_apart needs amplitude.relative: typical")
        if not 1 <= first < full:
            raise ValueError(
                f"amplitude.classes_apart is {list(self.classes_apart)}: give two ratios of brightness, the "
                "first at least 1 and below the second"
            )
        return self


def check_amplitude(amplitude: AmplitudeConfig | None, relative: RelativeConfig | None) -> None:
    """ValueError where amplitudes are to count against those around, and nothing says which these are."""
    if amplitude is not None and amplitude.relative and relative is None:
        raise ValueError("amplitude.relative needs relative: its rank and block_um say what is around")
    if relative is not None and not relative.weight and not (amplitude and amplitude.relative):
        raise ValueError("relative.weight is 0 and amplitude.relative is not set: nothing is relative then")


class RelativeConfig(FrozenModel):
    """Parameters of scores taken against the strongest around; see `inference.detect.maxima.relative_score`.

    With a weight of 0 only the blob's amplitude is, by `amplitude.relative`.
    """

    weight: float = Field(ge=0, le=1)
    rank: int = Field(default=10, ge=1)
    block_um: float = Field(default=300.0, gt=0)
    least: float = Field(gt=0, lt=1)
