"""Detection tile by tile: the boxes that a tile reads, its maxima, and all tiles computed, resumably."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume, Zyx, ZyxUm
from canvas_fm.data.volume.window import Window
from canvas_fm.errors import CanvasError, counted
from canvas_fm.inference.detect.heatmap import HeatMapper, smooth, smooth_reach
from canvas_fm.inference.detect.maxima.blob_amplitude import FLOOR, Amplitude
from canvas_fm.inference.detect.maxima.local_maxima import (
    Shape,
    find_all_maxima,
    neighbourhood,
    refine_positions,
)
from canvas_fm.inference.detect.maxima.relative_score import LEAST_HEAT
from canvas_fm.inference.detect.tiles.merge_tiles import TileMaxima, merge_tiles
from canvas_fm.inference.detect.tiles.resumable_tiles import ResumableTiles
from canvas_fm.inference.detect.tiles.tiles import Box, Readable, Resampled, check_tile, cut, fit_tile, whole
from canvas_fm.models.folder.network_config import AmplitudeConfig, RelativeConfig
from canvas_fm.prepare.workers.dask_workers import map_tiles
from canvas_fm.progress import bar

_BAD_CHUNKS, _BETWEEN = "bad_chunks", " | "
_PLANES = 8  # that go through the window together


@dataclass
class TiledDetection:
    """Everything that determines the cells of a volume; picklable.

    `radius_zyx` and `shape` are FindMaxima's; with `suppress_um` what is left is suppressed greedily besides.
    A `tile_zyx` of None becomes what reads the fewest voxels twice in bounded memory.
    """

    volumes: list[Volume]
    windows: list[Window]
    resample_to_um: ZyxUm | None
    heat: HeatMapper
    smooth_um: float
    radius_zyx: tuple[float, float, float]
    shape: Shape
    suppress_um: float | None
    threshold: float
    subvoxel: bool
    region: Box
    tile_zyx: Zyx | None
    inputs: dict[str, Any]
    meta: dict[str, str]
    amplitude: AmplitudeConfig | None = None
    relative: RelativeConfig | None = None

    def __post_init__(self) -> None:
        to_um = self.resample_to_um
        self.sources: list[Readable] = [v if to_um is None else Resampled(v, to_um) for v in self.volumes]
        self.voxel_um = self.sources[0].voxel_um
        self.extent = whole(self.sources[0].shape_zyx)
        self.joined = None if self.amplitude is None else Amplitude(self.amplitude, self.voxel_um)
        # Bright blobs, and the strongest of a dim brain, may pass with less heat: all are looked at first.
        floors = [FLOOR] * (self.joined is not None) + [LEAST_HEAT] * (self.relative is not None)
        self.least_heat = min(self.threshold, *floors) if floors else self.threshold
        # One voxel and what counts on one side of it.
        reach = self.boxes(Box((0, 0, 0), (1, 1, 1)))[0].stop
        if self.tile_zyx is None:
            z, y, x = (min(n, r) for n, r in zip(self.extent.size, reach, strict=True))
            self.tile_zyx = fit_tile(self.extent.size, (z, y, x), self.heat.align_zyx)
        else:
            check_tile(self.region, self.tile_zyx, reach, self.extent)
        self.tiles = cut(self.region, self.tile_zyx)
        self._highest_of_zeros: float | None = None

    def boxes(self, core: Box) -> tuple[Box, Box, Box]:
        """Boxes of a tile: input, valid heat map, valid smoothed heat map."""
        reach = np.abs(neighbourhood(self.radius_zyx, self.shape)).max(axis=0, initial=0).tolist()
        output_box = core.grown(np.maximum(reach, 1).tolist(), self.extent)
        heatmap_box = output_box.grown(smooth_reach(self.smooth_um, self.voxel_um), self.extent)
        reach = np.maximum(self.heat.halo_zyx, (0, 0, 0) if self.joined is None else self.joined.reach_zyx)
        read_box = heatmap_box.grown(reach.tolist(), self.extent, self.heat.align_zyx)
        return read_box, heatmap_box, output_box

    def tile(self, number: int) -> TileMaxima:
        """Maxima of one tile, identical to those of the untiled heat map."""
        core = self.tiles[number]
        read_box, _, _ = self.boxes(core)
        voxels = read_windowed(self.sources, self.volumes, self.windows, read_box)
        if not voxels.any() and self.zeros_give_no_detection():
            return self.nothing(core)
        return self.maxima(core, read_box, voxels, self.heat(voxels))

    def maxima(
        self,
        core: Box,
        read_box: Box,
        voxels: Float32[np.ndarray, "c z y x"],
        heat: Float32[np.ndarray, "z y x"],
    ) -> TileMaxima:
        """Maxima in `core` of a heat map of `read_box`, which holds what `boxes` says or more."""
        _, heatmap_box, output_box = self.boxes(core)
        heat = smooth(heat[heatmap_box.inside(read_box)], self.smooth_um, self.voxel_um)
        heat = np.ascontiguousarray(heat[output_box.inside(heatmap_box)])
        local = find_all_maxima(heat, self.radius_zyx, just_below(self.least_heat), shape=self.shape)
        maxima = self._found(local[core.holds(local + output_box.start)], heat, output_box)
        if self.joined is None or not len(maxima.score):
            return maxima
        bright = self.joined.near(voxels[0], maxima.maxima - read_box.start)
        if self.joined.config.relative:
            return replace(maxima, amplitude=bright)
        return replace(maxima, score=self.joined.join(maxima.score, bright))

    def nothing(self, core: Box) -> TileMaxima:
        """A tile without maxima."""
        return self._found(np.empty((0, 3), np.int64), np.empty((0, 0, 0), np.float32), core)

    def merge(self, tiles: Sequence[TileMaxima]) -> Points:
        """Merge all tiles' maxima into points with their score, one a plateau, sorted by position."""
        return self.merge_rows(tiles)[0]

    def merge_rows(self, tiles: Sequence[TileMaxima]) -> tuple[Points, Int64[np.ndarray, " n"]]:
        """As `merge`, and which of the maxima each point is, counted through the tiles in their order."""
        zyx, score, rows = merge_tiles(
            tiles, self.sources[0], radius_zyx=self.radius_zyx, shape=self.shape, threshold=self.threshold,
            suppress_um=self.suppress_um, amplitude=self.amplitude, relative=self.relative,
        )  # fmt: skip
        bad = sorted({sentence for part in tiles for sentence in part.bad_chunks})
        meta = self.meta | ({_BAD_CHUNKS: _BETWEEN.join(bad)} if bad else {})
        return Points(zyx, {"score": score}, meta), rows

    def digest(self) -> str:
        """Hash of the inputs: equal hashes give equal rows."""
        return hashlib.sha256(json.dumps(self.inputs, sort_keys=True).encode()).hexdigest()

    def _found(self, local: np.ndarray, heat: np.ndarray, box: Box) -> TileMaxima:
        position = refine_positions(heat, local) if self.subvoxel else local.astype(np.float64)
        bad = tuple(sentence for volume in self.volumes for sentence in volume.bad_chunks)
        score = heat[tuple(local.T)] if len(local) else np.empty(0, np.float32)
        return TileMaxima(local + np.asarray(box.start), score, position + box.start, bad)

    def zeros_give_no_detection(self) -> bool:
        """Whether all-zero voxels yield no cell anywhere, so that empty tiles can be skipped; cached."""
        if self._highest_of_zeros is None:
            reach = zip(self.heat.halo_zyx, self.heat.align_zyx, self.extent.size, strict=True)
            size = [min(2 * halo + align, n) for halo, align, n in reach]
            self._highest_of_zeros = float(self.heat(np.zeros((len(self.sources), *size), np.float32)).max())
        return self._highest_of_zeros < self.least_heat


