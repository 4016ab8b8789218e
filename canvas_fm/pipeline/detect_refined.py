"""Detection and refinement in one pass: the detector's map of a tile serves both."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError
from canvas_fm.files.option_sets import takes
from canvas_fm.files.resumable import read_part
from canvas_fm.heads.features.candidate_score import recorded_score
from canvas_fm.heads.features.extractor import Extractor
from canvas_fm.heads.features.feature_set import CANDIDATE_SCORE
from canvas_fm.heads.refine.apply.apply import extractor_of, models_of, refined_rows, refinement_inputs
from canvas_fm.heads.refine.apply.candidate_classifier import CandidateClassifier
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.inference.detect.detect import detector_job
from canvas_fm.inference.detect.detect_flags import DetectOptions
from canvas_fm.inference.detect.detector_features import MapPooling
from canvas_fm.inference.detect.heatmap import NetHeatMapper
from canvas_fm.inference.detect.maxima.maxima_with_features import FeaturedJob
from canvas_fm.inference.detect.maxima.relative_score import LEAST_HEAT
from canvas_fm.inference.detect.out_of_distribution import mark_unlike, unfamiliar_volume_warnings
from canvas_fm.inference.detect.tiles.merge_tiles import TileMaxima
from canvas_fm.inference.detect.tiles.resumable_tiles import ResumableTiles
from canvas_fm.inference.detect.tiles.tiled_detection import TiledDetection
from canvas_fm.inference.detect.typical_amplitude import TypicalAmplitude, of_tiles
from canvas_fm.models.load_model import Detector, Encoder
from canvas_fm.prepare.workers.dask_workers import map_tiles
from canvas_fm.progress import bar

_log = logging.getLogger(__name__)
_FEATURES, _REFINED = "features", "refined-"


@takes(DetectOptions)
def detect_refined(
    detector: Detector,
    volume: Volume,
    refiner: Refiner,
    out: str | Path,
    *,
    encoder: Encoder | None = None,
    background: Volume | None = None,
    batch: int = 64,
    recall: tuple[int, int] | None = None,
    cells_only: bool = False,
    workers: int = 1,
    scheduler: str | None = None,
    show: bool | None = None,
    **options: Any,
) -> Points:
    """Detect cells and refine them: the rows of `detect` followed by `refine`, written to `out`.

    Where the refiner was fitted on the same detector, or on one of the same net whose scores differ, its map
    is computed once: the features around each detection are kept beside its tile until the refiner has seen
    them (1.5 kB a detection with 48 channels). With another net the two steps follow each other. `options`
    are those of `detect`; the same call again resumes. Raises what `detect` and `refine` raise.
    """
    job = detector_job(detector, volume, background=background, **options)
    opts = DetectOptions.of(**options)
    models = models_of(refiner, encoder, None if _another(refiner, detector) else detector)
    extractor = extractor_of(
        refiner, **models, batch=batch, device=opts.device, precision=opts.precision, resample=opts.resample,
        ignore_voxel_size=opts.ignore_voxel_size,
    )  # fmt: skip
    extractor.check(volume, background)
    pooling = _pooling(extractor, detector)
    inputs = job.inputs | {
        "refinement": refinement_inputs(refiner, extractor, volume, background, recall, cells_only=cells_only)
    }
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    running: dict[str, Any] = {"workers": workers, "scheduler": scheduler, "show": show}
    with ResumableTiles(Path(out), inputs, digest, len(job.tiles)) as work:
        if (finished := work.finished()) is not None:
            return finished
        points, maxima, counts, typical = _detected(job, pooling, work, extractor, **running)
        for sentence in unfamiliar_volume_warnings(job, points):
            _log.warning("%s", sentence)
        points = mark_unlike(job, points)
        provenance = refiner.provenance_.get(CANDIDATE_SCORE)
        score = None if provenance is None else recorded_score(points, provenance)
        maps = None if pooling is None else KeptFeatures.of(work.folder, counts, maxima)
        classifier = CandidateClassifier(
            refiner, extractor, volume, background, points.zyx, score, maps, typical
        )
        p_cell = classifier.resumed(work, prefix=_REFINED, **running)
        more = {"inputs_sha256": digest}
        return work.finish(
            refined_rows(refiner, points, p_cell, volume, extractor, more, recall, cells_only=cells_only)
        )


@dataclass
class KeptFeatures:
    """Features of detections in the parts of their tiles: `tile` and `place` in it of each row; picklable."""

    folder: Path
    tile: Int64[np.ndarray, " n"]
    place: Int64[np.ndarray, " n"]
    _last: tuple[int, np.ndarray] | None = field(init=False, default=None)

    @classmethod
    def of(cls, folder: Path, counts: Sequence[int], maxima: Int64[np.ndarray, " n"]) -> KeptFeatures:
        """Of points that are these `maxima`, counted through tiles with so many each."""
        ends = np.cumsum(counts)
        tile = np.searchsorted(ends, maxima, side="right")
        return cls(folder, tile, maxima - (ends - counts)[tile])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_last": None}

    def blocks(self, rows: int) -> list[Int64[np.ndarray, " m"]]:
        """Rows tile by tile, large tiles in several blocks, small ones together."""
        order = np.argsort(self.tile, kind="stable")
        last = np.diff(self.tile[order], append=-1) != 0
        ends: list[int] = (np.flatnonzero(last) + 1).tolist()
        blocks, start = [], 0
        for end in ends:
            while end - start >= rows:
                blocks.append(order[start : start + rows])
                start += rows
        if start < len(order):
            blocks.append(order[start:])
        return blocks

    def features(self, rows: Int64[np.ndarray, " m"]) -> Float32[np.ndarray, "m d"]:
        parts = []
        for number in np.unique(self.tile[rows]).tolist():
            if self._last is None or self._last[0] != number:
                part = read_part(self.folder / f"{number:06d}.part")
                if part is None:
                    raise CanvasError(
                        f"{self.folder}: tile {number} was damaged or removed while work went on; run the "
                        "same command again, it computes that tile anew"
                    )
                self._last = number, part.arrays[_FEATURES]
            in_tile = np.flatnonzero(self.tile[rows] == number)
            parts.append((in_tile, self._last[1][self.place[rows[in_tile]]]))
        out = np.empty((len(rows), parts[0][1].shape[1]), np.float32)
        for in_tile, values in parts:
            out[in_tile] = values
        return out


def _another(refiner: Refiner, detector: Detector) -> bool:
    """Whether the refiner's detector, where it has one, is not this."""
    known = [
        provenance.sha256 for name, provenance in refiner.provenance_.items() if name in ("detector", "heat")
    ]
    return detector.sha256 not in known


