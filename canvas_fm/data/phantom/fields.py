"""Building blocks of phantoms that depend on position alone: smooth noise, pasting, splatting."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64

from canvas_fm.data.phantom.randomised.shapes import Samples


def noise(
    low: np.ndarray, high: np.ndarray, voxel_um: np.ndarray, pitch_um: Sequence[float], stream: Sequence[int]
) -> Float64[np.ndarray, "z y x"]:
    """Smooth noise in [0, 1] on the voxels [low, high): random lattice values, smoothly interpolated."""
    axes = [
        np.arange(a, b) * size / pitch
        for a, b, size, pitch in zip(low, high, voxel_um, pitch_um, strict=True)
    ]
    nodes = [np.arange(int(axis[0]), int(axis[-1]) + 2) for axis in axes]
    field = _hashed(np.meshgrid(*nodes, indexing="ij"), stream)
    for at, axis in enumerate(axes):
        cell = np.floor(axis).astype(int)
        part = _ease(axis - cell).reshape([-1 if at == other else 1 for other in range(3)])
        before, after = (field.take(cell - nodes[at][0] + step, axis=at) for step in (0, 1))
        field = before + (after - before) * part
    return field


def noise_at(
    places_um: Float64[np.ndarray, "n 3"], pitch_um: float, stream: Sequence[int]
) -> Float64[np.ndarray, " n"]:
    """The noise field of `noise` at single positions."""
    cell = np.floor(places_um / pitch_um).astype(int)
    part = _ease(places_um / pitch_um - cell)
    total = np.zeros(len(places_um))
    for corner in itertools.product((0, 1), repeat=3):
        weight = np.prod(np.where(np.array(corner), part, 1 - part), axis=1)
        total += weight * _hashed((cell + corner).T, stream)
    return total


def _ease(part: np.ndarray) -> np.ndarray:
    return part * part * (3 - 2 * part)


def _hashed(nodes: Sequence[np.ndarray] | np.ndarray, stream: Sequence[int]) -> Float64[np.ndarray, ...]:
    """A pseudo-random value in [0, 1) of each lattice node, by the finaliser of SplitMix64."""
    value = np.full(nodes[0].shape, np.random.SeedSequence(stream).generate_state(1, np.uint64)[0])
    with np.errstate(over="ignore"):
        for axis in nodes:
            value = (value ^ axis.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
            value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            value ^= value >> np.uint64(31)
    return (value >> np.uint64(11)) * 2.0**-53


def add_patch(
    light: Float64[np.ndarray, "z y x"], patch: Float64[np.ndarray, "pz py px"], at: np.ndarray
) -> None:
    """Add a patch whose first voxel is `at` to a block, clipped at the block's border."""
    into, of = overlap(light.shape, patch.shape, at)
    light[into] += patch[of]


def paste_mask(numbers: np.ndarray, patch: Bool[np.ndarray, "pz py px"], at: np.ndarray, number: int) -> bool:
    """Write `number` into the block where the patch is set; returns whether any voxel was written."""
    into, of = overlap(numbers.shape, patch.shape, at)
    numbers[into][patch[of]] = number
    return bool(patch[of].any())


def overlap(
    size: Sequence[int], patch: Sequence[int] | np.ndarray, at: np.ndarray
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Slices of a block of `size` and of a patch whose corner is put at `at`: where they overlap."""
    low = np.maximum(at, 0)
    high = np.maximum(np.minimum(at + patch, size), low)
    into = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    return into, tuple(slice(a - o, b - o) for a, b, o in zip(low, high, at, strict=True))


def splat(
    light: Float64[np.ndarray, "z y x"], samples: Sequence[Samples], origin: np.ndarray, voxel_um: np.ndarray
) -> None:
    """Add point samples of light to the eight voxels around each, by trilinear weights."""
    if not samples:
        return
    place = np.concatenate([part.um for part in samples]) / voxel_um - origin
    amount = np.concatenate([part.light for part in samples]) / voxel_um.prod()
    inside = np.all((place > -1) & (place < light.shape), axis=1)
    place, amount = place[inside], amount[inside]
    cell = np.floor(place).astype(np.int64)
    part = place - cell
    for corner in itertools.product((0, 1), repeat=3):
        voxel = cell + corner
        share = amount * np.prod(np.where(np.array(corner), part, 1 - part), axis=1)
        valid = np.all((voxel >= 0) & (voxel < light.shape), axis=1)
        np.add.at(light, tuple(voxel[valid].T), share[valid])
