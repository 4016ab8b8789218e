"""Reading recipe YAML and applying `--set`; validation is in recipe.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from canvas_fm.errors import CanvasError
from canvas_fm.files.strict_yaml import Loader


def read_yaml(path: Path) -> dict[str, Any]:
    """Unvalidated settings of a recipe file; CanvasError if it is no YAML mapping."""
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as problem:
        raise CanvasError(f"{path} is not readable as YAML: {' '.join(str(problem).split())}") from problem
    if not isinstance(settings, dict):
        raise CanvasError(f"{path} holds no recipe: a mapping with the key 'training' was expected")
    return settings


def override(settings: dict[str, Any], assignment: str) -> str:
    """Apply `a.b=value`, value in YAML, to the settings; returns the dotted key."""
    key, equals, text = assignment.partition("=")
    if not equals or not all(key.split(".")):
        raise CanvasError(
            f"--set {assignment!r} was given; KEY=VALUE was expected, for example training.steps=200"
        )
    try:
        value = yaml.load(text, Loader)
    except yaml.YAMLError as problem:
        raise CanvasError(f"--set {assignment!r}: the value is not readable as YAML") from problem
    *sections, last = key.split(".")
    level = settings
    for section in sections:
        inner = level.get(section)
        level[section] = inner = dict(inner) if isinstance(inner, Mapping) else {}
        level = inner
    level[last] = value
    return key
