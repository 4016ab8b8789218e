"""Which training a recipe is for, by the key that only its kind has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from canvas_fm.shipped import find
from canvas_fm.training.recipe.detector_recipe import DetectorRecipe
from canvas_fm.training.recipe.joint_recipe import JointRecipe
from canvas_fm.training.recipe.overrides import read_yaml
from canvas_fm.training.recipe.recipe import AnyRecipe, Recipe


def recipe_class(given: str | Path | AnyRecipe | Mapping[str, Any]) -> type[AnyRecipe]:
    """The class of a recipe: `kind` stands in a detector's, `objective` in a joint embedding's."""
    if isinstance(given, AnyRecipe):
        return type(given)
    settings = given if isinstance(given, Mapping) else read_yaml(find("recipe", given))
    if "kind" in settings:
        return DetectorRecipe
    return JointRecipe if "objective" in settings else Recipe


def pretraining_class(given: str | Path | AnyRecipe) -> type[Recipe] | type[JointRecipe]:
    """The same for `pretrain`; a detector's recipe is read as a masked autoencoder's, which refuses it."""
    return JointRecipe if recipe_class(given) is JointRecipe else Recipe
