"""Intensity window of a volume: the stored values that become 0 and 1."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float32, Num

from canvas_fm.data.volume.histogram import BLOCK_ZYX, CountedBoxes, Histogram, SampledValues
from canvas_fm.errors import CanvasError
from canvas_fm.files.atomic import write_text_atomic
from canvas_fm.files.checksum import seal_json, unseal_json

_log = logging.getLogger(__name__)

SAMPLE = 64_000_000  # voxels that are looked at; a volume up to this size is looked at as a whole
_PART = 2**20  # of one chunk at most this many voxels are sampled, so that huge chunks still give many places
_SEED = 0

ReadBox = Callable[[Sequence[int], Sequence[int]], np.ndarray]


class Window(NamedTuple):
    """Linear intensity window: `low` and below become 0, `high` and above 1."""

    low: float
    high: float

    def apply(self, voxels: Num[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
        """Voxels in [0, 1], same shape: (x − low) / (high − low), clipped."""
        scaled = np.subtract(voxels, np.float32(self.low), dtype=np.float32)
        scaled *= np.float32(1.0 / (self.high - self.low))
        return np.clip(scaled, 0.0, 1.0, out=scaled)

    def at_contrast(self, contrast: float) -> Window:
        """The window that multiplies contrast by a factor; CanvasError if its width becomes zero."""
        if contrast == 1:
            return self
        high = self.low + (self.high - self.low) / contrast
        if not self.low < high < math.inf:
            raise CanvasError(
                f"at contrast {contrast:g} the window {self.low:g} to {self.high:g} would be {self.low:g} to "
                f"{high:g}; give a contrast nearer to 1"
            )
        return Window(self.low, high)


@dataclass(frozen=True)
class WindowRule:
    """Rule of a window: two percentiles, or `low` and `high` times the median."""

    kind: Literal["percentiles", "median"] = "percentiles"
    low: float = 0.5
    high: float = 99.9

    def __post_init__(self) -> None:
        top = 100.0 if self.kind == "percentiles" else math.inf
        if self.kind not in ("percentiles", "median") or not 0 <= self.low < self.high <= top:
            raise CanvasError(
                f"window rule {self.kind} {self.low} {self.high}; expected percentiles 0 ≤ low < high ≤ 100, "
                "or median 0 ≤ low < high"
            )

    def __str__(self) -> str:
        return f"{self.kind} {self.low:g} {self.high:g}"


DEFAULT_RULE = WindowRule()


def find_window(
    name: str,
    read: ReadBox,
    shape_zyx: Sequence[int],
    chunk_zyx: Sequence[int],
    dtype: np.dtype,
    fill: float | np.generic,
    rule: WindowRule = DEFAULT_RULE,
    *,
    counted: CountedBoxes | None = None,
) -> Window:
    """Compute the window of a whole volume; `read(start, stop)` returns its boxes.

    All voxels up to 64 M, else parts of chunks drawn with a fixed seed; blocks that hold only `fill` are
    left out. Exact for what is looked at: a histogram for integers up to 16 bits, else the values themselves
    (at most 64 M). Boxes that are `counted` already are not read. Raises CanvasError for NaN and for a volume
    with nothing to scale.
    """
    counts: Histogram | SampledValues
    if counted is not None:
        counts = counted.histogram
    elif Histogram.fits(dtype):
        counts = Histogram(dtype, fill)
    else:
        counts = SampledValues(dtype, fill, min(math.prod(shape_zyx), SAMPLE))
    n = 0
    for start, stop in sample_boxes(shape_zyx, chunk_zyx):
        if n >= SAMPLE:
            break
        if counted is not None and start in counted.voxels:
            n += counted.voxels[start]
            continue
        box = read(start, stop)
        if dtype.kind == "f" and not np.isfinite(box).all():
            raise CanvasError(
                f"{name} holds NaN or infinite values near {tuple(start)} (z, y, x); replace them first"
            )
        n += counts.add(box)
    if not counts.n:
        raise CanvasError(f"{name} is constant (all looked at is {fill}): there is no intensity window")
    ranks = (rule.low, rule.high) if rule.kind == "percentiles" else (50.0, 50.0)
    low, high = counts.percentiles(ranks)
    if rule.kind == "median":
        if low <= 0:
            raise CanvasError(
                f"{name} has no intensity window by the rule {rule}: its median is {low:g}, and a "
                "multiple of it is needed; add an offset, so that the background lies above 0"
            )
        low, high = rule.low * low, rule.high * high
    if not low < high:
        raise CanvasError(
            f"{name} has no intensity window by the rule {rule}: both ends are {low:g}: nearly constant"
        )
    return Window(float(low), float(high))


def sample_boxes(
    shape_zyx: Sequence[int], chunk_zyx: Sequence[int]
) -> Iterator[tuple[tuple[int, int, int], tuple[int, int, int]]]:
    """Boxes (start, stop) to sample: slabs of everything up to 64 M voxels, else random parts of chunks."""
    depth, height, width = shape_zyx
    if math.prod(shape_zyx) <= SAMPLE:
        step = BLOCK_ZYX[0] * max(1, math.ceil(chunk_zyx[0] / BLOCK_ZYX[0]))
        for z in range(0, depth, step):
            yield (z, 0, 0), (min(z + step, depth), height, width)
        return
    random = np.random.default_rng(_SEED)
    grid = [math.ceil(n / size) for n, size in zip(shape_zyx, chunk_zyx, strict=True)]
    for index in _shuffled(math.prod(grid), random):
        cell = np.unravel_index(index, grid)
        low = [int(i) * size for i, size in zip(cell, chunk_zyx, strict=True)]
        high = [min(a + size, n) for a, size, n in zip(low, chunk_zyx, shape_zyx, strict=True)]
        for axis in range(3):
            rest = math.prod(b - a for a, b in zip(low, high, strict=True)) // (high[axis] - low[axis])
            part = max(1, min(high[axis] - low[axis], max(BLOCK_ZYX[axis], _PART // rest)))
            low[axis] += int(random.integers(high[axis] - low[axis] - part + 1))
            high[axis] = low[axis] + part
        yield (low[0], low[1], low[2]), (high[0], high[1], high[2])


def _shuffled(n: int, random: np.random.Generator) -> Iterator[int]:
    """A random permutation of 0 … n−1, generated lazily where n is huge."""
    if n <= 2**20:
        yield from map(int, random.permutation(n))
        return
    drawn: set[int] = set()
    while len(drawn) < 2**20:
        index = int(random.integers(n))
        if index not in drawn:
            drawn.add(index)
            yield index


def cache_folder() -> Path | None:
    """User cache folder for windows of stores that we do not write to.

    None for a user without a home, as a container may run under.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    if base and Path(base).is_absolute():
        return Path(base) / "canvas-fm" / "windows"
    try:
        return Path.home() / ".cache" / "canvas-fm" / "windows"
    except RuntimeError:
        return None


