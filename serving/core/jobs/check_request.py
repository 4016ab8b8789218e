"""A submitted job checked against what is served: its model or refiner, its points or box."""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path

import numpy as np

from canvas_fm.data.points.points import Points, as_zyx
from canvas_fm.data.volume.volume import Volume
from canvas_fm.inference.input_checks import check_points
from serving.core.core import Core
from serving.core.detect import detector_options, find_detector
from serving.core.embed.crops import key_of
from serving.core.jobs.store import JobSpec
from serving.core.refine import find_refiner
from serving.protocol.errors import Refusal
from serving.protocol.json_process.frames import pieces_of
from serving.protocol.request_options import JobRequest


def check_request(core: Core, body: JobRequest, owner: str, digest: str) -> tuple[JobSpec, Points]:
    """Validated job and its points."""
    volume = core.registered(body.volume)
    job_spec = JobSpec(
        kind=body.kind, volume=body.volume, points=0, owner=owner, request=digest, created=time.time()
    )
    if body.kind == "detect":
        return _detection(core, body, volume, job_spec), Points(np.empty((0, 3)))
    _refuse_keys(body, "detector", "roi", "threshold", "min_distance_um")
    if body.kind == "embed":
        _refuse_keys(body, "refiner", "background")
        engine = core.engine_for(body.model)
        core.volume(engine, body.volume)
        key = key_of(engine, body.pool, body.layer)
        job_spec.encoder, job_spec.pool, job_spec.layer = engine.sha256, key.pool, key.layer
    else:
        _refuse_keys(body, "model", "pool", "layer", "grid")
        hosted = find_refiner(core, body.refiner)
        background = None if body.background is None else core.registered(body.background)
        hosted.extractor.check(volume, background)
        job_spec.refiner, job_spec.background = hosted.refiner.sha256_, body.background
    points = _points(core, body)
    most = core.limits.max_job_points
    if len(points) > most:
        raise Refusal(413, f"{len(points)} points in one job; {most} are the most")
    check_points(points.zyx, volume.shape_zyx)
    job_spec.points = len(points)
    return job_spec, points


def _detection(core: Core, body: JobRequest, volume: Volume, job_spec: JobSpec) -> JobSpec:
    """The same for a detection, whose steps are tiles."""
    from canvas_fm.inference.detect.detect import detector_job

    _refuse_keys(body, "model", "pool", "layer", "grid", "points_zyx", "points_csv", "refiner")
    detector = find_detector(core, body.detector)
    background = None if body.background is None else core.registered(body.background)
    options = {"box": body.roi, "threshold": body.threshold, "min_distance_um": body.min_distance_um}
    stated = {name: value for name, value in options.items() if value is not None}
    job = detector_job(detector, volume, background=background, **detector_options(core), **stated)
    changes = {"detector": detector.sha256, "background": body.background, "detection": stated}
    return job_spec.model_copy(update=changes | {"points": len(job.tiles)})


def _refuse_keys(body: JobRequest, *keys: str) -> None:
    for key in keys:
        if getattr(body, key) is not None:
            raise Refusal(422, f"{key} means nothing to a job of kind {body.kind}; leave it out")


def _points(core: Core, body: JobRequest) -> Points:
    ways = [way for way in ("points_zyx", "points_csv", "grid") if getattr(body, way) is not None]
    if len(ways) != 1:
        raise Refusal(422, "give one of points_zyx, points_csv and grid")
    if body.points_zyx is not None:
        return Points(as_zyx(body.points_zyx))
    if body.points_csv is not None:
        with tempfile.TemporaryDirectory(prefix="points-") as folder:
            path = Path(folder) / "points_csv.csv"
            with path.open("w", encoding="utf-8") as file:
                file.writelines(pieces_of(body.points_csv))
            return Points.read(path)
    assert body.grid is not None
    return _grid(core, body, body.grid)


def _grid(core: Core, body: JobRequest, step_zyx: tuple[int, int, int]) -> Points:
    """Points that tile the volume; refused if there are too many."""
    from canvas_fm.inference.embed.grid_points import grid_points

    engine, most = core.engine_for(body.model), core.limits.max_job_points
    volume = core.volume(engine, body.volume).volume
    count = math.prod(-(-size // step) for size, step in zip(volume.shape_zyx, step_zyx, strict=True))
    if count > 2 * most:  # crops stay inside the volume, so that there are fewer
        raise Refusal(413, f"a grid of about {count} points; {most} are the most in one job")
    settings = engine.settings
    return grid_points(
        volume,
        engine.encoder.config,
        step_zyx,
        resample=settings.resample,
        ignore_voxel_size=settings.ignore_voxel_size,
    )
