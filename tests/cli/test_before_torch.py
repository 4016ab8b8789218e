"""What is wrong with a command is said before torch is imported, and all of it at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from canvas_fm.cli import build_parser
from canvas_fm.training.recipe.detector_recipe import DetectorRecipe
from canvas_fm.training.recipe.joint_recipe import JointRecipe
from canvas_fm.training.recipe.recipe import Recipe, check_recipe

HEAVY = ("torch", "timm", "sklearn", "bentoml", "faiss", "matplotlib")
# Runs the commands that stdin lists; prints exit code, stderr and heavy modules after each.
RUN = f"""
import contextlib, io, json, sys
from canvas_fm.cli import main
told = []
for words in json.load(sys.stdin):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code
    told.append([code, said.getvalue(), [name for name in {HEAVY!r} if name in sys.modules]])
print(json.dumps(told))
"""


def run_all(commands: list[list[str]]) -> list[tuple[int, str, list[str]]]:
    """Exit code, stderr and heavy modules after each command, all in one process."""
    done = subprocess.run(
        [sys.executable, "-c", RUN], input=json.dumps(commands), capture_output=True, text=True, check=True
    )
    return [tuple(each) for each in json.loads(done.stdout)]


def every_verb() -> list[list[str]]:
    """The words of every verb, those of groups with their action."""
    words = []
    for verb, parser in build_parser()._subparsers._group_actions[0].choices.items():  # type: ignore[union-attr]
        inner = parser._subparsers
        words += [[verb, action] for action in inner._group_actions[0].choices] if inner else [[verb]]
    return words


def test_no_verb_imports_torch_to_refuse_a_flag() -> None:
    verbs = every_verb()
    assert len(verbs) > 25
    for words, (code, said, heavy) in zip(
        verbs, run_all([[*words, "--no-such-flag"] for words in verbs]), strict=True
    ):
        assert (code, heavy) == (2, []), words
        assert "unrecognized arguments: --no-such-flag" in said, words


def test_nor_to_refuse_a_recipe_or_flags_that_do_not_go_together(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("training: {stps: 3, batch: many}\nmodle: {}\n")
    training = ["--volumes", "v.zarr", "--out", "run"]
    commands = {
        ("training.stps", "training.batch is 'many'", "modle"): [
            "pretrain", str(tmp_path / "bad.yaml"), *training,
        ],
        ("model.foo", "training.stps", "'data' was given"): [
            "pretrain", "cells_contrast", *training, "--set", "model.foo=1", "training.stps=3", "data",
        ],
        ("detection.treshold", "--set seed=x: seed is 'x'"): [
            "train-detector", "detector_phantoms", "--out", "run", "--set", "detection.treshold=1", "seed=x",
        ],
        ("is a recipe for `canvas-fm train-detector`",): ["pretrain", "detector_phantoms", *training],
        ("none is shipped by that name",): ["pretrain", "fantom", *training],
        ("takes no --background",): [
            "detect", "v.zarr", "--method", "log", "--background", "b.zarr", "--out", "c.csv",
        ],
        ("detect needs --out", "detect needs a MODEL"): ["detect", "v.zarr"],
        ("--unlike names counter-examples",): ["search", "i", "--ids", "1", "--unlike", "2"],
        ("--figure shows cells",): ["evaluate", "p.csv", "t.csv", "--tolerance-um", "8", "--figure", "f.png"],
        ("--kind and --sheet go with",): ["phantom", "out", "--sheet"],
        ("no limit is called 'max_pints'", "max_points=many"): [
            "serve", "base", "--limit", "max_pints=3", "max_points=many",
        ],
        ("takes a name and at least one model",): ["domains", "out", "--detector", "mine"],
    }  # fmt: skip
    for parts, (code, said, heavy) in zip(commands, run_all(list(commands.values())), strict=True):
        assert (code, heavy) == (1, []), said
        assert "Traceback" not in said
        for part in parts:
            assert part in said


def test_mistakes_of_flags_and_recipe_come_together() -> None:
    words = ["--volumes", "v.zarr", "--sed", "3", "--seed", "x", "--set", "training.stps=3"]
    ((code, said, heavy),) = run_all([["pretrain", "cells_small", *words]])
    assert (code, heavy) == (2, [])
    assert "--sed; did you mean --seed?" in said
    assert "argument --seed: invalid int value" in said
    assert "the following arguments are required: --out" in said
    assert "training.stps" in said


@pytest.mark.parametrize(
    ("kind", "name"),
    [(Recipe, "cells_small"), (JointRecipe, "cells_contrast"), (DetectorRecipe, "detector_phantoms")],
)
def test_a_recipe_that_is_right_has_no_faults(kind: type, name: str) -> None:
    recipe, faults = check_recipe(kind, name, ["seed=4"])
    assert faults == []
    assert recipe.seed == 4


def test_the_command_line_takes_a_recipe_of_joint_embedding() -> None:
    words = ["pretrain", "cells_contrast", "--volumes", "v.zarr", "--out", "run", "--set", "seed=4"]
    assert build_parser().parse_args(words).recipe == "cells_contrast"
