"""The package ships its types, and a user's program that mypy checks does what it says."""

import tomllib
from pathlib import Path

import numpy as np

from tests.project.typed_program import main

ROOT = Path(__file__).parents[2]


def test_the_program_runs_and_is_checked_by_mypy():
    vectors, expected = main()
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
    assert "tests/project/typed_program.py" in options["files"]


def test_the_types_travel_with_the_packages():
    assert (ROOT / "canvas_fm" / "py.typed").is_file()
    assert (ROOT / "serving" / "py.typed").is_file()