class StoredVoxels(Protocol):
    """Protocol: boxes of a volume, the files that they are read from, and damage."""

    fill: Any
    bad: Any

    def read(self, start: Sequence[int], stop: Sequence[int]) -> np.ndarray: ...

    def key(self, place_zyx: Any) -> str: ...

    def stamp(self, key: str) -> Any: ...


class WindowCache:
    """Windows of one volume in the user's cache, valid as long as the files they came from keep size and
    time.

    The `stamp` of a source's file changes when the file does. A cache that cannot be read or written is done
    without.
    """

    def __init__(self, identity: Sequence[Any], source: StoredVoxels) -> None:
        digest = hashlib.sha256(json.dumps([str(part) for part in identity]).encode()).hexdigest()
        folder = cache_folder()
        self.path = None if folder is None else folder / f"{digest[:32]}.json"
        self._source = source

    def find(
        self,
        name: str,
        shape_zyx: Sequence[int],
        chunk_zyx: Sequence[int],
        dtype: np.dtype,
        rule: WindowRule,
    ) -> Window:
        """The window by a rule: cached, else computed, and kept unless damage was read as zeros."""
        if (cached := self.get(rule)) is not None:
            return cached
        keys: dict[str, None] = {}

        def read(start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
            spans = (range(a - a % size, b, size) for a, b, size in zip(start, stop, chunk_zyx, strict=True))
            keys.update((self._source.key(place), None) for place in product(*spans))
            return self._source.read(start, stop)

        window = find_window(name, read, shape_zyx, chunk_zyx, dtype, self._source.fill, rule)
        if not self._source.bad.sentences():
            self.put(rule, window, list(keys))
        return window

    def get(self, rule: WindowRule) -> Window | None:
        if self.path is None:
            return None
        try:
            entry = (unseal_json(self.path.read_text(encoding="utf-8")) or {})[str(rule)]
            window = Window(float(entry["window"][0]), float(entry["window"][1]))
            unchanged = entry["stamps"] == self._digest(entry["keys"])
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
            return None
        return window if unchanged and window.low < window.high else None

    def put(self, rule: WindowRule, window: Window, keys: Sequence[str]) -> None:
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                entries = unseal_json(self.path.read_text(encoding="utf-8")) or {}
            except (OSError, ValueError):
                entries = {}
            entry = {"window": list(window), "keys": list(keys), "stamps": self._digest(keys)}
            write_text_atomic(self.path, seal_json({**entries, str(rule): entry}))
        except (OSError, CanvasError) as problem:
            _log.info("the intensity window is not remembered: %s", problem)

    def _digest(self, keys: Sequence[str]) -> str:
        stamps = [[key, repr(self._source.stamp(key))] for key in keys]
        return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()
