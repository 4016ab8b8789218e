"""`evaluate`, `tables`, `leaderboard` and `points`: what a person types and what comes out."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
import yaml
import zarr

from canvas_fm.cli import build_parser
from canvas_fm.cli.verbs.data.points import FORMATS
from canvas_fm.data.points.formats import read_write
from canvas_fm.data.points.points import Points


@pytest.fixture
def files(tmp_path):
    """Ten true cells seven voxels apart, eight of them found, and two false predictions."""
    truth = np.zeros((10, 3))
    truth[:, 1], truth[:, 2] = 5, 7 * np.arange(10)
    pred = truth.copy()
    pred[8:, 1] = 50
    Points(truth).write(tmp_path / "truth.csv")
    Points(pred, {"score": np.linspace(1, 0.1, 10)}).write(tmp_path / "pred.csv")
    return tmp_path


def test_evaluate_says_what_python_says(files, result):
    found = result("evaluate", files / "pred.csv", files / "truth.csv", "--tolerance-voxels", 3)
    assert [found[name] for name in ("tp", "fp", "fn")] == [8, 2, 2]
    assert found["f1"] == pytest.approx(0.8)
    assert found["average_precision"] == pytest.approx(0.8)
    assert len(found["files"]["truth"]["sha256"]) == 64


def test_a_channel_of_the_volume_is_chosen(files, result, refusal):
    """Points outside are found by the volume's shape, whatever the other channels hold."""
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    steps = [{"type": "scale", "scale": [1, 4, 2, 2]}]
    group = zarr.open_group(files / "two.zarr", mode="w", zarr_format=2)
    group.create_array("0", data=np.ones((2, 4, 60, 80), np.uint16))
    level = {"path": "0", "coordinateTransformations": steps}
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": [level]}]
    words = ["evaluate", files / "pred.csv", files / "truth.csv", "--tolerance-um", 6]
    assert "choose one with --c" in refusal(*words, "--volume", files / "two.zarr")
    found = result(*words, "--volume", files / "two.zarr", "--c", 1)
    assert found["voxel_um"] == [4.0, 2.0, 2.0]
    assert [found[name] for name in ("tp", "fp", "fn")] == [8, 2, 2]


def test_evaluate_for_people_marks_the_tuned_threshold(files, run):
    code, out, err = run("evaluate", files / "pred.csv", files / "truth.csv", "--marker", "cfos")
    assert code == 0, err
    lines = {line[:17].strip(): line[17:].strip() for line in out.splitlines()}
    assert lines["TP, FP, FN"] == "8, 2, 2"
    assert lines["F1"].startswith("0.800   ")
    assert lines["predictions"] == "10, within 6 voxels, as for cFos"
    assert lines["best F1"].endswith("chosen on the truth: an upper bound")
    assert lines["intervals"] == "95 %, bootstrap over cells"


def test_evaluate_takes_a_threshold_boxes_and_a_report(files, result):
    (files / "boxes.json").write_text("[[0, 0, 0, 1, 60, 45]]")
    found = result(
        *(
            "evaluate",
            files / "pred.csv",
            files / "truth.csv",
            "--tolerance-um",
            8,
            "--voxel-um",
            4,
            1.8,
            1.8,
        ),
        *("--roi", files / "boxes.json", "--threshold", 0.75, "--out", files / "report.json"),
    )
    assert [found[name] for name in ("tp", "fp", "fn")] == [3, 0, 4]
    assert json.loads((files / "report.json").read_text()) == found


def test_evaluate_warns_on_stderr_of_swapped_axes(files, run):
    random = np.random.default_rng(0).random((50, 3)) * [20, 80, 200]
    Points(random).write(files / "truth.csv")
    Points(random[:, ::-1]).write(files / "pred.csv")
    code, out, _ = run("evaluate", files / "pred.csv", files / "truth.csv", "--tolerance-voxels", 3, "--json")
    assert code == 0
    assert "far better as x, y, z" in json.loads(out)["warnings"][0]


def test_evaluate_reads_a_truth_with_a_bom_and_semicolons(files, result):
    text = (files / "truth.csv").read_text().replace(",", ";")
    (files / "truth.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = result("evaluate", files / "pred.csv", files / "truth.csv", "--tolerance-voxels", 3)
    assert found["tp"] == 8


def test_the_figure_shows_each_kind_of_cell(files, brain, result):
    pytest.importorskip("matplotlib")
    import matplotlib.image

    found = result(
        *("evaluate", files / "pred.csv", files / "truth.csv", "--tolerance-voxels", 3),
        *("--volume", brain, "--figure", files / "figure.png"),
    )
    assert found["figure"] == str(files / "figure.png")
    image = matplotlib.image.imread(files / "figure.png")
    for colour in ("56d4ff", "ffb000", "ff5fb4"):
        wanted = np.array([int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)])
        marked = (np.abs(image[..., :3] - wanted).max(axis=-1) < 0.02).any(axis=1)
        assert marked[: round(0.9 * len(marked))].any(), colour


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--tolerance-um", 8], "needs the voxel size"),
        (["--marker", "DAPI"], "no tolerance is known for the marker 'DAPI'"),
        (["--tolerance-voxels", 3, "--figure", "f.png"], "give it with --volume"),
        (["--tolerance-voxels", 3, "--roi", "none.json"], "no boxes at none.json"),
        (["--tolerance-voxels", 3, "--score-column", "p"], "no column 'p'; they have score"),
    ],
)
def test_evaluate_refuses(words, sentence, files, refusal):
    assert sentence in refusal("evaluate", files / "pred.csv", files / "truth.csv", *words)


