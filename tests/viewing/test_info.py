"""`info` opens what the other verbs open, and names what it leaves out."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError
from canvas_fm.files.shipped import find
from canvas_fm.viewing.info.describe import describe

CELLS = Points(np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), {}, {"voxel_um": "4 2 2"})


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.xlsx", "a.xml", "a.nml", "a.json", "a.parquet"])
def test_points_in_every_format_that_is_written(tmp_path, name):
    CELLS.write(tmp_path / name)
    described = describe(tmp_path / name)
    assert (described["kind"], described["rows"], described["to_zyx"]) == ("points", 2, [4, 5, 6])


def test_points_in_formats_that_are_read_alone(tmp_path):
    (tmp_path / "a.yml").write_text("candidate_cells:\n- {x: 3, y: 2, z: 1, type: 2}\n")
    np.save(tmp_path / "a.npy", np.array([(1.0, 2.0, 3.0)], [(axis, "f8") for axis in "zyx"]))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"z y x\n1 2 3\n"))
    for name in ("a.yml", "a.npy", "a.txt.gz"):
        assert describe(tmp_path / name)["rows"] == 1


def test_what_is_no_points_is_said_as_before(tmp_path):
    np.save(tmp_path / "image.npy", np.zeros((4, 5, 6)))
    with pytest.raises(CanvasError, match=r"is a \.npy file, which is not read; save it as TIFF"):
        describe(tmp_path / "image.npy")
    (tmp_path / "zarr.json").write_text("{}")
    with pytest.raises(CanvasError, match="is the metadata of a Zarr store; give its folder"):
        describe(tmp_path / "zarr.json")
    (tmp_path / "a.yml").write_text("model: {}\n")
    with pytest.raises(CanvasError, match="the key 'training' is missing"):
        describe(tmp_path / "a.yml")


@pytest.mark.parametrize("end", ["\n", ""])
def test_metrics_that_were_cut_are_said(tmp_path, caplog, end):
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_bytes(find("recipe", "phantom").read_bytes())
    row = json.dumps({"kind": "train", "step": 1, "loss": 0.5})
    (run / "metrics.jsonl").write_text(f"{row}\n{row}{end}")
    described = describe(run)
    assert len(described["last_losses"]) == (2 if end else 1)
    assert ("the last line of its metrics.jsonl is cut" in caplog.text) == (not end)
