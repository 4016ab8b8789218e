"""Adding models and volumes at run time, from below the allow-listed folders."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canvas_fm.errors import CanvasError
from serving.core.core import Core
from serving.protocol.errors import Refusal, refused
from serving.protocol.options import ServedVolume

if TYPE_CHECKING:
    from serving.core.model_host import Engine, HostedVolume


async def add_model(core: Core, name: str, given: str) -> Engine:
    """Serve one more model; its name is free, or names the same one."""
    default, roots = _default_and_roots(core)
    path = below_roots(roots, given)
    try:
        engine = await asyncio.to_thread(default.further, name, str(path))
    except CanvasError as problem:
        raise refused(problem) from problem
    held = core.engines.get(name)
    if held is not None and held.encoder.sha256 != engine.encoder.sha256:
        raise Refusal(409, f"another model is served as {name!r}; give another name")
    return core.serve_too(name, engine)


async def add_volume(core: Core, name: str, given: str, opening: Mapping[str, Any]) -> HostedVolume:
    """Register one more volume, for every model that fits it."""
    default, roots = _default_and_roots(core)
    served = ServedVolume(path=str(below_roots(roots, given)), **opening)
    if name in default.volumes:
        raise Refusal(409, f"a volume is registered as {name!r}; give another name")
    try:
        hosted = await asyncio.to_thread(default.host, name, served)
    except CanvasError as problem:
        raise refused(problem) from problem
    for engine in core.every_engine():
        if (fitting := engine.fitting(name, hosted.volume)) is not None:
            engine.volumes[name] = fitting
    return default.volumes[name]


def _default_and_roots(core: Core) -> tuple[Engine, tuple[str, ...]]:
    if core.settings is None or core.settings.workers > 1:
        raise Refusal(403, "with several workers models and volumes are named at the start")
    return core.require_ready(), core.settings.roots


def below_roots(roots: Sequence[str], given: str) -> Path:
    """The real path of `given`, relative to one of `roots`; links are resolved before it is judged.

    Refusal (403) where no root was given at the start, (404) for what lies outside or is not there: both are
    the same answer, so that nothing can be learnt of the disk.
    """
    if not roots:
        raise Refusal(403, "nothing can be added here: no folder was allow-listed with --root at the start")
    absent = Refusal(404, f"nothing is found under that path: {given[:100]!r}; give one below a --root")
    if "\0" in given or "\\" in given or "://" in given or not given.strip() or os.path.isabs(given):
        raise absent
    if any(part in ("..", "~") for part in Path(given).parts):
        raise absent
    for root in roots:
        top = Path(os.path.realpath(root))
        try:
            real = Path(os.path.realpath(top / given, strict=True))
        except (OSError, ValueError):
            continue
        if real != top and real.is_relative_to(top):
            return real
    raise absent
