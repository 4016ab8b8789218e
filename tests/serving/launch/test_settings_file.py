"""The settings file of `serve`: as the Bento's, with what is typed before it; and a mistake is a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

import serving.launch.serve as launch
from canvas_fm.cli import main
from canvas_fm.errors import CanvasError
from canvas_fm.files.shipped import DEFAULT_ENCODER
from serving.launch.settings_file import FILE_VARIABLE, merged
from serving.protocol.settings import Limits

TEXT = """
model: base-5
volumes: {gfp: {path: two.zarr, c: 0}}
refiners: {th: refiner}
port: 4000
keys: keys.txt
roots: [data]
limits: {max_points: 500, rate_per_s: 5}
"""
NONE: dict[str, dict] = {"volumes": {}, "models": {}, "refiners": {}, "indexes": {}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "serve.yaml"
    path.write_text(TEXT)
    return path


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """What `serve` was called with."""
    calls: list[dict] = []
    monkeypatch.setattr(launch, "serve", lambda **words: calls.append(words))
    return calls


def test_the_file_alone_is_enough(file: Path, given: list[dict]) -> None:
    assert main(["serve", "--settings", str(file)]) == 0
    (words,) = given
    assert (words["model"], words["port"], words["keys"], words["roots"]) == (
        "base-5",
        4000,
        "keys.txt",
        ("data",),
    )
    assert (words["volumes"]["gfp"].path, words["volumes"]["gfp"].c) == ("two.zarr", 0)
    assert words["refiners"] == {"th": "refiner"}
    assert (words["limits"].max_points, words["limits"].rate_per_s) == (500, 5)


def test_what_is_typed_comes_before_it(file: Path, given: list[dict], monkeypatch) -> None:
    monkeypatch.setenv(FILE_VARIABLE, str(file))
    typed = ["serve", "mine=base", "--port", "5000", "--limit", "max_points=7", "--index", "a=a.index"]
    assert main(typed) == 0
    (words,) = given
    assert (words["model"], words["name"], words["port"]) == ("base", "mine", 5000)
    assert (words["limits"].max_points, words["limits"].rate_per_s) == (7, 5)
    assert (words["indexes"], words["refiners"]) == ({"a": "a.index"}, {"th": "refiner"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: base\nprot: 3000\n", "unknown key 'prot'; did you mean 'port'"),
        ("model: base\nlimits: {max_point: 3}\n", "max_points"),
        ("port: 3000\n", "no model was given"),
        ("model: base\nport: '3000'\n", "port is '3000'"),
    ],
)
def test_a_mistake_in_it_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    with pytest.raises(CanvasError, match=message):
        merged(str(path), None, NONE, Limits(), {})


def test_without_file_and_model_the_command_says_what_is_missing(monkeypatch) -> None:
    monkeypatch.delenv(FILE_VARIABLE, raising=False)
    with pytest.raises(CanvasError, match=f"name one, as in canvas-fm serve {DEFAULT_ENCODER}, or"):
        merged(None, None, NONE, Limits(), {})
