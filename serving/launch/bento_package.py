"""The service as a Bento holds it: `bentoml build` packs it with a stored model, `bentoml serve` runs it.

The model is the Bento's own. All else comes from a file, YAML, that the environment variable
CANVAS_FM_SETTINGS names: the options of `canvas_fm.serve` but for those of the network, which are BentoML's.
"""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import Literal

import bentoml
from pydantic import ConfigDict, Field

from canvas_fm.errors import CanvasError
from canvas_fm.files.settings import read_settings
from serving.core.core import Core
from serving.launch.bento_service import make_service, set_up_worker  # which lets uvicorn use our protocol
from serving.launch.model_store import folder_in
from serving.launch.serve import settings_of
from serving.launch.supervisor import keep_control_private
from serving.protocol.options import HostOptions, ServedVolume
from serving.protocol.settings import Limits, Settings

logger = logging.getLogger(__name__)

FILE_VARIABLE = "CANVAS_FM_SETTINGS"
MODEL_ALIAS = "encoder"  # of pyproject.toml's [tool.bentoml.build]


class Packed(HostOptions):
    """The file; every key may be left out, paths are those of the machine that serves."""

    model_config = ConfigDict(strict=True)

    volumes: dict[str, ServedVolume] = Field(default={})
    models: dict[str, str] = Field(default={})
    refiners: dict[str, str] = Field(default={})
    indexes: dict[str, str] = Field(default={})
    log: Literal["text", "json"] = "json"
    limits: Limits = Limits()


def read_packed() -> Settings:
    """The settings of a worker of `bentoml serve`; where they cannot be meant, the service ends with why."""
    try:
        settings = _settings()
    except CanvasError as problem:
        end_with(str(problem))
        raise
    set_up_worker(settings)
    return settings


def _settings() -> Settings:
    path = os.environ.get(FILE_VARIABLE)
    asked = Packed.of() if path is None else read_settings(path, Packed)
    if asked.keys is None:
        logger.warning("no keys are set: whoever reaches the port can use the service")
    stored = bentoml.models.get(MODEL_ALIAS)
    settings = settings_of(
        folder_in(Path(stored.path), stored.info.labels.get("sha256")),
        asked.volumes,
        models=asked.models,
        refiners=asked.refiners,
        indexes=asked.indexes,
        limits=asked.limits,
        options=asked,
    )
    return settings.model_copy(update={"supervisor": os.getppid()})


def end_with(sentence: str) -> None:
    """Say why this worker cannot serve, and end it with its supervisor, which would start it for ever."""
    logger.error("%s", sentence)
    os.kill(os.getppid(), signal.SIGTERM)


service = make_service(Core(read_packed, on_failure=end_with))
service.config["http"] = {"host": "127.0.0.1", "port": 3000}  # loopback unless --host says otherwise
keep_control_private(Limits().stop_s)
