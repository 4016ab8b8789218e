"""Tiling of a volume with halos, so that tiles give the result of the whole volume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float64, Int, Num, Real

from canvas_fm.errors import CanvasError

if TYPE_CHECKING:
    from canvas_fm.data.volume.volume import Volume, Zyx, ZyxUm

MOST_VOXELS = 48_000_000  # of a tile with its halo: about 1.5 GB
_LEAST_SIDE = 32  # of a tile, in voxels
_MOST_READS = 100  # of a voxel; a tile of half its halo takes 125
_MOST_TILES = 1_000_000
Region = tuple[int, int, int, int, int, int]


@dataclass(frozen=True)
class Box:
    """Voxels from `start` to `stop`, excluded."""

    start: Zyx
    stop: Zyx

    @property
    def size(self) -> Zyx:
        z, y, x = (b - a for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    @property
    def voxels(self) -> int:
        return math.prod(self.size)

    def inside(self, outer: Box) -> tuple[slice, slice, slice]:
        """Slices of this box in an array that covers `outer`."""
        z, y, x = (slice(a - o, b - o) for a, b, o in zip(self.start, self.stop, outer.start, strict=True))
        return z, y, x

    def grown(self, margin: Sequence[int], within: Box, align: Zyx = (1, 1, 1)) -> Box:
        """This box plus a margin, rounded to multiples of `align`, clipped to `within`."""
        start = [
            max((a - m) // n * n, w)
            for a, m, n, w in zip(self.start, margin, align, within.start, strict=True)
        ]
        stop = [
            min(-(-(b + m) // n) * n, w)
            for b, m, n, w in zip(self.stop, margin, align, within.stop, strict=True)
        ]
        return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))

    def holds(self, zyx: Int[np.ndarray, "n 3"]) -> Bool[np.ndarray, " n"]:
        return np.all((zyx >= self.start) & (zyx < self.stop), axis=1)


def whole(shape_zyx: Zyx) -> Box:
    return Box((0, 0, 0), shape_zyx)


def as_region(region: Sequence[int] | None, shape_zyx: Zyx) -> Box:
    """A box Z0 Y0 X0 Z1 Y1 X1 inside the volume; None is all of it."""
    if region is None:
        return whole(shape_zyx)
    if len(region) != 6:
        raise CanvasError(f"region has {len(region)} numbers; expected six: Z0 Y0 X0 Z1 Y1 X1")
    z0, y0, x0, z1, y1, x1 = (int(value) for value in region)
    box = Box((z0, y0, x0), (z1, y1, x1))
    if (
        min(box.start) < 0
        or min(box.size) < 1
        or any(b > n for b, n in zip(box.stop, shape_zyx, strict=True))
    ):
        raise CanvasError(
            f"region {' '.join(map(str, region))} does not lie in the volume: Z0 Y0 X0 Z1 Y1 X1 have to rise "
            f"within 0 0 0 {' '.join(map(str, shape_zyx))}"
        )
    return box


def cut(region: Box, tile_zyx: Zyx) -> list[Box]:
    """Tile a box: boxes of at most that size in z, y, x order, on a grid from the volume's corner."""
    axes = []
    for a, b, n in zip(region.start, region.stop, tile_zyx, strict=True):
        edges = [a, *range((a // n + 1) * n, b, n), b]
        axes.append(list(pairwise(edges)))
    return [Box((z[0], y[0], x[0]), (z[1], y[1], x[1])) for z, y, x in product(*axes)]


def check_tile(region: Box, tile_zyx: Zyx, reach_zyx: Zyx, extent: Box) -> None:
    """CanvasError for tiles that are so small beside `reach_zyx`, their halo, that detection hardly ends."""
    reads, tiles = 1.0, 1
    for axis in range(3):
        first, last, n, halo = region.start[axis], region.stop[axis], tile_zyx[axis], reach_zyx[axis]
        edges = np.unique(np.r_[first, np.arange((first // n + 1) * n, last, n), last])
        starts = np.maximum(edges[:-1] - halo, extent.start[axis])
        reads *= float((np.minimum(edges[1:] + halo, extent.stop[axis]) - starts).sum()) / (last - first)
        tiles *= len(starts)
    if reads > _MOST_READS or tiles > _MOST_TILES:
        given, halo_zyx = (" ".join(map(str, each)) for each in (tile_zyx, reach_zyx))
        raise CanvasError(
            f"tiles of {given} voxels (z, y, x) are {tiles:,}, which read each voxel {reads:,.0f} times, as "
            f"each needs up to {halo_zyx} more on each side; leave --tile out, or give several times that"
        )


def fit_tile(
    extent_zyx: Zyx, reach_zyx: Zyx, align_zyx: Zyx, most_voxels: int = MOST_VOXELS
) -> tuple[int, int, int]:
    """The tile by which a volume is read with the fewest voxels read twice.

    Of those that hold at most `most_voxels` with `reach_zyx` on each side, whole multiples of `align_zyx`;
    the largest at a tie. One that is needed is taken even where it is above.
    """
    axes = []
    for n, reach, align in zip(extent_zyx, reach_zyx, align_zyx, strict=True):
        parts = np.arange(1, -(-n // max(align, _LEAST_SIDE)) + 1)
        size = np.ceil(np.ceil(n / parts) / align).astype(int) * align
        parts = np.ceil(n / size).astype(int)
        axes.append((size, np.minimum(size + 2 * reach, n), (n + 2 * reach * (parts - 1)) / n))
    held = axes[0][1][:, None, None] * axes[1][1][:, None] * axes[2][1]
    cost = axes[0][2][:, None, None] * axes[1][2][:, None] * axes[2][2]
    allowed = np.where(held <= max(most_voxels, held.min()), cost, np.inf)
    z, y, x = np.unravel_index(np.argmin(allowed), allowed.shape)
    return int(axes[0][0][z]), int(axes[1][0][y]), int(axes[2][0][x])


@runtime_checkable
class Readable(Protocol):
    """Protocol: read by boxes, such as a volume or a resampled one."""

    @property
    def shape_zyx(self) -> Zyx: ...

    @property
    def voxel_um(self) -> ZyxUm: ...

    def read(self, origin_zyx: Zyx, size_zyx: Zyx) -> np.ndarray: ...


class Resampled:
    """A volume resampled to `voxel_um`, voxel 0 on voxel 0.

    Linear between voxels, a weighted mean where the new voxels are larger. A voxel depends on its place
    alone, not on the box that it is read in.
    """

    def __init__(self, volume: Volume, voxel_um: ZyxUm) -> None:
        self.volume, self.voxel_um = volume, voxel_um
        self.ratio = np.asarray(voxel_um, np.float64) / np.asarray(volume.voxel_um, np.float64)
        last = np.floor((np.asarray(volume.shape_zyx) - 1) / self.ratio + 1e-9).astype(int)
        self.shape_zyx: Zyx = (int(last[0]) + 1, int(last[1]) + 1, int(last[2]) + 1)

    def read(self, origin_zyx: Zyx, size_zyx: Zyx) -> Num[np.ndarray, "z y x"]:
        """A box in voxels of `voxel_um`, inside the volume; float32, original intensities."""
        axes = [self._weights(axis, origin_zyx[axis], size_zyx[axis]) for axis in range(3)]
        first = tuple(first for first, _ in axes)
        size = tuple(weights.shape[1] for _, weights in axes)
        box = self.volume.read(first, size).astype(np.float32)
        for axis, (_, weights) in enumerate(axes):
            box = np.moveaxis(np.tensordot(weights.astype(np.float32), box, axes=(1, axis)), 0, axis)
        return np.ascontiguousarray(box)

    def to_volume(self, zyx: Real[np.ndarray, "n 3"]) -> Float64[np.ndarray, "n 3"]:
        """Positions converted to voxels of the original volume."""
        return np.asarray(zyx, np.float64) * self.ratio

    def box(self, box: Box) -> Box:
        """Voxels of `voxel_um` whose centres are in a box of the original volume; not empty."""
        ends = [np.ceil((np.asarray(end) - 0.5) / self.ratio).astype(int) for end in (box.start, box.stop)]
        start, stop = (np.clip(end, 0, self.shape_zyx).tolist() for end in ends)
        if any(a >= b for a, b in zip(start, stop, strict=True)):
            raise CanvasError(
                f"the region from {box.start} to {box.stop} (z, y, x) is thinner than a voxel of "
                "the model: give a larger one"
            )
        return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))

    def _weights(self, axis: int, origin: int, size: int) -> tuple[int, np.ndarray]:
        """First voxel to read along an axis, and the weights of each sample."""
        ratio, n = float(self.ratio[axis]), self.volume.shape_zyx[axis]
        place = (origin + np.arange(size)) * ratio
        support = max(ratio, 1.0)
        first = max(int(np.floor(place[0] - support)), 0)
        voxels = np.arange(first, min(int(np.ceil(place[-1] + support)), n - 1) + 1)
        away = voxels[None] - place[:, None]
        # A triangle as wide as the larger voxel: linear interpolation, and a mean where samples are coarser,
        # which is then moved onto the sample's place, so that ramps stay ramps.
        weights = np.clip(1 - np.abs(away) / support, 0, None)
        weights /= weights.sum(axis=1, keepdims=True)
        moment = (weights * away).sum(axis=1, keepdims=True)
        spread = (weights * away**2).sum(axis=1, keepdims=True) - moment**2
        inner = ((place >= support) & (place <= n - 1 - support))[:, None] & (spread > 1e-9)
        tilt = np.divide(moment, spread, out=np.zeros_like(moment), where=inner)
        return first, weights * (1 - tilt * (away - moment))


def pad_to(voxels: Num[np.ndarray, "c z y x"], align: Zyx) -> Num[np.ndarray, "c pz py px"]:
    """Replicate-pad the far border to a multiple of `align` on every axis."""
    more = [-n % a for n, a in zip(voxels.shape[1:], align, strict=True)]
    return np.pad(voxels, [(0, 0), *((0, m) for m in more)], mode="edge") if any(more) else voxels
