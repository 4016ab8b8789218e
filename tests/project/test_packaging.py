"""The descriptions of the package say the same: version, dependencies, command."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from canvas_fm.version import __version__

ROOT = Path(__file__).parents[2]
OTHER_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}  # of the conda packages


def requirement(text: str) -> tuple[str, str]:
    """Name and bounds of a dependency, however it is spaced."""
    name, bounds = re.fullmatch(r"([\w.-]+)\s*(.*)", text).groups()
    return OTHER_NAMES.get(name, name), bounds.replace(" ", "")


def test_the_conda_recipe_has_the_version_and_dependencies_of_the_wheel():
    recipe = yaml.safe_load((ROOT / "recipe.yaml").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert recipe["context"]["version"] == __version__
    run = dict(map(requirement, recipe["requirements"]["run"]))
    assert run.pop("python") == project["requires-python"]
    assert run == dict(map(requirement, project["dependencies"]))
    ((name, entry),) = project["scripts"].items()
    assert recipe["build"]["python"]["entry_points"] == [f"{name} = {entry}"]


def test_rattler_build_renders_the_recipe():
    """A build needs a channel with python and hatchling; rendering and the schema need none."""
    rattler = pytest.importorskip(
        "rattler_build", reason="rattler-build is not installed: pip install py-rattler-build"
    )
    (variant,) = rattler.Stage0Recipe.from_file(ROOT / "recipe.yaml").render()
    assert variant.recipe.package.version == __version__
    assert variant.recipe.build.noarch == "python"
    text = (ROOT / "recipe.yaml").read_text(encoding="utf-8")
    with pytest.raises(rattler.RecipeParseError):
        rattler.Stage0Recipe.from_yaml(text.replace("noarch: python", "noarch: pythonic"))


def test_the_citation_has_the_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == __version__


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=str)
def test_an_issue_form_asks_for_what_is_needed(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert form["name"]
    assert form["description"]
    assert {part["type"] for part in form["body"]} <= {"textarea", "input", "checkboxes"}
    assert sum(part.get("validations", {}).get("required", False) for part in form["body"]) >= 3
