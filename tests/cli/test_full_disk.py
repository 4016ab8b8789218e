"""After a full disk each verb's advice is true: what it says to run then does the work."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from canvas_fm.data.points.points import Points
from canvas_fm.errors import StorageFull
from tests.cli.verbs.cells.test_refine import fit_words, folder  # noqa: F401


def written(out: Path) -> dict[str, str]:
    """sha256 of each file under the folder of `out`."""
    files = [path for path in out.parent.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(out.parent)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


@pytest.fixture
def fill(monkeypatch):
    """`fill(n)`: the disk is full from the nth flush on; n is None: flushes are counted alone."""
    sync = os.fsync

    def go(at: int | None) -> list[int]:
        calls = [0]

        def flush(descriptor: int) -> None:
            calls[0] += 1
            if at is not None and calls[0] >= at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(descriptor)

        monkeypatch.setattr(os, "fsync", flush)
        return calls

    return go


@pytest.fixture
def commands(folder, model, brain, tmp_path):  # noqa: F811
    """Words of a verb by name, OUT of which is `tmp_path / at / out`."""
    cells = tmp_path / "cells.csv"
    Points(np.array([[1.0, 2, 3], [4, 5, 6]])).write(cells)
    phantom = ["--shape", 8, 24, 24]

    def words(verb: str, at: str) -> list[object]:
        (tmp_path / at).mkdir(exist_ok=True)
        out = tmp_path / at / "out"
        return {
            "markers": ["phantom", out, *phantom, "--markers", "PV", "TH"],
            "regions": ["phantom", out, *phantom, "--markers", "PV", "--regions"],
            "randomise": ["phantom", out, *phantom, "--randomise", 1, 2],
            "fit": [*fit_words(folder, model, out), "--labels", "label"],
            "export": ["view", brain, "--points", cells, "--export", out],
        }[verb]

    return words


@pytest.mark.parametrize("verb", ["markers", "regions", "randomise", "fit", "export"])
def test_the_same_command_runs_once_there_is_room(verb, commands, fill, run, refusal, tmp_path):
    calls = fill(None)
    assert run(*commands(verb, "sound"))[0] == 0
    sound = written(tmp_path / "sound" / "out")
    fill(calls[0])
    message = refusal(*commands(verb, "full"))
    assert message.endswith("free some space and run the same command again")
    fill(None)
    assert run(*commands(verb, "full"))[0] == 0
    again = written(tmp_path / "full" / "out")
    assert set(again) == set(sound)
    if verb != "fit":  # whose report names OUT
        assert again == sound


def test_segment_leaves_no_labels_without_their_table(refusal, run, brain, tmp_path, monkeypatch):
    Points(np.array([[1.0, 2, 3], [4, 5, 6]])).write(tmp_path / "cells.csv")
    words = ["segment", brain, tmp_path / "cells.csv"]
    words += ["--out", tmp_path / "labels.zarr", "--table", tmp_path / "t.csv"]

    def full(*_):
        raise StorageFull("no space left on the disk")

    monkeypatch.setattr(Points, "write", full)
    assert refusal(*words).endswith("run the same command again")
    monkeypatch.undo()
    assert run(*words)[0] == 0


@pytest.mark.parametrize(
    ("begun", "resume", "then"),
    [(False, False, "again"), (True, False, "with --resume"), (True, True, "again")],
)
def test_a_training_that_began_is_resumed(begun, resume, then, monkeypatch, refusal, brain, recipe, tmp_path):
    def pretrain(*_, out, **__):
        Path(out).mkdir()
        if begun:
            (Path(out) / "recipe.yaml").touch()
        raise StorageFull("no space left on the disk")

    monkeypatch.setattr("canvas_fm.training.mae.pretrain.pretrain", pretrain)
    words = ["pretrain", recipe, "--volumes", brain, "--out", tmp_path / "run", "--device", "cpu"]
    message = refusal(*words, *(["--resume"] if resume else []))
    assert message == f"no space left on the disk: free some space and run the same command {then}"
