"""Adding models and volumes at run time, below allow-listed folders."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from canvas_fm.errors import CanvasError
from serving.core.core import Core
from serving.core.models.describe import detector_info
from serving.protocol.errors import NameTaken, Refusal, refused
from serving.protocol.schemas import DetectorInfo, ModelInfo, VolumeInfo
from serving.protocol.serve_flags import ServedVolume
from serving.protocol.settings import ServiceSettings


async def add_model(core: Core, name: str, requested_path: str) -> ModelInfo | DetectorInfo:
    """Serve another model; its name is free, or names the same model."""
    settings = _changeable(core)
    path = below_roots(settings.roots, requested_path)
    try:
        added = await asyncio.to_thread(core.open_model, name, str(path))
    except CanvasError as problem:
        raise refused(problem, 409 if isinstance(problem, NameTaken) else 422) from problem
    from serving.core.models.model_host import Engine

    return added.model_info() if isinstance(added, Engine) else detector_info(name, added)


async def add_volume(
    core: Core, name: str, requested_path: str, volume_options: Mapping[str, Any]
) -> VolumeInfo:
    """Register another volume for every compatible model."""
    settings = _changeable(core)
    served = ServedVolume(path=str(below_roots(settings.roots, requested_path)), **volume_options)
    if name in core.volumes:
        raise Refusal(409, f"a volume is registered as {name!r}; give another name")
    try:
        await asyncio.to_thread(_register, core, settings, name, served)
    except CanvasError as problem:
        raise refused(problem) from problem
    return core.view(name, None).info()


def _register(core: Core, settings: ServiceSettings, name: str, served: ServedVolume) -> None:
    from serving.core.volumes.remote_volumes import open_volume

    volume = open_volume(settings, served)
    for engine in core.engines.values():
        engine.hosted(name, volume)  # the default one, which refuses what does not fit it
        break
    for engine in core.every_engine():
        if (fitting := engine.fitting(name, volume)) is not None:
            engine.volumes[name] = fitting
    core.volumes[name] = volume


def _changeable(core: Core) -> ServiceSettings:
    """The settings; Refusal (403) where what is served is fixed at the start."""
    if core.settings.workers > 1:
        raise Refusal(403, "with several workers models and volumes are named at the start")
    return core.require_ready()


def below_roots(roots: Sequence[str], requested_path: str) -> Path:
    """The real path of `requested_path`, relative to one of `roots`; links are resolved before it is judged.

    Refusal (403) where no root was given at the start, (404) for what lies outside or is not there: both are
    the same answer, so that nothing can be learnt of the disk.
    """
    if not roots:
        raise Refusal(403, "nothing can be added here: no folder was allow-listed with --root at the start")
    absent = Refusal(
        404, f"nothing is found under that path: {requested_path[:100]!r}; give one below a --root"
    )
    if (
        "\0" in requested_path
        or "\\" in requested_path
        or "://" in requested_path
        or not requested_path.strip()
        or os.path.isabs(requested_path)
    ):
        raise absent
    if any(part in ("..", "~") for part in Path(requested_path).parts):
        raise absent
    for root in roots:
        top = Path(os.path.realpath(root))
        try:
            real = Path(os.path.realpath(top / requested_path, strict=True))
        except (OSError, ValueError):
            continue
        if real != top and real.is_relative_to(top):
            return real
    raise absent