def read_windowed(
    sources: Sequence[Readable], volumes: Sequence[Volume], windows: Sequence[Window], box: Box
) -> Float32[np.ndarray, "c z y x"]:
    """Windowed box of each channel; CanvasError if a float volume has NaN."""
    voxels = np.empty((len(sources), *box.size), np.float32)
    for channel, (source, window) in enumerate(zip(sources, windows, strict=True)):
        raw = source.read(box.start, box.size)
        if raw.dtype.kind == "f" and not np.isfinite(raw).all():
            raise CanvasError(
                f"{volumes[channel].path} holds NaN or infinite values between z, y, x = {box.start} "
                f"and {box.stop}; replace them first"
            )
        for plane in range(0, len(raw), _PLANES):  # all at once would be a second array of their size
            planes = slice(plane, plane + _PLANES)
            voxels[channel, planes] = window.apply(raw[planes])
    return voxels


def run(
    job: TiledDetection,
    out: str | Path | None = None,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    show: bool | None = None,
    mark: Callable[[TiledDetection, Points], Points] | None = None,
) -> Points:
    """Run a job; with `out` write the points, resuming what an earlier run of the same job left.

    `mark` adds to the points' metadata before they are written.
    """
    if workers < 1:
        raise CanvasError(f"workers is {workers}; give at least 1")
    if out is None:
        maxima = dict(_with_bar(job, range(len(job.tiles)), workers, scheduler, show))
        points = job.merge([maxima[number] for number in sorted(maxima)])
        return points if mark is None else mark(job, points)
    with ResumableTiles(Path(out), job.inputs, job.digest(), len(job.tiles)) as work:
        if (finished := work.finished()) is not None:
            return finished
        done = {
            number: TileMaxima(**part.arrays, bad_chunks=tuple(part.about["bad_chunks"]))
            for number, part in work.done().items()
        }
        remaining = [number for number in range(len(job.tiles)) if number not in done]
        cells = sum(len(tile.maxima) for tile in done.values())
        for number, tile in _with_bar(job, remaining, workers, scheduler, show, cells=cells):
            work.keep(number, tile.arrays(), tile.bad_chunks)
            done[number] = tile
        points = job.merge([done[number] for number in sorted(done)])
        return work.finish(points if mark is None else mark(job, points))


