"""What is wrong with a command is said before torch is imported, and all of it at once."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from canvas_fm.cli import build_parser
from canvas_fm.training.recipe.detector_recipe import DetectorRecipe
from canvas_fm.training.recipe.joint_recipe import JointRecipe
from canvas_fm.training.recipe.read_recipe import check_recipe
from canvas_fm.training.recipe.recipe import Recipe

HEAVY = ("torch", "timm", "sklearn", "bentoml", "faiss", "matplotlib")
# Runs the commands that stdin lists; prints exit code, stderr and heavy modules after each.
RUN = f"""
import contextlib, io, json, sys
from canvas_fm.cli import main
outcomes = []
for words in json.load(sys.stdin):
    message = io.StringIO()
    with contextlib.redirect_stderr(message):
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code
    outcomes.append([code, message.getvalue(), [name for name in {HEAVY!r} if name in sys.modules]])
print(json.dumps(outcomes))
"""


TRAINING = ["--volumes", "v.zarr", "--out", "run"]
# What has to be in the message of each command.
REFUSED = {
    ("training.stps", "training.batch is 'many'", "modle"): [
        "pretrain", "BAD.yaml", *TRAINING,
    ],
    ("model.foo", "training.stps", "'data' was given"): [
        "pretrain", "cells_contrast", *TRAINING, "--set", "model.foo=1", "training.stps=3", "data",
    ],
    ("detection.treshold", "--set seed=x: seed is 'x'"): [
        "train-detector", "detector_phantoms", "--out", "run", "--set", "detection.treshold=1", "seed=x",
    ],
    ("is a recipe for `canvas-fm train-detector`",): ["pretrain", "detector_phantoms", *TRAINING],
    ("none is shipped by that name",): ["pretrain", "fantom", *TRAINING],
    ("takes no --background",): [
        "detect", "v.zarr", "--method", "log", "--background", "b.zarr", "--out", "c.csv",
    ],
    ("detect needs --out", "detect needs a MODEL"): ["detect", "v.zarr"],
    ("--unlike names counter-examples",): ["search", "i", "--ids", "1", "--unlike", "2"],
    ("--figure shows cells",): ["evaluate", "p.csv", "t.csv", "--tolerance-um", "8", "--figure", "f.png"],
    ("--kind, --autofluorescence and --sheet go with",): ["phantom", "out", "--sheet"],
    ("no limit is called 'max_pints'", "max_points=many"): [
        "serve", "base", "--limit", "max_pints=3", "max_points=many",
    ],
    ("takes a name and at least one model",): ["domains", "out", "--detector", "mine"],
}  # fmt: skip
TOGETHER = [
    *("pretrain", "cells_small", "--volumes", "v.zarr", "--sed", "3", "--seed", "x"),
    *("--set", "training.stps=3"),
]


Outcome = tuple[int, str, list[str]]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Outcome]]:
    """Exit code, stderr and heavy modules after each command of each test, all in one process."""
    bad = tmp_path_factory.mktemp("recipes") / "bad.yaml"
    bad.write_text("training: {stps: 3, batch: many}\nmodle: {}\n")
    refused = [[word.replace("BAD.yaml", str(bad)) for word in words] for words in REFUSED.values()]
    commands = {
        "flags": [[*words, "--no-such-flag"] for words in every_verb()],
        "values": refused,
        "together": [TOGETHER],
    }
    given = json.dumps([words for part in commands.values() for words in part])
    done = subprocess.run(
        [sys.executable, "-c", RUN], input=given, capture_output=True, text=True, check=True
    )
    left = iter(json.loads(done.stdout))
    return {name: [tuple(next(left)) for _ in part] for name, part in commands.items()}


def every_verb() -> list[list[str]]:
    """The words of every verb, those of groups with their action."""
    words = []
    for verb, parser in build_parser()._subparsers._group_actions[0].choices.items():  # type: ignore[union-attr]
        inner = parser._subparsers
        words += [[verb, action] for action in inner._group_actions[0].choices] if inner else [[verb]]
    return words


def test_no_verb_imports_torch_to_refuse_a_flag(outcomes: dict[str, list[Outcome]]) -> None:
    verbs = every_verb()
    assert len(verbs) > 25
    for words, (code, message, heavy) in zip(verbs, outcomes["flags"], strict=True):
        assert (code, heavy) == (2, []), words
        assert "unrecognized arguments: --no-such-flag" in message, words


def test_nor_to_refuse_a_recipe_or_flags_that_do_not_go_together(outcomes: dict[str, list[Outcome]]) -> None:
    for parts, (code, message, heavy) in zip(REFUSED, outcomes["values"], strict=True):
        assert (code, heavy) == (1, []), message
        assert "Traceback" not in message
        for part in parts:
            assert part in message


def test_mistakes_of_flags_and_recipe_come_together(outcomes: dict[str, list[Outcome]]) -> None:
    ((code, message, heavy),) = outcomes["together"]
    assert (code, heavy) == (2, [])
    assert "--sed; did you mean --seed?" in message
    assert "argument --seed: invalid int value" in message
    assert "the following arguments are required: --out" in message
    assert "training.stps" in message


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
