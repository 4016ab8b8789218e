"""`evaluate` on input that is odd or wrong: a warning with the score, or one sentence and no number."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from canvas_fm.data.points.points import Points

VOXEL_UM = ("--voxel-um", 4, 1.8, 1.8)


@pytest.fixture
def score(tmp_path, result, refusal):
    """`score(pred, truth)`, each a text or rows → what `evaluate --json` prints; `.refused` its sentence."""

    def put(name: str, content) -> object:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        else:
            Points(np.asarray(content, np.float64)).write(path)
        return path

    def words(pred, truth, *flags):
        flags = flags or ("--tolerance-voxels", 3)
        return ("evaluate", put("pred.csv", pred), put("truth.csv", truth), *flags)

    def go(pred, truth, *flags):
        return result(*words(pred, truth, *flags))

    go.refused = lambda pred, truth, *flags: refusal(*words(pred, truth, *flags))
    return go


CELLS = np.array([[1.0, 20, 30], [5, 40, 12], [9, 3, 50]])
TEXT = "z,y,x\n1,20,30\n5,40,12\n9,3,50\n"


@pytest.mark.parametrize(
    ("spoil", "reading"),
    [
        (lambda zyx: zyx[:, ::-1], "x, y, z"),
        (lambda zyx: zyx[:, [0, 2, 1]], "z, x, y"),
        (lambda zyx: zyx * (4, 1.8, 1.8), "z, y, x in micrometres"),
    ],
)
def test_another_order_or_unit_is_warned_of(score, spoil, reading):
    truth = np.random.default_rng(0).random((50, 3)) * [20, 80, 200]
    found = score(spoil(truth), truth, "--tolerance-um", 5, *VOXEL_UM)
    assert any(f"would match far better as {reading}: F1 1.00" in warning for warning in found["warnings"]), (
        found["warnings"]
    )
    assert not any("far better" in warning for warning in score(truth, truth)["warnings"])


def test_warnings_reach_stderr_and_leave_stdout_to_the_result(tmp_path):
    truth = np.random.default_rng(0).random((50, 3)) * [20, 80, 200]
    Points(truth).write(tmp_path / "truth.csv")
    Points(truth[:, ::-1]).write(tmp_path / "pred.csv")
    words = ["evaluate", "pred.csv", "truth.csv", "--tolerance-voxels", "3"]
    done = subprocess.run(
        [sys.executable, "-m", "canvas_fm.cli", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING the predictions would match far better as x, y, z" in done.stderr
    assert "far better" not in done.stdout
    assert done.stdout.startswith("true cells")


@pytest.mark.parametrize(
    ("pred", "truth", "counts", "sentence"),
    [
        ("z,y,x\n", TEXT, [0, 0, 3], "the predictions are empty"),
        (TEXT, "z,y,x\n", [0, 3, 0], "the truth is empty"),
        ("z,y,x\n", "z,y,x\n", [0, 0, 0], "the truth is empty"),
        (TEXT + "1,20,30\n", TEXT, [3, 1, 0], "1 of 4 rows of the predictions repeat a position"),
        (TEXT, TEXT + "9,3,50\n", [3, 0, 1], "1 of 4 rows of the truth repeat a position"),
    ],
)
def test_empty_files_and_duplicates_are_scored_and_told(score, pred, truth, counts, sentence):
    found = score(pred, truth)
    assert [found[name] for name in ("tp", "fp", "fn")] == counts
    assert any(sentence in warning for warning in found["warnings"])
    for name in ("accuracy", "f1"):
        assert found[name] is None or 0 <= found[name] <= 1


def test_points_outside_the_volume_are_told(score, brain):
    found = score(TEXT + "900,1,1\n", TEXT, "--tolerance-voxels", 3, "--volume", brain)
    assert "1 of 4 rows of the predictions lie outside the volume (24, 64, 72)" in found["warnings"]
    assert found["fp"] == 1


@pytest.mark.parametrize(
    ("truth", "encoding"),
    [
        (TEXT, "utf-8-sig"),
        (TEXT.replace(",", ";"), "utf-8-sig"),
        (TEXT.replace(",", "\t"), "utf-8"),
        (TEXT.replace("z,y,x", "Z, Y, X"), "utf-8"),
        ("x,y,z\n30,20,1\n12,40,5\n50,3,9\n", "utf-8"),
        (TEXT.replace("z,y,x", "axis-0,axis-1,axis-2"), "utf-8"),
        ("# voxel_um: 4 1.8 1.8\n" + TEXT.replace("\n", "\r\n"), "utf-8"),
    ],
)
def test_dialects_of_a_truth_give_the_same_score(score, truth, encoding):
    found = score(CELLS, truth.encode(encoding))
    assert [found[name] for name in ("tp", "fp", "fn")] == [3, 0, 0]


@pytest.mark.parametrize(
    ("pred", "truth", "sentence"),
    [
        ("z,y,x\n1,nan,3\n", TEXT, "row 1: y is nan, expected a finite number"),
        (TEXT, "z,y,x\n1,2,3\n4,5,inf\n", "row 2: x is inf, expected a finite number"),
        (TEXT, "z,y,x\n1,2,\n", "row 1: x is nan, expected a finite number"),
        ("z,y,x,score\n1,2,3,nan\n", TEXT, "'score' is not a number in row 1"),
        (TEXT, "a;b;c\n1;2;3\n", "has no column z, y, x; found a, b, c"),
        (TEXT, "z;y;x\n1,5,5;2;3\n", "z is '1,5,5', expected a number"),
        (TEXT, "z,y,x\n1,2\n", "row 1 has 2 values; the column row names 3"),
        (TEXT, "z,y,x,Z\n1,2,3,4\n", "the column z more than once"),
        (TEXT, "", "is empty; give a table with columns z, y, x"),
        (TEXT, TEXT.encode() + "é".encode("cp1252"), "is not UTF-8 text"),
    ],
)
def test_files_that_hold_no_positions_are_one_sentence(score, pred, truth, sentence):
    assert sentence in score.refused(pred, truth)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--marker", "neunn"), "marker 'neunn'; did you mean NeuN?"),
        (("--marker", "DAPI"), "known: NeuN, cFos, TH, PV, GFAP, IBA1"),
        (("--tolerance-um", 8), "give --voxel-um Z Y X"),
        (("--tolerance-voxels", 3, "--roi", "nothing.json"), "no boxes at nothing.json"),
        (("--tolerance-voxels", 3, "--threshold", 0.5), "no column score, p_cell, log_score"),
    ],
)
def test_what_cannot_be_scored_with_is_one_sentence(score, flags, sentence):
    assert sentence in score.refused(TEXT, TEXT, *flags)


def test_files_that_are_not_there_or_of_no_format(refusal, tmp_path):
    (tmp_path / "cells.docx").write_text("x")
    for name, sentence in (("none.csv", "no points file at"), ("cells.docx", "the suffix '.docx' says no")):
        assert sentence in refusal("evaluate", tmp_path / name, tmp_path / name, "--tolerance-voxels", 3)
