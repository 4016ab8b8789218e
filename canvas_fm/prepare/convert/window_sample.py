"""The sample that an intensity window is found in, counted while its slabs are in memory."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
from jaxtyping import Num

from canvas_fm.data.volume.histogram import CountedBoxes, Histogram
from canvas_fm.data.volume.window import SAMPLE, sample_boxes
from canvas_fm.data.zyx import Zyx
from canvas_fm.prepare.convert.layout import Layout


class WindowSample:
    """The boxes of each channel that are looked at whatever they hold, counted slab by slab.

    What is not counted here is read from the store: boxes of slabs that another process or an earlier run
    wrote, those that reach over two slabs, and all of a type without a small histogram. Labels have none.
    """

    def __init__(self, layout: Layout, *, labels: bool) -> None:
        self._slab = layout.slab
        self._boxes: dict[int, list[tuple[Zyx, Zyx]]] = defaultdict(list)  # by first plane of the slab
        self._counted: list[CountedBoxes] = []
        if labels or not Histogram.fits(layout.dtype):
            return
        self._counted = [CountedBoxes(layout.dtype, 0) for _ in range(layout.channels)]
        level, n = layout.levels[0], 0
        for start, stop in sample_boxes(level.shape_zyx, level.chunk_zyx):
            if n >= SAMPLE:
                break
            n += math.prod(b - a for a, b in zip(start, stop, strict=True))
            slab = start[0] // self._slab
            if slab == (stop[0] - 1) // self._slab:
                self._boxes[slab * self._slab].append((start, stop))

    def add(self, channel: int, first: int, rows: Num[np.ndarray, "z y x"], y: int = 0) -> None:
        """Count the boxes in rows from `y` on of a slab that begins at plane `first`; one slab at a time.

        Rows begin and end where chunks and the histogram's blocks do.
        """
        for start, stop in self._boxes.get(first, ()):
            low, high = max(start[1], y), min(stop[1], y + rows.shape[1])
            if low < high:
                z = slice(start[0] - first, stop[0] - first)
                self._counted[channel].add(start, rows[z, low - y : high - y, start[2] : stop[2]])

    def counted(self, channel: int) -> CountedBoxes | None:
        """Histogram of a channel; None where nothing is counted."""
        return self._counted[channel] if self._counted else None
