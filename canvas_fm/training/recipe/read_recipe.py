"""Recipes read from YAML, with `--set` applied and all mistakes in one error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from canvas_fm.errors import CanvasError
from canvas_fm.files.shipped import find
from canvas_fm.files.strict_yaml import Loader, explain
from canvas_fm.training.recipe.detector_recipe import DetectorRecipe
from canvas_fm.training.recipe.joint_recipe import JointRecipe
from canvas_fm.training.recipe.recipe import AnyRecipe, Recipe

R = TypeVar("R", bound=AnyRecipe)


RecipeLike = str | Path | AnyRecipe | Mapping[str, Any]


def read_recipe(recipe: RecipeLike, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate the recipe of a pretraining; see `read_recipe_of`."""
    return read_recipe_of(Recipe, recipe, overrides)


def read_recipe_of(kind: type[R], recipe: RecipeLike, overrides: Sequence[str] = ()) -> R:
    """Validated recipe from a YAML file, a shipped name, or a mapping.

    `overrides` are `a.b=value` with the value in YAML. CanvasError with a sentence for each mistake: an
    unknown key with the nearest right one, a wrong value with where it stands and what was expected.
    """
    checked, faults = check_recipe(kind, recipe, overrides)
    if checked is None:
        raise CanvasError("; ".join(faults))
    return checked


def check_recipe(
    kind: type[R], recipe: RecipeLike, overrides: Sequence[str] = ()
) -> tuple[R | None, list[str]]:
    """The recipe that `read_recipe_of` gives, or None and all that is wrong, a sentence each."""
    if isinstance(recipe, AnyRecipe):
        source, settings = "the recipe", recipe.model_dump(mode="json")
    elif isinstance(recipe, Mapping):
        source, settings = "the recipe", {key: value for key, value in recipe.items()}
    else:
        try:
            path = find("recipe", recipe)
            source, settings = str(path), read_yaml(path)
        except CanvasError as problem:
            return None, [str(problem)]
    verbs = ["train-detector" if "kind" in keys else "pretrain" for keys in (settings, kind.model_fields)]
    if verbs[0] != verbs[1]:
        return None, [f"{source} is a recipe for `canvas-fm {verbs[0]}`, not for `{verbs[1]}`"]
    origin, faults = {}, []
    for assignment in overrides:
        try:
            origin[override(settings, assignment)] = f"--set {assignment}"
        except CanvasError as problem:
            faults.append(str(problem))
    try:
        checked = kind.model_validate(settings)
    except ValidationError as problem:
        wrong = explain(problem, kind)
        faults += [f"{_origin(key, origin) or source}: {sentence}" for key, sentence in wrong]
    return (None, faults) if faults else (checked, [])


def _origin(key: str, overridden: Mapping[str, str]) -> str | None:
    """The `--set` that a wrong key comes from, the last one; None for the file."""
    flag = None
    for name, text in overridden.items():
        if key == name or key.startswith((f"{name}.", f"{name}[")) or name.startswith(f"{key}."):
            flag = text
    return flag


def first_difference(before: AnyRecipe, after: AnyRecipe) -> tuple[str, Any, Any] | None:
    """(key, value before, value after) of the first differing setting, None if equal."""
    old, new = (dict(_flat(recipe.model_dump(mode="json"))) for recipe in (before, after))
    for key in [*old, *(key for key in new if key not in old)]:
        if old.get(key) != new.get(key):
            return key, old.get(key), new.get(key)
    return None


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


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
    section, last = section_of(settings, key)
    section[last] = value
    return key


def section_of(settings: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The mapping that holds `a.b`, and `b`; sections on the way are copied, or made."""
    *sections, last = key.split(".")
    for name in sections:
        inner = settings.get(name)
        settings[name] = settings = dict(inner) if isinstance(inner, Mapping) else {}
    return settings, last


def recipe_class(recipe: str | Path | AnyRecipe | Mapping[str, Any]) -> type[AnyRecipe]:
    """Class of a recipe: `kind` marks a detector's, `objective` a joint embedding's."""
    if isinstance(recipe, AnyRecipe):
        return type(recipe)
    settings = recipe if isinstance(recipe, Mapping) else read_yaml(find("recipe", recipe))
    if "kind" in settings:
        return DetectorRecipe
    return JointRecipe if "objective" in settings else Recipe


def pretraining_class(recipe: str | Path | AnyRecipe) -> type[Recipe] | type[JointRecipe]:
    """Class of a recipe for `pretrain`; a detector's is read as a masked autoencoder's, which refuses it."""
    return JointRecipe if recipe_class(recipe) is JointRecipe else Recipe
