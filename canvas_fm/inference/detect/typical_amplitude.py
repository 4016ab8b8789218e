"""Brightness of a typical detection around any place of a volume, for scores of points that others found."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.zyx import Zyx
from canvas_fm.errors import BadInput
from canvas_fm.inference.detect.detect import detector_job
from canvas_fm.inference.detect.maxima.local_maxima import one_per_plateau
from canvas_fm.inference.detect.maxima.relative_score import (
    LEAST_HEAT,
    reference_box,
    typical_amplitudes,
)
from canvas_fm.inference.detect.tiles.merge_tiles import TileMaxima
from canvas_fm.inference.detect.tiles.tiled_detection import TiledDetection
from canvas_fm.inference.detect.tiles.tiles import Resampled
from canvas_fm.models.load_model import Detector
from canvas_fm.prepare.workers.dask_workers import map_tiles
from canvas_fm.progress import bar

_KEPT = 16
_LAST: OrderedDict[str, TypicalAmplitude] = OrderedDict()  # by all that determines it
_LOCK = threading.Lock()


@dataclass(frozen=True)
class TypicalAmplitude:
    """The log amplitude of a typical detection in each `block` with detections in or beside it; picklable.

    `edge_zyx` are the edges of a block in voxels of the volume.
    """

    block: Int64[np.ndarray, "k 3"]
    log_amplitude: Float64[np.ndarray, " k"]
    edge_zyx: Float64[np.ndarray, " 3"]

    def at(self, points_zyx: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, " n"]:
        """Of the block of each point, in voxels of the volume; NaN where there is no detection around."""
        block = np.floor(points_zyx / self.edge_zyx + 1e-9).astype(np.int64)
        return np.array([self._by_block.get((z, y, x), np.nan) for z, y, x in block.tolist()], np.float64)

    @cached_property
    def _by_block(self) -> dict[Zyx, float]:
        keys = ((z, y, x) for z, y, x in self.block.tolist())
        return dict(zip(keys, self.log_amplitude.tolist(), strict=True))

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays by name for a store of work; `TypicalAmplitude(**arrays)` restores them."""
        return {"block": self.block, "log_amplitude": self.log_amplitude, "edge_zyx": self.edge_zyx}


def check_typical(detector: Detector) -> None:
    """BadInput unless a detector's scores compare a blob's amplitude with a typical one, and nothing else."""
    amplitude, relative = detector.config.amplitude, detector.config.relative
    if amplitude is None or relative is None or amplitude.relative != "typical" or relative.weight:
        raise BadInput(
            f"the scores of the detector {detector.name} do not compare brightness with that of a typical "
            "detection around: leave --detector-brightness out, or give a detector such as detector-all"
        )


def typical_amplitude(
    detector: Detector,
    volume: Volume,
    points_zyx: Float64[np.ndarray, "n 3"],
    *,
    background: Volume | None = None,
    workers: int = 1,
    scheduler: str | None = None,
    show: bool | None = None,
    **running: Any,
) -> TypicalAmplitude:
    """By a detection of all that is around these points, the same for any points of the volume.

    One pass of the net over the blocks around them, made once for the same blocks of a volume while it is
    among the last few: a service is asked for point after point of one tissue. `running` are device,
    precision and how voxel sizes are treated, as in `detect`.
    """
    job = reference_job(detector, volume, points_zyx, background=background, **running)
    key = job.digest()
    with _LOCK:
        if (known := _LAST.get(key)) is not None:
            _LAST.move_to_end(key)
            return known
    tiles = dict[int, TileMaxima]()
    with bar("brightness around", len(job.tiles), unit="tiles", show=show) as advance:
        for number, tile in map_tiles(job, range(len(job.tiles)), workers=workers, scheduler=scheduler):
            tiles[number] = tile
            advance(1)
    made = of_tiles(job, [tiles[number] for number in sorted(tiles)])
    if damage := sorted({sentence for tile in tiles.values() for sentence in tile.bad_chunks}):
        volume.add_bad_chunks(damage)  # workers' too; and not kept, as the damage may be mended
        return made
    with _LOCK:
        _LAST[key] = made
        while len(_LAST) > _KEPT:
            _LAST.popitem(last=False)
    return made


def reference_job(
    detector: Detector,
    volume: Volume,
    points_zyx: Float64[np.ndarray, "n 3"],
    *,
    background: Volume | None = None,
    **running: Any,
) -> TiledDetection:
    """Detection in whole blocks of all that the scores of these points are compared with."""
    check_typical(detector)
    relative = detector.config.relative
    assert relative is not None
    margin_um = max(*volume.voxel_um, *detector.config.voxel_um)
    low, high = np.floor(points_zyx.min(axis=0)), np.floor(points_zyx.max(axis=0)) + 1
    around = np.concatenate([low, high]).astype(np.int64)
    box = reference_box(around, volume.shape_zyx, volume.voxel_um, margin_um, relative)
    return detector_job(
        detector, volume, background=background, threshold=LEAST_HEAT, box=tuple(box.tolist()), **running
    )


def of_tiles(job: TiledDetection, tiles: Sequence[TileMaxima]) -> TypicalAmplitude:
    """By the maxima of all tiles of a job, as the scores of its detections are made."""
    assert job.amplitude is not None
    assert job.relative is not None
    maxima = np.concatenate([np.empty((0, 3), np.int64), *(tile.maxima for tile in tiles)])
    empty = np.empty(0, np.float32)
    score = np.concatenate([empty, *(tile.score for tile in tiles)])
    bright = np.concatenate([empty, *(empty if t.amplitude is None else t.amplitude for t in tiles)])
    position = np.concatenate([np.empty((0, 3)), *(tile.position for tile in tiles)])
    order = np.lexsort(maxima.T[::-1])
    keep = order[one_per_plateau(maxima[order], job.radius_zyx, shape=job.shape)]
    keep = keep[score[keep] >= np.float32(LEAST_HEAT)]
    by_block = typical_amplitudes(
        position[keep], score[keep], bright[keep], job.voxel_um, job.relative, job.amplitude.weight,
        job.amplitude.classes_apart,
    )  # fmt: skip
    edge = job.relative.block_um / np.asarray(job.voxel_um)
    source = job.sources[0]
    return TypicalAmplitude(
        np.array(list(by_block), np.int64).reshape(-1, 3),
        np.array(list(by_block.values()), np.float64),
        edge * source.ratio if isinstance(source, Resampled) else edge,
    )
