"""What is there already is never replaced unasked, whichever verb is to write it."""

from __future__ import annotations

import argparse
import re

import numpy as np
import pytest

from canvas_fm.cli import build_parser
from canvas_fm.cli.parser import Parser
from canvas_fm.data.points.points import Points

MADE_BY_NAME = re.compile(r"out|(cells|distances)_out|figure|export|examples|volcano|heat_map|table")
"""How arguments that name a file to write are called."""

OWN_RULES = {
    "phantom out", "dataset write out", "convert out", "destripe out", "stitch out", "pretrain out",
    "embed out", "export out", "export-onnx out", "detect out", "train-detector out", "adapt out",
    "domains out", "refine fit out", "refine apply out", "review out", "count out", "count figure",
    "study out", "probe fit out", "report out", "audit out", "view export", "index out", "sweep out",
    "demo out",
}  # fmt: skip
"""Verbs that go on in what they wrote, or check it themselves: below, or in their own tests."""

READ = {"coexpress table", "count table", "regions table", "brain-report table", "view heat_map"}


def leaves(parser: Parser, name: str = "") -> list[tuple[str, Parser]]:
    """Every verb and sub-verb with its parser."""
    for action in parser.filled()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return [
                leaf for verb, below in action.choices.items() for leaf in leaves(below, f"{name} {verb}")
            ]
    return [(name.strip(), parser)]


VERBS = leaves(build_parser())
OUTPUTS = [(verb, action) for verb, parser in VERBS for action in parser._outputs.actions.values()]


def test_every_argument_that_names_a_file_to_write_is_guarded():
    guarded = {f"{verb} {action.dest}" for verb, action in OUTPUTS}
    named = {
        f"{verb} {action.dest.rpartition('.')[2]}"  # of an option set: its name and the field's
        for verb, parser in VERBS
        for action in parser._actions
        if MADE_BY_NAME.fullmatch(action.dest.rpartition(".")[2]) and action.nargs != 0
    }
    assert named == guarded | OWN_RULES | READ


def words_of(parser: Parser, verb: str, output: argparse.Action, path: str) -> list[str]:
    """A command with `output` at `path`, all other files of which do not exist."""
    words = verb.split()
    for group in parser._mutually_exclusive_groups:
        if group.required:
            words += [group._group_actions[0].option_strings[0], "nowhere.npy"]
    for action in parser._actions:
        if action is output or not action.required:
            continue
        count = action.nargs if isinstance(action.nargs, int) else 1
        words += [
            *action.option_strings[:1],
            *(["1"] * count if action.type else [f"nowhere-{action.dest}"] * count),
        ]
    return (
        [*words, *output.option_strings[:1], path]
        if output.option_strings
        else [*words[:-1], words[-1], path]
    )


@pytest.mark.parametrize(("verb", "output"), OUTPUTS, ids=[f"{verb} {each.dest}" for verb, each in OUTPUTS])
def test_a_file_that_is_there_is_refused_before_anything_is_read(verb, output, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").write_text("mine")
    parser = dict(VERBS)[verb]
    place = "folder" if output.dest in parser._outputs.folders else "kept"
    code, out, err = run(*words_of(parser, verb, output, place))
    assert (code, out) == (1, ""), err
    assert f"{place} is there already; give another" in err
    assert "--overwrite to replace it" in err
    assert (tmp_path / "kept").read_text() == (tmp_path / "folder" / "kept").read_text() == "mine"
    parser._typed = argparse.Namespace(**{output.dest: place, "overwrite": True})
    assert parser._outputs.faults(parser._typed) == []


@pytest.fixture
def cells(tmp_path):
    for seed, name in enumerate(("cells.csv", "others.csv")):
        Points(np.random.default_rng(seed).random((40, 3)) * 50).write(tmp_path / name)
    return tmp_path / "cells.csv"


def proximity(cells, out, *more: object) -> list[object]:
    return [
        "proximity",
        cells,
        cells.with_name("others.csv"),
        "--voxel-um",
        1,
        1,
        1,
        "--draws",
        19,
        "--out",
        out,
        *more,
    ]


def test_overwrite_replaces_it(cells, run, tmp_path):
    out = tmp_path / "curves.csv"
    out.write_text("mine")
    assert run(*proximity(cells, out))[0] == 1
    assert out.read_text() == "mine"
    code, _, err = run(*proximity(cells, out, "--overwrite"))
    assert code == 0, err
    assert out.read_text().startswith("radius_um")


def test_an_empty_file_holds_nothing(cells, run, tmp_path):
    out = tmp_path / "curves.csv"
    out.touch()
    assert run(*proximity(cells, out))[0] == 0


def test_two_outputs_are_two_files(cells, refusal, tmp_path):
    out = tmp_path / "curves.csv"
    message = refusal(*proximity(cells, out, "--figure", tmp_path / "." / "curves.csv"))
    assert message.startswith("--out and --figure are both ")
    assert not out.exists()


def test_a_command_that_fails_leaves_nothing_and_runs_again(cells, run, tmp_path, monkeypatch):
    out, figure = tmp_path / "curves.csv", tmp_path / "figure.png"

    def full(*_: object) -> None:
        assert out.exists()
        raise OSError(28, "No space left on device", str(figure))

    with monkeypatch.context() as patch:
        patch.setattr("canvas_fm.analysis.proximity.figure.proximity_figure", full)
        code, _, err = run(*proximity(cells, out, "--figure", figure))
    assert code == 1
    assert err.rstrip().endswith("run the same command again")
    assert not out.exists()
    assert run(*proximity(cells, out, "--figure", figure))[0] == 0
    assert out.exists()
    assert figure.exists()


@pytest.mark.parametrize(
    "verb", ["sweep", *(pytest.param(verb, marks=pytest.mark.slow) for verb in ("report", "domains"))]
)
def test_a_folder_of_others_is_not_written_into(verb, brain, refusal, tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "report.json").write_text("mine")
    points = tmp_path / "candidates.csv"
    Points(np.array([[1.0, 2, 3], [4, 5, 6], [5, 5, 9], [3, 9, 9]]), {"label": np.array([0, 1, 0, 1])}).write(
        points
    )
    message = refusal(*{
        "report": [
            "report", "--volumes", brain, "--candidates", points, "--truth", points, "--tolerance-um", 9,
            "--out", folder,
        ],
        "domains": ["domains", folder, "--phantoms", 1, "--only", "phantom nuclei"],
        "sweep": ["sweep", "phantom_sweep", "--out", folder],
    }[verb])  # fmt: skip
    assert (
        message
        == f"{folder} is there already and holds something else; give another --out, or an empty folder"
    )
    assert [path.name for path in folder.iterdir()] == ["report.json"]


@pytest.mark.parametrize("inside", ["cells.csv", "deeper/cells.csv"])
def test_nothing_is_written_into_a_store(inside, brain, refusal):
    before = sorted(brain.rglob("*"))
    message = refusal("detect", brain, "--method", "log", "--out", brain / inside)
    assert f"lies inside {brain}" in message
    assert sorted(brain.rglob("*")) == before