def plan(job: TiledDetection, *, workers: int = 1) -> dict[str, Any]:
    """Estimated cost of a job: tiles, voxels, bytes to read, minutes with `workers`.

    The minutes are those of all tiles if they took as long as the slowest that was tried: the middle one,
    and where no cell is found in it up to four others, because empty tiles only cost their reading.
    """
    reads = [job.boxes(core)[0].voxels for core in job.tiles]
    per_voxel = sum(volume.dtype.itemsize for volume in job.volumes)
    slowest = 0.0
    for share in (1 / 2, 1 / 4, 3 / 4, 1 / 8, 7 / 8):
        number = int(share * len(job.tiles))
        began = time.perf_counter()
        cells = len(job.tile(number).maxima)
        slowest = max(slowest, (time.perf_counter() - began) / reads[number])
        if cells:
            break
    return {
        "tiles": len(job.tiles),
        "voxels": job.region.voxels,
        "bytes_read": sum(reads) * per_voxel,
        "minutes": round(slowest * sum(reads) / max(workers, 1) / 60, 2),
        "tried_tile": number,
        "cells_in_it": cells,
    }


def bad_chunks_of(points: Points) -> list[str]:
    """Messages of damaged chunks that were read as zeros for these points."""
    joined = points.meta.get(_BAD_CHUNKS, "")
    return joined.split(_BETWEEN) if joined else []


def just_below(threshold: float) -> float:
    """The next smaller float32: a value is above it iff it is at or above the threshold."""
    nearest = np.float32(threshold)
    return float(nearest if nearest < threshold else np.nextafter(nearest, np.float32(-np.inf)))


def _with_bar(
    job: TiledDetection,
    numbers: Sequence[int],
    workers: int,
    scheduler: str | None,
    show: bool | None,
    *,
    cells: int = 0,
) -> Iterator[tuple[int, TileMaxima]]:
    tiles = len(job.tiles)
    with bar("detecting", tiles, unit="tiles", done=tiles - len(numbers), show=show) as advance:
        for number, maxima in map_tiles(job, numbers, workers=workers, scheduler=scheduler):
            cells += len(maxima.maxima)
            advance(1, f"{counted(cells, 'cell')}")
            yield number, maxima