def _pooling(extractor: Extractor, detector: Detector) -> MapPooling | None:
    """Map pooling for the refiner's features of detections; None if they are of another map or of none."""
    if extractor.detector is None or not extractor.detector.maps_as(detector):
        return None
    assert extractor.columns is not None
    return extractor.columns.pooling


def _detected(
    job: TiledDetection,
    pooling: MapPooling | None,
    work: ResumableTiles,
    extractor: Extractor,
    *,
    workers: int,
    scheduler: str | None,
    show: bool | None,
) -> tuple[Points, Int64[np.ndarray, " n"], list[int], TypicalAmplitude | None]:
    """Points, which of the tiles' maxima each is, and how many of these each tile has; tiles are stored.

    And what the refiner compares brightness with, where these are the maxima that tell it.
    """
    done: dict[int, TileMaxima] = {}
    for number, part in work.done().items():
        arrays = {name: values for name, values in part.arrays.items() if name != _FEATURES}
        done[number] = TileMaxima(**arrays, bad_chunks=tuple(part.about["bad_chunks"]))
    remaining = [number for number in range(len(job.tiles)) if number not in done]
    tiled: Any = job if pooling is None else FeaturedJob(job, pooling)
    with bar("detecting", len(job.tiles), unit="tiles", done=len(done), show=show) as advance:
        for number, result in map_tiles(tiled, remaining, workers=workers, scheduler=scheduler):
            tile_maxima: TileMaxima = result if pooling is None else result.maxima
            work.keep(
                number,
                tile_maxima.arrays() | ({} if pooling is None else {_FEATURES: result.features}),
                tile_maxima.bad_chunks,
            )
            done[number] = tile_maxima
            advance(1)
    tiles = [done[number] for number in range(len(job.tiles))]
    points, maxima = job.merge_rows(tiles)
    typical = of_tiles(job, tiles) if _tells_typical(job, extractor) else None
    return points, maxima, [len(tile.score) for tile in tiles], typical


def _tells_typical(job: TiledDetection, extractor: Extractor) -> bool:
    """Whether the job's maxima are those of the refiner's detector in the whole volume."""
    detector, heat = extractor.detector, job.heat
    return (
        extractor.brightness
        and detector is not None
        and isinstance(heat, NetHeatMapper)
        and heat.detector.sha256 == detector.sha256
        and job.region == job.extent
        and not job.subvoxel
        and job.inputs["min_distance_um"] == detector.config.min_distance_um
        and job.least_heat <= LEAST_HEAT
    )
