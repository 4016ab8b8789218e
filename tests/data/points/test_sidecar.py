"""Metadata beside a table: the table is plain, and a sidecar is believed of its own table alone."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest

from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError

META = {"volume": "brain", "voxel_um": "4.0 1.8 1.8", "threshold": "0.4"}


def some() -> Points:
    return Points(np.array([[1, 2, 3], [4.5, 5, 6]]), {"score": np.array([0.5, 0.75])}, META)


@pytest.mark.parametrize("name", ["c.csv", "c.tsv", "c.txt", "c.csv.gz", "c.xlsx"])
def test_metadata_comes_back_from_beside_the_table(tmp_path, name):
    some().write(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, f"{name}.json"]
    assert Points.read(tmp_path / name).meta == META


def test_a_plain_csv_begins_with_its_columns_and_other_readers_open_it(tmp_path):
    pandas = pytest.importorskip("pandas")
    some().write(tmp_path / "c.csv")
    assert (tmp_path / "c.csv").read_text() == "z,y,x,score\n1.0,2.0,3.0,0.5\n4.5,5.0,6.0,0.75\n"
    table = pandas.read_csv(tmp_path / "c.csv")
    assert list(table.columns) == ["z", "y", "x", "score"]
    assert table["score"].tolist() == [0.5, 0.75]
    with (tmp_path / "c.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2


def test_files_with_notes_before_the_columns_are_still_read(tmp_path):
    (tmp_path / "old.csv").write_text(some().to_csv())
    assert (tmp_path / "old.csv").read_text().startswith("# volume: brain\n")
    back = Points.read(tmp_path / "old.csv")
    assert (back.meta, back.zyx.tolist()) == (META, some().zyx.tolist())


@pytest.mark.parametrize(
    "change", ["digit", "row", "other table", "other sidecar", "edited", "cut", "no json", "a list"]
)
def test_a_sidecar_of_another_table_is_never_believed(tmp_path, caplog, change):
    table, sidecar = tmp_path / "c.csv", tmp_path / "c.csv.json"
    some().write(table)
    text = sidecar.read_text()
    if change == "digit":
        table.write_text(table.read_text().replace("0.75", "0.76"))
    elif change == "row":
        table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    elif change == "other table":
        table.write_text("z,y,x\n1,2,3\n")
    elif change == "other sidecar":
        Points(some().zyx + 1, {}, META).write(tmp_path / "d.csv")
        shutil.copy(tmp_path / "d.csv.json", sidecar)
    else:
        sidecar.write_text(
            {"edited": text.replace("0.4", "0.3"), "cut": text[:-9], "no json": "{", "a list": "[]"}[change]
        )
    assert Points.read(table).meta == {}
    assert "not used" in caplog.text


def test_every_flipped_bit_of_a_sidecar_is_noticed(tmp_path):
    some().write(tmp_path / "c.csv")
    sidecar = tmp_path / "c.csv.json"
    content = sidecar.read_bytes()
    for bit in range(0, 8 * len(content), 7):  # each bit of a byte in turn
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        sidecar.write_bytes(damaged)
        assert Points.read(tmp_path / "c.csv").meta == {}


def test_a_table_without_metadata_leaves_no_old_sidecar(tmp_path, caplog):
    some().write(tmp_path / "c.csv")
    Points(some().zyx).write(tmp_path / "c.csv")
    assert not (tmp_path / "c.csv.json").exists()
    assert Points.read(tmp_path / "c.csv").meta == {}
    assert not caplog.text


def test_a_file_of_somebody_elses_in_the_sidecars_place_stays(tmp_path):
    state = tmp_path / "c.csv.json"
    state.write_text(json.dumps({"layers": []}))
    with pytest.raises(CanvasError, match="is no sidecar of a table; it would be replaced"):
        some().write(tmp_path / "c.csv")
    assert state.read_text() == '{"layers": []}'
    assert not (tmp_path / "c.csv").exists()


def test_napari_keeps_the_voxel_size(tmp_path):
    some().write(tmp_path / "n.csv", "napari")
    assert (tmp_path / "n.csv").read_text().startswith("index,axis-0,axis-1,axis-2,score\n")
    assert Points.read(tmp_path / "n.csv").meta["voxel_um"] == "4.0 1.8 1.8"
