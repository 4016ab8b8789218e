"""Kind of training of a recipe, by the key that only this kind has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from canvas_fm.files.shipped import find
from canvas_fm.training.recipe.detector_recipe import DetectorRecipe
from canvas_fm.training.recipe.joint_recipe import JointRecipe
from canvas_fm.training.recipe.overrides import read_yaml
from canvas_fm.training.recipe.recipe import AnyRecipe, Recipe


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
