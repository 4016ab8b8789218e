"""Threshold watershed seeded by detections: the cells of a volume of any size, tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int64, Num, UInt32
from scipy.ndimage import distance_transform_edt, gaussian_filter

from canvas_fm.analysis.segment.morphology import COLUMNS, measure_cells
from canvas_fm.analysis.segment.segment_flags import SegmentOptions
from canvas_fm.data.points.points import Points, warn_of_repeated
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.volume.window import WindowRule
from canvas_fm.errors import CanvasError, MissingExtra
from canvas_fm.files.option_sets import takes
from canvas_fm.progress import bar

_TILE = 128  # voxels of a tile's core along each axis, one chunk of what is written


class Levels(NamedTuple):
    """Intensity of the background (the median), and where intensities are clipped."""

    background: float
    clip: float


@takes(SegmentOptions)
def segment(
    volume: Volume, points: Points, out: str | Path, *, show: bool | None = None, **options: object
) -> Points:
    """Grow a cell from each point; returns the points with the columns of its morphology, label first.

    Label k is row k of the points (from 1). A cell is what is connected with its seed, nearer than
    `max_radius_um` and brighter than `level` of the way from background to seed, after intensities are
    clipped at their 99.5th percentile. Where cells touch, a watershed divides them. A seed that is no
    brighter than the background stays one voxel. Tiles overlap by twice the radius.
    """
    opts = SegmentOptions.of(**options)
    points.check_inside(volume.shape_zyx)
    warn_of_repeated(points.zyx, "the cells")
    watershed = _skimage()
    if clash := [name for name in COLUMNS if name in points.columns]:
        raise CanvasError(f"the points have a column {clash[0]!r} already; leave it out to write it anew")
    levels = _levels(volume, opts)
    seeds = np.floor(points.zyx + 0.5).astype(np.int64)
    halo = np.ceil(2 * opts.max_radius_um / np.asarray(volume.voxel_um)).astype(np.int64)
    measured = {name: np.full(len(points), np.nan) for name in COLUMNS}
    with (
        Volume.create(
            out, volume.shape_zyx, voxel_um=volume.voxel_um, dtype="uint32", source="segment"
        ) as writer,
        bar("segmenting", len(list(_tiles(volume.shape_zyx))), unit="tiles", show=show) as advance,
    ):
        for start, stop in _tiles(volume.shape_zyx):
            low = np.maximum(start - halo, 0)
            high = np.minimum(stop + halo, volume.shape_zyx)
            near = np.flatnonzero(np.all((seeds >= low) & (seeds < high), axis=1))
            core = tuple(slice(a, b) for a, b in zip(start - low, stop - low, strict=True))
            if len(near):
                image = volume.read(low.tolist(), (high - low).tolist())
                labels = _grow(image, seeds[near] - low, near + 1, volume, levels, opts, watershed)
                writer.write(tuple(start.tolist()), labels[core])
                own = near[np.all((seeds[near] >= start) & (seeds[near] < stop), axis=1)]
                rows = measure_cells(labels, image, own + 1, volume.voxel_um, branches=opts.branches)
                for name, values in rows.items():
                    measured[name][own] = values
            advance()
    return Points(points.zyx, points.columns | measured, points.meta)


def _tiles(
    shape_zyx: tuple[int, int, int],
) -> Iterator[tuple[Int64[np.ndarray, " 3"], Int64[np.ndarray, " 3"]]]:
    for start in product(*(range(0, size, _TILE) for size in shape_zyx)):
        begin = np.array(start)
        yield begin, np.minimum(begin + _TILE, shape_zyx)


def _levels(volume: Volume, options: SegmentOptions) -> Levels:
    median = volume.window_by(WindowRule("median", 0, 1)).high
    clip = volume.window_by(WindowRule("percentiles", 0.5, options.clip_percentile)).high
    return Levels(median, clip)


def _grow(
    image: Num[np.ndarray, "z y x"],
    seeds: Int64[np.ndarray, "n 3"],
    numbers: Int64[np.ndarray, " n"],
    volume: Volume,
    levels: Levels,
    options: SegmentOptions,
    watershed: Callable[..., np.ndarray],
) -> UInt32[np.ndarray, "z y x"]:
    """Labels of one tile with its halo."""
    voxel_um = np.asarray(volume.voxel_um)
    clipped: Float32[np.ndarray, "z y x"] = np.minimum(image, levels.clip).astype(np.float32)
    smooth = gaussian_filter(clipped, options.smooth_um / voxel_um) if options.smooth_um else clipped
    markers = np.zeros(image.shape, np.int32)
    at = tuple(seeds.T)
    markers[at] = numbers  # of two seeds in one voxel the later one grows
    peak = np.zeros(int(numbers.max()) + 1, np.float32)
    peak[numbers] = smooth[at]
    far, nearest = distance_transform_edt(markers == 0, sampling=voxel_um, return_indices=True)
    seed_peak: Float64[np.ndarray, "z y x"] = peak[markers[tuple(nearest)]]
    bright = smooth > levels.background + options.level * (seed_peak - levels.background)
    bright &= seed_peak > levels.background  # else the threshold of a dark seed holds all that is darker
    mask = (bright & (far <= options.max_radius_um)) | (markers > 0)
    return watershed(-smooth, markers, mask=mask).astype(np.uint32)


def _skimage() -> Callable[..., np.ndarray]:
    try:
        from skimage.segmentation import watershed
    except ImportError as problem:
        raise MissingExtra("scikit-image", "segment", "segmenting cells") from problem
    return watershed