def test_evaluate_names_the_columns_that_it_does_not_know(files, refusal):
    (files / "truth.csv").write_text("a,b,c\n1,2,3\n")
    said = refusal("evaluate", files / "pred.csv", files / "truth.csv", "--tolerance-voxels", 3)
    assert "has no column z, y, x; found a, b, c" in said
    assert "points convert --columns" in said


def test_evaluate_needs_one_tolerance(files, run):
    code, _, err = run("evaluate", files / "pred.csv", files / "truth.csv")
    assert code == 2
    assert "one of the arguments --marker --tolerance-voxels --tolerance-um is required" in err


def test_points_convert_there_and_back(files, result):
    result("points", "convert", files / "pred.csv", files / "a.json", "--voxel-um", 4, 1.8, 1.8)
    found = result("points", "convert", files / "a.json", files / "b.csv", "--origin", 100, 0, 0)
    assert found == {"written": str(files / "b.csv"), "points": 10, "columns": ["score"]}
    before, after = Points.read(files / "pred.csv"), Points.read(files / "b.csv")
    np.testing.assert_array_equal(after.zyx, before.zyx + np.array([100, 0, 0]))
    np.testing.assert_array_equal(after.columns["score"], before.columns["score"])
    assert after.meta["voxel_um"] == "4.0 1.8 1.8"


def test_points_convert_takes_formats_and_columns_by_name(files, result, refusal):
    (files / "odd.csv").write_text("px,py,plane\n1,2,3\n")
    result(
        *("points", "convert", files / "odd.csv", files / "napari.csv", "--to", "napari"),
        *("--columns", "plane", "py", "px"),
    )
    assert (files / "napari.csv").read_text().splitlines() == ["index,axis-0,axis-1,axis-2", "0,3.0,2.0,1.0"]
    said = refusal(
        "points", "convert", files / "odd.csv", files / "out.nml", "--columns", "plane", "py", "px"
    )
    assert "--voxel-um Z Y X" in said


def test_info_reads_other_programs_points(files, result):
    result("points", "convert", files / "pred.csv", files / "cells.xml")
    said = result("info", files / "cells.xml")
    assert (said["kind"], said["rows"]) == ("points", 10)


def test_the_formats_of_the_parser_are_those_of_the_reader():
    assert FORMATS == read_write.FORMATS


def test_tables_writes_three_files(files, result):
    manifest = {
        "tolerance_voxels": 3,
        "models": [{"name": "m", "marker": "TH"}],
        "datasets": [
            {
                "name": "th",
                "marker": "TH",
                "regions": [{"name": "r", "truth": "truth.csv", "predictions": {"m": "pred.csv"}}],
            }
        ],
    }
    (files / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    found = result("tables", files / "manifest.yaml", "--out", files / "out")
    assert sorted(path.name for path in (files / "out").iterdir()) == [
        "tables.csv",
        "tables.html",
        "tables.md",
    ]
    assert found["rows"] == 2
    assert "**<u>0.80</u>**" in (files / "out" / "tables.md").read_text()


def test_tables_names_the_key_that_was_meant(files, refusal):
    (files / "manifest.yaml").write_text("modles: []\n")
    assert "did you mean 'models'?" in refusal("tables", files / "manifest.yaml", "--out", files / "out")


@pytest.fixture
def board(files):
    folder = files / "board"
    folder.mkdir()
    region = {"name": "r1", "marker": "TH", "tolerance_voxels": 3.0}
    (folder / "benchmark.yaml").write_text(yaml.safe_dump({"regions": [region]}))
    (files / "truths").mkdir()
    (files / "truth.csv").rename(files / "truths" / "r1.csv")
    entry = files / "entry"
    (entry / "cells").mkdir(parents=True)
    card = {"name": "Mine", "authors": ["Me"], "method": "m", "date": "2026-01-02"}
    (entry / "card.yaml").write_text(yaml.safe_dump(card))
    (files / "pred.csv").rename(entry / "cells" / "r1.csv")
    return folder


def test_a_submission_from_check_to_page(files, board, result, run):
    code, out, _ = run("leaderboard", "validate", board, files / "entry")
    assert (code, out.strip().endswith("is sound: 1 region")) == (0, True)
    result("leaderboard", "submit", board, files / "entry")
    found = result("leaderboard", "score", board, "--truth", files / "truths")
    assert found["scored"] == ["entry"]
    assert "0.800" in (board / "index.html").read_text()
    assert result("leaderboard", "score", board, "--truth", files / "truths", "--check")[
        "came out again"
    ] == ["entry"]
    assert result("leaderboard", "page", board, "--out", files / "p.html")["page"] == str(files / "p.html")


def test_a_malformed_submission_gets_its_report_and_exit_code_one(files, board, run):
    (files / "entry" / "cells" / "r1.csv").write_text("z,y,x\n1,2,x\n1,2\n")
    (files / "entry" / "card.yaml").write_text("name: Mine\n")
    code, out, err = run("leaderboard", "validate", board, files / "entry")
    assert code == 1
    assert len(out.splitlines()) == 5
    assert err.startswith("canvas-fm: ")
    assert "5 faults, listed above" in err
    code, out, _ = run("leaderboard", "validate", board, files / "entry", "--json")
    assert code == 1
    assert len(json.loads(out)["faults"]) == 5


def test_every_flag_of_every_action_is_explained():
    pending = [build_parser()]
    seen = []
    while pending:
        parser = pending.pop().filled()
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                pending += [action.choices[name] for name in action.choices]
            elif action.option_strings:
                seen.append(action.option_strings[0])
                assert action.help, (parser.prog, action.option_strings)
    assert {"--roi", "--columns", "--truth", "--overwrite"} <= set(seen)
