"""Recipes as YAML: read from a file, changed by `--set`; checked they are in recipe.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from canvas_fm.errors import CanvasError
from canvas_fm.files.settings import Loader


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings of a recipe as they stand in its file; CanvasError for what is no YAML or no mapping."""
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as problem:
        raise CanvasError(f"{path} is not readable as YAML: {' '.join(str(problem).split())}") from problem
    if not isinstance(settings, dict):
        raise CanvasError(f"{path} holds no recipe: a mapping with the key 'training' was expected")
    return settings


def override(settings: dict[str, Any], given: str) -> str:
    """Put `a.b=value`, the value in YAML, into the settings; returns the dotted key."""
    key, equals, text = given.partition("=")
    if not equals or not all(key.split(".")):
        raise CanvasError(
            f"--set {given!r} was given; KEY=VALUE was expected, for example training.steps=200"
        )
    try:
        value = yaml.load(text, Loader)
    except yaml.YAMLError as problem:
        raise CanvasError(f"--set {given!r}: the value is not readable as YAML") from problem
    *sections, last = key.split(".")
    here = settings
    for section in sections:
        inner = here.get(section)
        here[section] = inner = dict(inner) if isinstance(inner, Mapping) else {}
        here = inner
    here[last] = value
    return key
