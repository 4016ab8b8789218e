"""`list`: everything that ships, with a line each, by the names that other verbs take."""

from __future__ import annotations

from canvas_fm.data.volume.volume import Volume
from canvas_fm.files.shipped import find, shipped


def test_everything_that_ships_is_listed_with_a_line(run, result):
    found = result("list")
    assert set(found["model"]) == set(shipped("model"))
    assert set(found["recipe"]) == set(shipped("recipe"))
    assert {name.removeprefix("sample:") for name in found["sample"]} == set(shipped("sample"))
    for names in found.values():
        for name, line in names.items():
            assert len(line) > 20, name
            assert not line.startswith("#"), name
            assert line.endswith("."), name  # a whole sentence
    code, out, _ = run("list")
    assert code == 0
    assert all(name in out for names in found.values() for name in names)


def test_the_names_are_those_that_verbs_take(result):
    found = result("list")
    assert all(find("model", name).is_dir() for name in found["model"])
    assert all(Volume.open(name).shape_zyx == (64, 160, 160) for name in found["sample"])


def test_a_sample_is_scored_by_its_name(result, tmp_path):
    score = result("evaluate", "sample:cfos", "sample:cfos", "--tolerance-um", 8, "--volume", "sample:cfos")
    assert score["f1"] == 1.0
