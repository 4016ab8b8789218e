"""Refiners that were named at the start: P(cell) for points of a registered volume, or for crops."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from canvas_fm.errors import BadInput, CanvasError, DamagedStore
from canvas_fm.shipped import card_of
from serving.core.core import Core
from serving.core.embed_crops import Window
from serving.core.embed_points import check_number, embed_points_by, unreadable
from serving.protocol.errors import Refusal, refused
from serving.protocol.refine_schemas import RefineRequest
from serving.protocol.schemas import RefinerInfo, Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from canvas_fm.data.volume.volume import Volume
    from canvas_fm.heads.features.extractor import Extractor
    from canvas_fm.heads.refine.refiner import Refiner
    from canvas_fm.models.checkpoint import Detector, Encoder
    from serving.core.model_host import Engine


@dataclass(frozen=True)
class HostedRefiner:
    """A refiner with the models that make its features; `engine` is that of its encoder, where it has one."""

    name: str
    refiner: Refiner
    extractor: Extractor
    engine: Engine | None
    given: dict[str, Any]
    """The encoder and the detector as `canvas_fm.refine` is given them, None for a shipped one."""

    @classmethod
    def open(
        cls, name: str, path: str, first: Engine, engines: Sequence[Engine], detectors: Sequence[Detector]
    ) -> HostedRefiner:
        """Opened; CanvasError where its models are neither among those that are served nor shipped.

        And for a refiner that looks at the candidates' own score: requests have points or crops, no scores.
        """
        from canvas_fm.heads.features.feature_set import SCORE
        from canvas_fm.heads.refine.apply import extractor_of
        from canvas_fm.heads.refine.refiner import Refiner

        refiner = Refiner.load(path)
        if SCORE in refiner.columns_.sizes:
            raise CanvasError(
                f"the refiner {name} cannot be served: it also looks at the candidates' own score, which "
                "requests do not carry; use `canvas-fm refine apply`, or serve one fitted without --own-score"
            )
        refiner.set_params(device=str(first.encoder.device))
        given = _served(refiner, [engine.encoder for engine in engines], detectors)
        extractor = extractor_of(refiner, **_models_of(name, refiner, given), **running(first.settings))
        engine = None
        if (encoder := extractor.encoder) is not None:
            served = (each for each in engines if each.encoder.sha256 == encoder.sha256)
            engine = next(served, None) or first.beside(encoder.to(first.encoder.device), f"refiner {name}")
        return cls(name, refiner, extractor, engine, given)

    @property
    def threshold(self) -> float:
        return float(self.refiner.threshold_)

    def models(self) -> dict[str, str | None]:
        """sha256 of the encoder and of the detector."""
        encoder, detector = self.extractor.encoder, self.extractor.detector
        return {
            "encoder": None if encoder is None else encoder.sha256,
            "detector": None if detector is None else detector.sha256,
        }

    def info(self) -> RefinerInfo:
        from canvas_fm.heads.features.extractor import MAE

        settings = self.extractor.made[MAE].settings if self.engine is not None else {}
        return RefinerInfo(
            sha256=self.refiner.sha256_,
            **self.models(),
            pool=settings.get("pool"),
            layer=settings.get("layer"),
            threshold=self.threshold,
            correction=self.refiner.correction,
            card=card_of(self.refiner.folder_),
        )

    def p_cell(self, blocks: dict[str, np.ndarray], group: str) -> Float32[np.ndarray, " n"]:
        """P(cell) by the features of each block, all candidates being of one brain."""
        features = self.extractor.together(blocks, group)
        return self.refiner.predict_proba(features)[:, 1].astype(np.float32)


def open_refiners(core: Core, first: Engine, settings: Settings) -> dict[str, HostedRefiner]:
    """The refiners that were named at the start."""
    engines, detectors = list(core.every_engine()), list(core.detectors.values())
    return {
        name: HostedRefiner.open(name, path, first, engines, detectors)
        for name, path in settings.refiners.items()
    }


def _served(refiner: Refiner, encoders: Sequence[Encoder], detectors: Sequence[Detector]) -> dict[str, Any]:
    """Those that a refiner was fitted with, None for one that is not served."""
    from canvas_fm.heads.refine.apply import models_needed

    wanted = {made.sha256 for made in models_needed(refiner).values()}
    return {
        "encoder": next((each for each in encoders if each.sha256 in wanted), None),
        "detector": next((each for each in detectors if each.sha256 in wanted), None),
    }


def _models_of(name: str, refiner: Refiner, given: dict[str, Any]) -> dict[str, Any]:
    from canvas_fm.heads.refine.apply import models_of

    try:
        return models_of(refiner, **given)
    except CanvasError as problem:
        raise CanvasError(
            f"the refiner {name} cannot be served: {problem}; a service is given it by --model NAME=FOLDER"
        ) from problem


def running(settings: Settings) -> dict[str, Any]:
    """How the service runs models, as `embed` and `refine` take it."""
    return {
        "device": settings.device,
        "precision": settings.precision,
        "backend": settings.backend,
        "resample": settings.resample,
        "ignore_voxel_size": settings.ignore_voxel_size,
    }


def find_refiner(core: Core, name: str | None) -> HostedRefiner:
    """A refiner by name or sha256, the only one for None; Refusal (404) where that is none."""
    core.engine  # noqa: B018  not ready is said first
    names = ", ".join(core.refiners) or "none"
    if name is None and len(core.refiners) == 1:
        return next(iter(core.refiners.values()))
    for hosted in core.refiners.values():
        if name in (hosted.name, hosted.refiner.sha256_):
            return hosted
    said = "no refiner was named" if name is None else f"no refiner is served as {name[:100]!r}"
    raise Refusal(404, f"{said}; served: {names}")


def check_whole(hosted: HostedRefiner, all_candidates: bool) -> None:
    """Refuse (422) a part of a brain's candidates where all of them decide each one's P(cell)."""
    if hosted.refiner.correction != "none" and not all_candidates:
        raise Refusal(
            422,
            f"the refiner {hosted.name} corrects every brain by all of its candidates "
            f"({hosted.refiner.correction}); send them all and say all_candidates, or send them as a job",
        )


async def refine_points(
    core: Core, hosted: HostedRefiner, asked: RefineRequest, points_zyx: list[list[float]]
) -> Float32[np.ndarray, " n"]:
    """P(cell) of points of a registered volume, rows in the order given: as `canvas_fm.refine` has it."""
    assert asked.volume is not None
    check_number(core, len(points_zyx))
    volume = core.registered(asked.volume)
    background = None if asked.background is None else core.registered(asked.background)
    try:
        async with asyncio.timeout(core.limits.deadline_s):
            blocks = await _blocks(core, hosted, asked.volume, volume, background, points_zyx)
            return await asyncio.to_thread(hosted.p_cell, blocks, volume.name)
    except TimeoutError as problem:
        raise Refusal(
            504, f"no answer within {core.limits.deadline_s:g} s; send fewer points, or a job"
        ) from problem
    except BadInput as problem:
        raise refused(problem) from problem


async def _blocks(
    core: Core,
    hosted: HostedRefiner,
    name: str,
    volume: Volume,
    background: Volume | None,
    points_zyx: list[list[float]],
) -> dict[str, np.ndarray]:
    from canvas_fm.heads.features.extractor import MAE
    from canvas_fm.inference.embed.input_checks import check_points

    extractor = hosted.extractor
    blocks: dict[str, np.ndarray] = {}
    try:
        zyx = check_points(points_zyx, volume.shape_zyx)
        await asyncio.to_thread(extractor.check, volume, background)
        if extractor.detector is not None:
            blocks |= await core.aside.run(
                lambda: extractor.seen_by_detector(volume, zyx, background=background, show=False),
                deadline_s=core.limits.deadline_s,
            )
    except DamagedStore as problem:
        raise unreadable(name, problem) from problem
    except CanvasError as problem:
        raise refused(problem) from problem
    if hosted.engine is not None:
        pool, layer = extractor.pool, extractor.layer
        blocks[MAE] = await embed_points_by(core, hosted.engine, name, points_zyx, pool, layer)
    return blocks


async def refine_crops(
    core: Core, hosted: HostedRefiner, crops: np.ndarray, window: Window | None
) -> Float32[np.ndarray, " n"]:
    """P(cell) of crops; Refusal (422) for a refiner that needs what its detector saw around them."""
    from canvas_fm.heads.features.extractor import MAE

    engine = encoder_of(hosted)
    vectors = await core.embed_by(engine, crops, window, hosted.extractor.pool, hosted.extractor.layer)
    return await asyncio.to_thread(hosted.p_cell, {MAE: vectors}, "crops")


def encoder_of(hosted: HostedRefiner) -> Engine:
    """The encoder of a refiner that judges by it alone; Refusal (422) for one that needs its detector."""
    if hosted.extractor.detector is not None or hosted.engine is None:
        raise Refusal(
            422,
            f"the refiner {hosted.name} judges by what its detector saw around each point, which a crop does "
            "not show; send points_zyx of a registered volume",
        )
    return hosted.engine
