"""P(cell) of points of a registered volume or of crops, by a served refiner."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from canvas_fm.errors import DamagedStore
from serving.core.core import Core
from serving.core.embed.crops import Window
from serving.core.embed.points import check_number, embed_points, unreadable
from serving.core.models.hosted_refiner import HostedRefiner
from serving.protocol.errors import Refusal
from serving.protocol.request_options import RefineRequest
from serving.protocol.request_values import ParsedRows

if TYPE_CHECKING:
    from canvas_fm.data.volume.volume import Volume
    from serving.core.models.model_host import Engine


def find_refiner(core: Core, name: str | None) -> HostedRefiner:
    """A refiner by name or sha256, the only one for None; Refusal (404) if unknown."""
    core.require_ready()
    names = ", ".join(core.refiners) or "none"
    if name is None and len(core.refiners) == 1:
        return next(iter(core.refiners.values()))
    for hosted in core.refiners.values():
        if name in (hosted.name, hosted.refiner.sha256_):
            return hosted
    reason = "no refiner was named" if name is None else f"no refiner is served as {name[:100]!r}"
    raise Refusal(404, f"{reason}; served: {names}")


def check_whole(hosted: HostedRefiner, all_candidates: bool) -> None:
    """Refuse (422) part of a brain's candidates if each P(cell) depends on all of them."""
    if hosted.refiner.correction != "none" and not all_candidates:
        raise Refusal(
            422,
            f"the refiner {hosted.name} corrects every brain by all of its candidates "
            f"({hosted.refiner.correction}); send them all and say all_candidates, or send them as a job",
        )


async def refine_points(
    core: Core, hosted: HostedRefiner, body: RefineRequest, points_zyx: ParsedRows
) -> Float32[np.ndarray, " n"]:
    """P(cell) of points of a registered volume, rows in order: as `canvas_fm.refine`."""
    assert body.volume is not None
    check_number(core, len(points_zyx))
    volume = core.registered(body.volume)
    background = None if body.background is None else core.registered(body.background)
    try:
        async with asyncio.timeout(core.limits.deadline_s):
            blocks = await _blocks(core, hosted, body.volume, volume, background, points_zyx)
            return await asyncio.to_thread(hosted.p_cell, blocks, volume.name)
    except TimeoutError as problem:
        raise Refusal(
            504, f"no answer within {core.limits.deadline_s:g} s; send fewer points, or a job"
        ) from problem


async def _blocks(
    core: Core,
    hosted: HostedRefiner,
    name: str,
    volume: Volume,
    background: Volume | None,
    points_zyx: ParsedRows,
) -> dict[str, np.ndarray]:
    from canvas_fm.heads.features.extractor import AMPLITUDE, MAE, SHAPE
    from canvas_fm.inference.input_checks import check_points

    extractor = hosted.extractor
    blocks: dict[str, np.ndarray] = {}
    try:
        zyx = check_points(points_zyx, volume.shape_zyx)
        await asyncio.to_thread(extractor.check, volume, background)
        if extractor.detector is not None:
            blocks |= await core.model_pool.run(
                lambda: extractor.detector_blocks(volume, zyx, background=background, show=False)
            )
        if extractor.shape is not None:
            blocks[SHAPE] = await asyncio.to_thread(extractor.shape_of, volume, zyx)
        if extractor.amplitude is not None:
            blocks[AMPLITUDE] = await asyncio.to_thread(extractor.amplitude.at, volume, zyx)
    except DamagedStore as problem:
        raise unreadable(name, problem) from problem
    if hosted.engine is not None:
        pool, layer = extractor.pool, extractor.layer
        blocks[MAE] = await embed_points(core, hosted.engine, name, points_zyx, pool, layer)
    return blocks


async def refine_crops(
    core: Core, hosted: HostedRefiner, crops: np.ndarray, window: Window | None
) -> Float32[np.ndarray, " n"]:
    """P(cell) of crops; Refusal (422) for a refiner that needs more of the volume than a crop shows."""
    from canvas_fm.heads.features.extractor import MAE

    engine = encoder_of(hosted)
    vectors = await core.embed(engine, crops, window, hosted.extractor.pool, hosted.extractor.layer)
    return await asyncio.to_thread(hosted.p_cell, {MAE: vectors}, "crops")


def encoder_of(hosted: HostedRefiner) -> Engine:
    """The encoder of a refiner that judges by it alone; Refusal (422) for one that needs more than crops."""
    what = None
    if hosted.extractor.shape is not None:
        what = "the shape of each spot, measured against the whole volume's median out to 24 µm"
    elif hosted.extractor.detector is not None or hosted.engine is None:
        what = "what its detector saw around each point"
    if what is not None:
        raise Refusal(
            422,
            f"the refiner {hosted.name} judges by {what}, which a crop does not show; send points_zyx of a "
            "registered volume",
        )
    assert hosted.engine is not None
    return hosted.engine
