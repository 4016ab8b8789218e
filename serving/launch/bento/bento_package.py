"""Settings of the service inside a Bento, built by `bentoml build` and run by `bentoml serve`.

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

from canvas_fm.errors import CanvasError
from canvas_fm.files.strict_yaml import read_settings
from serving.core.core import Core
from serving.launch.bento.bento_service import (  # which lets uvicorn use our protocol
    keep_loaded,
    make_service,
    set_up_worker,
)
from serving.launch.bento.model_store import folder_in
from serving.launch.bento.supervisor import keep_control_private
from serving.launch.serve import settings_of
from serving.launch.settings_file import FILE_VARIABLE, HostFile
from serving.protocol.settings import Limits, ServiceSettings

logger = logging.getLogger(__name__)

MODEL_ALIAS = "encoder"  # of pyproject.toml's [tool.bentoml.build]


class Packed(HostFile):
    """The settings file of a Bento, whose log is for machines."""

    log: Literal["text", "json"] = "json"


def read_packed() -> ServiceSettings:
    """Settings of a worker of `bentoml serve`; invalid ones end the service with a message."""
    try:
        settings = _settings()
    except CanvasError as problem:
        end_with(str(problem))
        raise
    set_up_worker(settings)
    return settings


def _settings() -> ServiceSettings:
    path = os.environ.get(FILE_VARIABLE)
    packed = Packed.of() if path is None else read_settings(path, Packed)
    if packed.keys is None:
        logger.warning("no keys are set: whoever reaches the port can use the service")
    stored = bentoml.models.get(MODEL_ALIAS)
    settings = settings_of(
        folder_in(Path(stored.path), stored.info.labels.get("sha256")),
        packed.volumes,
        models=packed.models,
        refiners=packed.refiners,
        indexes=packed.indexes,
        limits=packed.limits,
        options=packed,
    )
    return settings.model_copy(update={"supervisor": os.getppid()})


def end_with(sentence: str) -> None:
    """Log a message and end this worker and its supervisor, which would restart it forever."""
    logger.error("%s", sentence)
    os.kill(os.getppid(), signal.SIGTERM)


service = make_service(Core(read_packed, on_failure=end_with, after_load=keep_loaded))
service.config["http"] = {"host": "127.0.0.1", "port": 3000}  # loopback unless --host says otherwise
keep_control_private(Limits().stopping_s)
