"""Cells of a box of a registered volume, by a served detector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from canvas_fm.errors import DamagedStore, Unreachable
from serving.core.core import Core
from serving.core.embed.points import unreadable
from serving.protocol.errors import Refusal
from serving.protocol.request_options import DetectRequest
from serving.protocol.schemas import CountReply

if TYPE_CHECKING:
    from canvas_fm.data.points.points import Points
    from canvas_fm.models.load_model import Detector


class Detected(NamedTuple):
    """The cells as `canvas_fm.detect` gives them, what found them, and what to be wary of."""

    points: Points
    detector: Detector
    threshold: float
    warnings: list[str]
    cell_count: CountReply | None


def find_detector(core: Core, name: str | None) -> Detector:
    """A detector by name or sha256, the only one for None; Refusal (404) where that is none."""
    core.require_ready()
    if name is None and len(core.detectors) == 1:
        return next(iter(core.detectors.values()))
    for known, detector in core.detectors.items():
        if name in (known, detector.sha256):
            return detector
    reason = "no detector was named" if name is None else f"no detector is served as {name[:100]!r}"
    raise Refusal(404, f"{reason}; served: {', '.join(core.detectors) or 'none'}")


def detector_options(core: Core) -> dict[str, Any]:
    """Run options of the service for `canvas_fm.detect`; int8 is a precision of encoders."""
    settings = core.require_ready()
    return {
        "device": str(core.device),
        "precision": "fp32" if settings.precision == "int8" else settings.precision,
        "resample": settings.resample,
        "ignore_voxel_size": settings.ignore_voxel_size,
    }


async def detect(core: Core, body: DetectRequest) -> Detected:
    """The cells of a box, by `canvas_fm.detect`; Refusal (413) where it is too large for one request."""
    from canvas_fm.heads.refine.counts.refined_count import count_detected
    from canvas_fm.inference.detect.detect import detector_job
    from canvas_fm.inference.detect.out_of_distribution import mark_unlike, unfamiliar_volume_warnings
    from canvas_fm.inference.detect.tiles.tiled_detection import run

    detector, volume = find_detector(core, body.detector), core.registered(body.volume)
    background = None if body.background is None else core.registered(body.background)

    def work() -> Detected:
        job = detector_job(detector, volume, background=background, **detector_options(core), **body.options)
        most = core.limits.max_detect_mvoxels
        if job.region.voxels > most * 1e6:
            raise Refusal(
                413,
                f"{job.region.voxels / 1e6:.4g} million voxels; {most:g} are the most: give a smaller box",
            )
        points = run(job, show=False, mark=mark_unlike)
        count = count_detected(points, volume=volume.name, crop_of=volume.crop_of)
        reply = None if count is None else CountReply.of(count.as_dict())
        return Detected(points, detector, job.threshold, unfamiliar_volume_warnings(job, points), reply)

    try:
        return await core.model_pool.run(work)
    except (DamagedStore, Unreachable) as problem:
        raise unreadable(body.volume, problem) from problem
