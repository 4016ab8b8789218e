"""YAML that is checked: the key that was meant, every fault at once, and files of strangers."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, Field

from canvas_fm.errors import CanvasError
from canvas_fm.files.strict_yaml import StrictModel, check_settings, read_settings


class Part(StrictModel):
    size: int = Field(gt=0)
    label: str = ""


class Whole(StrictModel):
    title: str
    rate: float = 1.0
    parts: list[Part] = Field(default_factory=list)
    main: Part | None = None


def written(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    return path


def test_a_sound_file_is_read_with_numbers_as_numbers_and_dates_as_text(tmp_path):
    path = written(tmp_path, "title: 2026-03-31\nrate: 1e-6\nparts: [{size: 3}]\nmain: {size: 4, label: a}\n")
    assert read_settings(path, Whole) == Whole(
        title="2026-03-31", rate=1e-6, parts=[Part(size=3)], main=Part(size=4, label="a")
    )


def test_every_fault_is_told_unknown_keys_first(tmp_path):
    path = written(tmp_path, "rate: fast\nparts: [{size: 0}, {sise: 1, size: 2}]\nmain: {lable: b}\n")
    settings, faults = check_settings(path, Whole)
    assert settings is None
    assert faults[:2] == [
        "unknown key 'parts[2].sise'; did you mean 'parts[2].size'?",
        "unknown key 'main.lable'; did you mean 'main.label'?",
    ]
    assert sorted(faults[2:]) == [
        "parts[1].size is 0; expected greater than 0",
        "rate is 'fast'; expected a valid number",
        "the key 'main.size' is missing",
        "the key 'title' is missing",
    ]


def test_a_key_like_no_other_is_answered_with_those_that_are_known(tmp_path):
    with pytest.raises(CanvasError, match=r"unknown key 'parts\[1\]\.zzzz'; known there: size, label"):
        read_settings(written(tmp_path, "title: a\nparts: [{size: 1, zzzz: 2}]\n"), Whole)


def test_an_alias_is_fine_in_ones_own_file_and_refused_in_a_strangers(tmp_path):
    path = written(tmp_path, "title: a\nmain: &it {size: 1}\nparts: [*it, *it]\n")
    assert len(read_settings(path, Whole).parts) == 2
    assert "aliases (*name) are not read here" in check_settings(path, Whole, trusted=False)[1][0]


def test_a_strangers_file_has_to_be_short_and_is_not_repeated_at_length(tmp_path):
    path = written(tmp_path, f"title: {'a' * 70_000}\n")
    assert "at most 65,536 are read" in check_settings(path, Whole, trusted=False)[1][0]
    path = written(tmp_path, f"title: a\nrate: {'b' * 5000}\n")
    assert len(check_settings(path, Whole, trusted=False)[1][0]) < 150


@pytest.mark.parametrize(
    "text", ["a: [", "a: 1\na: 2\n", "!!python/object/apply:os.getcwd []", "\x00", "- 1", ""]
)
def test_what_is_no_mapping_is_refused(text, tmp_path):
    settings, faults = check_settings(written(tmp_path, text), Whole)
    assert settings is None
    assert len(faults) == 1


class Lax(BaseModel):
    rate: float = 1.0
    switch: bool = False
    sizes: tuple[int, ...] = ()
    inner: dict[str, float] = {}


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("rate: yes", "rate is true"),
        ("sizes: [1, off]", "sizes[2] is false"),
        ("inner: {a: on}", "inner.a is true"),
    ],
)
def test_true_is_no_number(tmp_path, text, key):
    settings, faults = check_settings(written(tmp_path, f"switch: yes\n{text}\n"), Lax)
    assert settings is None
    assert faults == [f"{key}; expected a number"]
