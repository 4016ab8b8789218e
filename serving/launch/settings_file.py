"""The settings file of `serve` and of a Bento: what is served, options and limits as YAML."""

from __future__ import annotations

import os
from typing import Any

from pydantic import ConfigDict, Field

from canvas_fm.errors import CanvasError
from canvas_fm.files.shipped import DEFAULT_ENCODER
from canvas_fm.files.strict_yaml import read_settings
from serving.protocol.serve_flags import HostOptions, ServedVolume, ServeOptions
from serving.protocol.settings import Limits

FILE_VARIABLE = "CANVAS_FM_SETTINGS"


class HostFile(HostOptions):
    """Every key is optional; paths are those of the serving machine."""

    model_config = ConfigDict(strict=True)

    volumes: dict[str, ServedVolume] = Field(default={})
    models: dict[str, str] = Field(default={})
    refiners: dict[str, str] = Field(default={})
    indexes: dict[str, str] = Field(default={})
    limits: Limits = Limits()


class ServeFile(HostFile, ServeOptions):
    """That of `serve`, with the model that answers where a request names none, and what it is called."""

    model: str | None = None
    name: str = ""


def merged(
    path: str | None,
    model: str | None,
    named: dict[str, dict[str, Any]],
    limits: Limits,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Arguments of `serve`: of the settings file, replaced by what was typed.

    Without a `path` that of the environment's CANVAS_FM_SETTINGS, if any. `named` are models, volumes,
    refiners and indexes by name, beside those of the file. CanvasError where neither names a model.
    """
    path = path or os.environ.get(FILE_VARIABLE) or None
    file = ServeFile.of() if path is None else read_settings(path, ServeFile)
    model = model or file.model
    if model is None:
        raise CanvasError(
            f"no model was given; name one, as in canvas-fm serve {DEFAULT_ENCODER}, "
            "or as model: in --settings"
        )
    stated = {
        key: value for key, value in file.explicit.items() if key in (*ServeOptions.model_fields, "name")
    }
    beside = {kind: getattr(file, kind) | sections for kind, sections in named.items()}
    changed = file.limits.model_dump(exclude_unset=True) | limits.model_dump(exclude_unset=True)
    return {"model": model, **beside, "limits": Limits(**changed), **stated, **options}
