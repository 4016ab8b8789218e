"""Embeddings at points of a registered volume; the next batch is read while one is computed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from canvas_fm.errors import CanvasError, DamagedStore, Unreachable
from serving.core.core import Core
from serving.core.embed.crops import Key, check_reply, key_of
from serving.protocol.errors import Refusal
from serving.protocol.request_values import ParsedRows

if TYPE_CHECKING:
    from serving.core.models.model_host import Engine, HostedVolume

logger = logging.getLogger(__name__)

Batch = tuple[np.ndarray, np.ndarray]


async def embed_points(
    core: Core,
    engine: Engine,
    volume: str,
    points_zyx: ParsedRows,
    pool: str | None,
    layer: int | None,
) -> np.ndarray:
    """Embeddings (n, d) of the crops around points of a registered volume, rows in the order given."""
    hosted, key = core.volume(engine, volume), key_of(engine, pool, layer)
    check_number(core, len(points_zyx))
    check_reply(engine, key, len(points_zyx), core.limits)
    points = hosted.check(points_zyx)
    deadline_s = core.limits.deadline_s
    try:
        async with asyncio.timeout(deadline_s):
            return await _embedded(core, engine, hosted, points, key)
    except TimeoutError as problem:
        raise Refusal(504, f"no answer within {deadline_s:g} s; send fewer points") from problem


def check_number(core: Core, points: int) -> None:
    """Refuse (413) more points than a request may have."""
    most = core.limits.max_points
    if points > most:
        raise Refusal(413, f"{points} points in one request; {most} are the most, send fewer")


async def _embedded(
    core: Core, engine: Engine, hosted: HostedVolume, points: np.ndarray, key: Key
) -> np.ndarray:
    """Pipeline: read the next batch while the current one is computed."""
    out = np.empty((len(points), *engine.one_shape(key.pool, key.layer)), np.float32)
    batches = hosted.batches(points, engine.max_batch)
    running: asyncio.Task[None] | None = None

    async def one(rows: np.ndarray, crops: np.ndarray, wait_for_room: bool) -> None:
        out[rows] = await core.vectors.get(engine, key, crops, wait_for_room=wait_for_room)

    try:
        while (item := await asyncio.to_thread(_next_batch, hosted.name, batches)) is not None:
            rows, crops = item
            wait_for_room = running is not None
            if running is not None:
                await running
            running = asyncio.create_task(one(rows, crops, wait_for_room))
        if running is not None:
            await running
    finally:
        if running is not None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    return out


def _next_batch(name: str, batches: Iterator[Batch]) -> Batch | None:
    """Next rows and crops; an unreadable volume is a server error."""
    try:
        return next(batches, None)
    except CanvasError as problem:
        raise unreadable(name, problem) from problem


def unreadable(name: str, problem: CanvasError) -> Refusal:
    """Refusal for an unreadable volume, without its path, which is in the log."""
    logger.error("the volume %r cannot be read", name, exc_info=problem)
    if isinstance(problem, Unreachable) and problem.passing:
        message = f"the volume {name!r} cannot be read now: its remote store does not answer; try again later"
        return Refusal(503, message, retry_after_s=10)
    where = "; the server's log says why"
    if isinstance(problem, DamagedStore):
        where = f": array {problem.array!r}, chunk {problem.chunk!r} is damaged"
    return Refusal(500, f"the volume {name!r} cannot be read{where}")
