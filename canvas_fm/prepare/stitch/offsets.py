"""Registration of overlapping tiles: phase correlation of each pair, then least squares over all."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Num
from scipy.fft import irfftn, rfftn
from scipy.ndimage import gaussian_filter
from scipy.signal.windows import tukey

from canvas_fm.data.zyx import Zyx
from canvas_fm.errors import CanvasError
from canvas_fm.prepare.stitch.tiles import Tile

_CROP: Zyx = (32, 384, 384)  # of an overlap, what is correlated: where it has most structure
_PEAKS = 6  # of the phase correlation, that are compared by the correlation of the voxels
_LEAST = 8  # voxels along y and x below which an overlap tells nothing
_LEAST_SHARE = 0.2  # of the crop that has to be left when it is moved
_TOLERANCE = 2.0  # voxels that a pair may be off the common solution


class Pair(NamedTuple):
    """Two tiles by number, the shift of the second against its stated place, and the correlation there."""

    first: int
    second: int
    shift_zyx: tuple[float, float, float]
    correlation: float


class Solution(NamedTuple):
    """Shifts (n, 3) of all tiles, the pairs that they follow, and those that were left out."""

    shifts_zyx: np.ndarray
    used: list[Pair]
    dropped: list[Pair]


def overlapping(tiles: Sequence[Tile]) -> list[tuple[int, int]]:
    """Pairs of tiles that share voxels; CanvasError that names tiles which share none with any other."""
    pairs = [
        (i, j)
        for i, j in itertools.combinations(range(len(tiles)), 2)
        if (size := _shared(tiles[i], tiles[j])[1])[0] > 0 and min(size[1:]) >= _LEAST
    ]
    alone = [tile.name for i, tile in enumerate(tiles) if not any(i in pair for pair in pairs)]
    if alone:
        raise CanvasError(
            f"the tiles {', '.join(alone)} overlap with no other by {_LEAST} voxels or more: are voxel size "
            "and positions those of the microscope?"
        )
    return pairs


def measure_pair(tiles: Sequence[Tile], first: int, second: int, max_shift: int) -> Pair:
    """The shift between two tiles, to a fraction of a voxel."""
    a, b = tiles[first], tiles[second]
    low, size = _shared(a, b)
    start, crop = _most_structure(a, low, size)
    voxels_a, voxels_b = (_read(tile, start, crop) for tile in (a, b))
    shift, correlation = find_shift(voxels_a, voxels_b, max_shift)
    return Pair(first, second, shift, correlation)


def find_shift(
    first: Num[np.ndarray, "z y x"], second: Num[np.ndarray, "z y x"], max_shift: int
) -> tuple[tuple[float, float, float], float]:
    """Shift that brings `second` onto `first`, and their correlation there."""
    a, b = (_flattened(part) for part in (first, second))
    window: np.ndarray = np.ones(1, np.float32)
    for axis, n in enumerate(a.shape):
        taper = tukey(n, 0.25).astype(np.float32) if n > _LEAST else np.ones(n, np.float32)
        window = window * taper.reshape([-1 if at == axis else 1 for at in range(3)])
    spectrum = rfftn(a * window) * np.conj(rfftn(b * window))
    phases = irfftn(spectrum / np.maximum(np.abs(spectrum), 1e-12), s=a.shape)
    ranges = [min(max_shift, n - 1) for n in a.shape]
    for axis, (n, reach) in enumerate(zip(a.shape, ranges, strict=True)):
        beyond = np.arange(n)[reach + 1 : n - reach]
        phases[tuple(beyond if at == axis else slice(None) for at in range(3))] = -np.inf
    best, most = (0, 0, 0), -1.0
    for place in np.argpartition(phases.ravel(), -_PEAKS)[-_PEAKS:]:
        peak = np.unravel_index(place, phases.shape)
        wraps = [(int(p), int(p) - n) for p, n in zip(peak, a.shape, strict=True)]
        for shift in itertools.product(*wraps):
            correlation = _correlation(a, b, shift) if max(map(abs, shift)) <= max_shift else -1.0
            if correlation > most:
                best, most = shift, correlation
    return _refined(a, b, best, most), most


def solve(count: int, pairs: Sequence[Pair], least_correlation: float) -> Solution:
    """Shifts of all tiles by least squares, without pairs that correlate little or contradict the rest."""
    used = [pair for pair in pairs if pair.correlation >= least_correlation]
    dropped = [pair for pair in pairs if pair.correlation < least_correlation]
    while True:
        shifts = _least_squares(count, used)
        off = [
            float(np.abs(shifts[pair.second] - shifts[pair.first] - pair.shift_zyx).max()) for pair in used
        ]
        if not used or max(off) <= _TOLERANCE:
            return Solution(shifts, used, dropped)
        dropped.append(used.pop(int(np.argmax(off))))


def unplaced(count: int, used: Sequence[Pair]) -> list[int]:
    """Tiles that no trusted pair ties to the largest group of tiles; they stay where the microscope says."""
    group = list(range(count))
    for pair in used:
        a, b = group[pair.first], group[pair.second]
        group = [a if each == b else each for each in group]
    largest = max(group, key=group.count)
    return [i for i, each in enumerate(group) if each != largest]


def _least_squares(count: int, pairs: Sequence[Pair]) -> Float64[np.ndarray, "n 3"]:
    """The solution of least norm: the mean shift of each connected group is zero."""
    rows, aims = np.zeros((len(pairs), count)), np.zeros((len(pairs), 3))
    for row, pair in enumerate(pairs):
        rows[row, pair.second], rows[row, pair.first] = pair.correlation, -pair.correlation
        aims[row] = np.multiply(pair.shift_zyx, pair.correlation)
    return np.linalg.lstsq(rows, aims, rcond=None)[0] if pairs else np.zeros((count, 3))


def _shared(a: Tile, b: Tile) -> tuple[list[int], list[int]]:
    low = [max(p, q) for p, q in zip(a.position_zyx, b.position_zyx, strict=True)]
    high = [min(p, q) for p, q in zip(a.stop_zyx, b.stop_zyx, strict=True)]
    return low, [b - a for a, b in zip(low, high, strict=True)]


def _read(tile: Tile, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
    z, y, x = (s - p for s, p in zip(start, tile.position_zyx, strict=True))
    if tile.volume.chunk_zyx[0] > 1:
        return tile.volume.read((z, y, x), (size[0], size[1], size[2]))
    box = np.empty(size, tile.volume.dtype)  # of planes, which are decoded as a whole
    for at in range(size[0]):
        plane = tile.volume.read((z + at, 0, 0), (1, *tile.volume.shape_zyx[1:]))[0]
        box[at] = plane[y : y + size[1], x : x + size[2]]
    return box


def _most_structure(
    tile: Tile, low: Sequence[int], size: Sequence[int]
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Start and size of the crop of an overlap whose middle plane varies most."""
    depth, height, width = (min(c, n) for c, n in zip(_CROP, size, strict=True))
    best, most = (0, 0, 0), -1.0
    for z in sorted({round(share * (size[0] - depth)) for share in (0.25, 0.5, 0.75)}):
        plane = _read(tile, (low[0] + z + depth // 2, low[1], low[2]), (1, size[1], size[2]))[0]
        smooth = gaussian_filter(plane.astype(np.float32), 1)
        for y in _starts(size[1], height):
            for x in _starts(size[2], width):
                deviation = float(smooth[y : y + height, x : x + width].std())
                if deviation > most:
                    best, most = (z, y, x), deviation
    start = low[0] + best[0], low[1] + best[1], low[2] + best[2]
    return start, (depth, height, width)


def _starts(whole: int, part: int) -> list[int]:
    return sorted({*range(0, whole - part + 1, max(1, part // 2)), whole - part})


def _flattened(part: np.ndarray) -> np.ndarray:
    """Without what is slow in y and x, so that shading and background do not correlate."""
    values = gaussian_filter(part.astype(np.float32), (0.0, 0.7, 0.7))
    flat: np.ndarray = values - gaussian_filter(values, (0.0, 12.0, 12.0))
    return flat


def _correlation(first: np.ndarray, second: np.ndarray, shift: Sequence[int]) -> float:
    """Pearson's correlation of what overlaps after a shift by whole voxels; −1 where that is too little."""
    a = first[tuple(slice(max(s, 0), n + min(s, 0)) for s, n in zip(shift, first.shape, strict=True))]
    b = second[tuple(slice(max(-s, 0), n + min(-s, 0)) for s, n in zip(shift, first.shape, strict=True))]
    if a.size < _LEAST_SHARE * first.size:
        return -1.0
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a * a).sum(dtype=np.float64) * (b * b).sum(dtype=np.float64)))
    return float((a * b).sum(dtype=np.float64)) / scale if scale else -1.0


def _refined(
    first: np.ndarray, second: np.ndarray, shift: Sequence[int], at: float
) -> tuple[float, float, float]:
    """The top of a parabola through the correlations beside the best one, along each axis."""
    fine = [float(s) for s in shift]
    for axis in range(3):
        if first.shape[axis] < 3:
            continue
        below, above = (
            _correlation(first, second, [s + step * (k == axis) for k, s in enumerate(shift)])
            for step in (-1, 1)
        )
        bend = below - 2 * at + above
        if below > -1 and above > -1 and bend < 0:
            fine[axis] += float(np.clip(0.5 * (below - above) / bend, -0.5, 0.5))
    return fine[0], fine[1], fine[2]
