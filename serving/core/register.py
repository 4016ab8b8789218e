"""Models and volumes that are added while the service runs, from below the allow-listed folders."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from canvas_fm.errors import CanvasError
from serving.core.allowed import below_roots
from serving.core.core import Core
from serving.protocol.errors import Refusal, refused

if TYPE_CHECKING:
    from serving.core.model_host import Engine, HostedVolume


async def add_model(core: Core, name: str, given: str) -> Engine:
    """Serve one more model; its name is free, or names the same one."""
    default = _addable(core)
    path = below_roots(core.roots, given)
    try:
        engine = await asyncio.to_thread(default.further, name, str(path))
    except CanvasError as problem:
        raise refused(problem) from problem
    held = core.engines.get(name)
    if held is not None and held.encoder.sha256 != engine.encoder.sha256:
        raise Refusal(409, f"another model is served as {name!r}; give another name")
    return core.serve_too(name, engine)


async def add_volume(core: Core, name: str, given: str) -> HostedVolume:
    """Register one more volume, for every model that fits it."""
    default = _addable(core)
    path = below_roots(core.roots, given)
    if name in default.volumes:
        raise Refusal(409, f"a volume is registered as {name!r}; give another name")
    try:
        hosted = await asyncio.to_thread(default.host, name, str(path))
    except CanvasError as problem:
        raise refused(problem) from problem
    for engine in core.every_engine():
        if (fitting := engine.fitting(name, hosted.volume)) is not None:
            engine.volumes[name] = fitting
    return default.volumes[name]


def _addable(core: Core) -> Engine:
    if core.workers > 1:
        raise Refusal(403, "with several workers models and volumes are named at the start")
    return core.engine
