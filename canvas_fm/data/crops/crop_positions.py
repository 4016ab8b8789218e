"""Crop origins: random, on foreground signal, on a grid."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64

from canvas_fm.data.volume.volume import Volume, Zyx
from canvas_fm.errors import CanvasError

_SAMPLE = 8_000_000  # voxels, in whole chunks, from which the threshold is taken
_MOST_CHUNKS = 8192  # chunks that are looked at for signal, however many crops are drawn
_MOST_VOXELS = 2**30


def grid_starts(shape_zyx: Zyx, crop_zyx: Zyx, step_zyx: Zyx) -> Int64[np.ndarray, "n 3"]:
    """First voxels 0, step, 2·step … of crops wholly inside the volume, in z, y, x order.

    Raises CanvasError where the crop is larger than the volume or a step is not positive.
    """
    check_crop_fits(shape_zyx, crop_zyx, "the volume")
    if min(step_zyx) < 1:
        raise CanvasError(f"the grid's step is {tuple(step_zyx)}; expected at least 1 voxel on each axis")
    axes = [np.arange(0, n - s + 1, step) for n, s, step in zip(shape_zyx, crop_zyx, step_zyx, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.int64)


def draw_starts(
    volume: Volume, crop_zyx: Zyx, n: int, *, foreground: float, seed: int
) -> Int64[np.ndarray, "n 3"]:
    """First voxels (n, 3), z, y, x, of random crops wholly inside the volume; reproducible by seed.

    A share `foreground` of them (rounded) holds signal: each is placed around a random voxel at or above the
    foreground threshold, which then lies anywhere in the crop's middle half. The rest is anywhere. Of a large
    volume only randomly drawn chunks are looked at, with as few crops from one chunk as there are chunks for.
    Raises CanvasError where the crop is larger than the volume, and where no voxel is brighter than the rest.
    """
    check_crop_fits(volume.shape_zyx, crop_zyx, volume.name)
    if not 0 <= foreground <= 1 or n < 0:
        raise CanvasError(
            f"{n} crops with a share {foreground} of foreground; expected n ≥ 0 and a share in [0, 1]"
        )
    random = np.random.default_rng(seed)
    crop = np.asarray(crop_zyx)
    room = np.asarray(volume.shape_zyx) - crop
    starts = random.integers(0, room + 1, (n, 3))
    on_signal = round(n * foreground)
    if on_signal:
        voxels = _signal_voxels(volume, on_signal, random)
        within = random.integers(crop // 4, np.maximum(crop - crop // 4, crop // 4 + 1), (on_signal, 3))
        starts[:on_signal] = np.clip(voxels - within, 0, room)
    return random.permutation(starts).astype(np.int64)


def check_crop_fits(shape_zyx: Zyx, crop_zyx: Zyx, name: str) -> None:
    """Raise CanvasError if a crop is larger than the volume on any axis."""
    if any(s < 1 for s in crop_zyx):
        raise CanvasError(f"the crop is {tuple(crop_zyx)}; expected sizes of at least 1")
    if any(s > n for s, n in zip(crop_zyx, shape_zyx, strict=True)):
        raise CanvasError(
            f"the crop {tuple(crop_zyx)} is larger than {name}, which is {tuple(shape_zyx)} (z, y, x): "
            "take a smaller crop or a larger volume"
        )


def _sample(volume: Volume, random: np.random.Generator) -> dict[Zyx, np.ndarray]:
    """Voxels of randomly drawn non-constant chunks, up to `_SAMPLE` in all."""
    sample: dict[Zyx, np.ndarray] = {}
    voxels_read = 0
    for index in _drawn_chunks(volume, random):
        chunk = volume.read_chunk(index)
        if chunk.dtype.kind == "f" and not np.isfinite(chunk).all():
            start = tuple(i * size for i, size in zip(index, volume.chunk_zyx, strict=True))
            raise CanvasError(
                f"{volume.name} holds NaN or infinite values near {start} (z, y, x); replace them first"
            )
        if chunk.min() < chunk.max():
            sample[index] = chunk
            voxels_read += chunk.size
        if voxels_read >= _SAMPLE:
            break
    return sample


def _threshold(volume: Volume, sample: dict[Zyx, np.ndarray]) -> float:
    """Foreground threshold in stored values: the 99th percentile, or halfway from median to 99.9th if more.

    The first where signal is plenty, the second where it is so sparse that the brightest hundredth is mostly
    noise. Where the 99.99th lies over four times as far out, it takes the place of the 99.9th.
    """
    if not sample:
        raise CanvasError(f"{volume.name} is equally bright everywhere: no crop of it holds signal")
    values = np.concatenate([chunk.ravel() for chunk in sample.values()])
    median, high, top, peak = np.percentile(values, (50, 99, 99.9, 99.99))
    if peak - median > 4 * (top - median):
        top = peak
    if top <= median:
        top = float(values.max())
    return float(max(high, (median + top) / 2))


def _signal_voxels(volume: Volume, n: int, random: np.random.Generator) -> Int64[np.ndarray, "n 3"]:
    """`n` random voxels at or above the threshold, from as many chunks as it takes."""
    seed = int(random.integers(2**62))
    sample = _sample(volume, np.random.default_rng(seed))
    threshold = _threshold(volume, sample)
    each = -(-n // min(int(np.prod(_grid(volume))), _MOST_CHUNKS))
    positions: list[np.ndarray] = []
    total = looked_at = 0
    for index in _drawn_chunks(volume, np.random.default_rng(seed)):
        chunk = sample[index] if index in sample else volume.read_chunk(index)
        bright = np.flatnonzero(chunk >= threshold)
        if len(bright):
            picked = random.choice(bright, min(each, len(bright)), replace=False)
            places = np.stack(np.unravel_index(picked, chunk.shape), axis=1)
            positions.append(places + np.multiply(index, volume.chunk_zyx))
            total += len(picked)
        looked_at += chunk.size
        if total >= n or looked_at > _MOST_VOXELS:
            break
    voxels = np.concatenate(positions)[:n]
    # Fewer bright voxels than crops: the same voxel again, elsewhere in its crop.
    again = voxels[random.integers(len(voxels), size=n - len(voxels))]
    return np.concatenate([voxels, again]).astype(np.int64)


def _grid(volume: Volume) -> Zyx:
    z, y, x = (-(-n // size) for n, size in zip(volume.shape_zyx, volume.chunk_zyx, strict=True))
    return z, y, x


def _drawn_chunks(volume: Volume, random: np.random.Generator) -> Iterator[Zyx]:
    """All chunks in random order; if there are millions, 2²⁰ random ones."""
    grid = _grid(volume)
    count = int(np.prod(grid))
    drawn = random.permutation(count) if count <= 2**20 else random.integers(count, size=2**20)
    for number in drawn[:_MOST_CHUNKS]:
        z, y, x = np.unravel_index(int(number), grid)
        yield int(z), int(y), int(x)
