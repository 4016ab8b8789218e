"""Two labelled cubes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.detector.cubes import write_cube


@pytest.fixture(scope="session")
def labelled_cubes(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("cubes")
    return [write_cube(folder, "a", 0), write_cube(folder, "b", 1, brightness=3.0)]
