"""Descriptions of served models, volumes, indexes: `GET /v1/info` and `/v1/models`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from canvas_fm.files.shipped import card_of
from canvas_fm.version import __version__
from serving.core.core import Core
from serving.protocol.schemas import DetectorInfo, IndexInfo, Info, ServiceInfo

if TYPE_CHECKING:
    from canvas_fm.models.load_model import Detector


def describe(core: Core) -> Info | ServiceInfo:
    """The default model where there is one, and what else is served."""
    settings, engines = core.require_ready(), core.engines
    service = ServiceInfo(
        models=list(engines),
        detectors={name: detector_info(name, each) for name, each in core.detectors.items()},
        volumes={name: core.view(name, None).info() for name in core.volumes},
        indexes={
            name: IndexInfo(
                rows=len(index),
                metric=index.metric,
                structure=index.structure,
                encoder=index.encoder_sha256,
                pool=index.pool,
                layer=index.layer,
                recall=index.recall,
            )
            for name, index in core.indexes.items()
        },
        refiners={name: hosted.info() for name, hosted in core.refiners.items()},
        reviewed=None if settings.reviewed is None else settings.reviewed.volume,
        limits=settings.limits.model_copy(update={"max_batch": core.max_batch}),
        device=str(core.device),
        version=__version__,
    )
    default = next(iter(engines.values()), None)
    if default is None or settings.model is None:
        return service
    return Info(**default.model_info().model_dump(), **service.model_dump())


def detector_info(name: str, detector: Detector) -> DetectorInfo:
    """A served detector."""
    config = detector.config
    return DetectorInfo(
        name=name,
        sha256=detector.sha256,
        voxel_um=config.voxel_um,
        window_rule=dataclasses.asdict(config.window_rule),
        channels=config.architecture.channels,
        threshold=config.threshold,
        min_distance_um=config.min_distance_um,
        card=None if detector.path is None else card_of(detector.path),
    )
