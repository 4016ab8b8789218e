"""`count` is detect, refine and regions, one after the other, and resumes."""

from __future__ import annotations

import json
import re
import shlex

import numpy as np
import pytest
import tifffile

from canvas_fm.cli import main
from canvas_fm.data.points.points import Points
from canvas_fm.data.points.sidecar import read_sidecar
from canvas_fm.files.checksum import sha256
from canvas_fm.files.shipped import find
from canvas_fm.pipeline import count_cells
from canvas_fm.version import __version__


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """The shipped sample counted with the shipped models, as a whole and in two halves of an atlas."""
    folder = tmp_path_factory.mktemp("count")
    labels = np.ones((64, 160, 160), np.uint8)
    labels[:, :80] = 2
    tifffile.imwrite(folder / "labels.tif", labels)
    (folder / "names.csv").write_text("id,name,acronym\n1,posterior,P\n2,anterior,A\n", encoding="utf-8")
    models = ["--detector", "detector-microglia", "--refiner", "refiner-microglia", "--json"]
    words = [
        "count",
        "sample:microglia",
        "--out",
        str(folder / "c.csv"),
        "--figure",
        str(folder / "c.png"),
        *models,
    ]
    assert main(words) == 0
    atlas = ["--regions", str(folder / "labels.tif"), "--table", str(folder / "names.csv")]
    size = ["--atlas-voxel-um", *(str(one) for one in _voxel())]
    kept = (folder / "c.csv").read_bytes()
    assert main([*words, *atlas, *size]) == 1  # the table of other settings is not replaced unasked
    assert (folder / "c.csv").read_bytes() == kept
    assert main([*words[:-3], "--json"]) == 1  # nor where the refiner is left out
    assert (folder / "c.csv").read_bytes() == kept
    assert main(words) == 0  # the same command again
    assert main([*words, *atlas, *size, "--overwrite"]) == 0  # the cells are taken from the folder
    assert main([*words[:3], str(folder / "whole.csv"), *words[4:], "--overwrite"]) == 0
    return folder


def _voxel():
    from canvas_fm.data.dataset.sample import sample

    return sample("microglia").volume.voxel_um


def test_the_regions_add_up_to_the_sum_of_p_cell(counted):
    import pandas

    table = pandas.read_csv(counted / "c.csv")
    cells = Points.read(next((counted / "c.cells").glob("*_refined.csv")))
    recall = float(cells.meta["p_cell_per_cell"])
    expected = cells.columns["p_cell"].sum() / recall
    rows = table[table.hemisphere == "both"].set_index("acronym")
    assert rows["count"].sum() == pytest.approx(expected, rel=1e-3)
    front = cells.zyx[:, 1] + 0.5 < 80
    assert rows["count"]["A"] == pytest.approx(cells.columns["p_cell"][front].sum() / recall, rel=1e-3)
    assert set(table.count_of) == {cells.meta["count_of"]} == {"all cells"}
    assert (rows.count_low < rows["count"]).all()
    assert table.columns[list(table).index("count") :][:3].tolist() == ["count", "count_low", "count_high"]
    assert (counted / "c.png").read_bytes().startswith(b"\x89PNG")


def test_one_atlas_for_several_volumes_is_said(caplog):
    atlas = object()
    assert count_cells._one_each([atlas], ["a", "b"]) == [atlas, atlas]
    assert "one atlas is taken for all 2 volumes" in caplog.text
    caplog.clear()
    assert count_cells._one_each([atlas], ["a"]) == [atlas]
    assert count_cells._one_each(None, ["a", "b"]) == [None, None]
    assert not caplog.text


def test_the_whole_brain_has_the_count_of_the_refined_header(counted):
    import pandas

    (row,) = pandas.read_csv(counted / "whole.csv").to_dict("records")
    meta = Points.read(next((counted / "whole.cells").glob("*_refined.csv"))).meta
    assert row["count"] == float(meta["expected_cells"])
    assert [row["count_low"], row["count_high"]] == [float(one) for one in meta["expected_cells_90"].split()]


def test_with_regions_the_whole_brain_is_printed_too(counted, capsys):
    atlas = ["--regions", str(counted / "labels.tif"), "--table", str(counted / "names.csv")]
    size = ["--atlas-voxel-um", *(str(one) for one in _voxel())]
    models = ["--detector", "detector-microglia", "--refiner", "refiner-microglia"]
    words = ["count", "sample:microglia", "--out", str(counted / "c.csv"), *models, *atlas, *size]
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    meta = Points.read(next((counted / "c.cells").glob("*_refined.csv"))).meta
    assert result["cells"] == {"microglia": float(meta["expected_cells"])}
    assert result["cells_in_regions"]["microglia"] == pytest.approx(result["cells"]["microglia"], rel=1e-3)
    assert result["interval_90"]["microglia"] == [float(end) for end in meta["expected_cells_90"].split()]


def test_what_the_counts_were_made_from_stands_beside_them(counted):
    made = read_sidecar(counted / "c.csv")
    (cells,) = (counted / "c.cells").glob("*_refined.csv")
    detector, refiner = (
        json.loads((find("model", f"{kind}-microglia") / "config.json").read_text(encoding="utf-8"))["sha256"]
        for kind in ("detector", "refiner")
    )
    assert (made["detector_sha256"], made["refiner_sha256"]) == (detector, refiner)
    assert made["cells microglia"] == sha256(cells)
    assert made["atlas labels.tif"] == sha256(counted / "labels.tif")
    assert made["canvas_fm"] == __version__
    assert "regions" in json.loads(made["settings"])
    assert "volume microglia" in made
    assert "atlas" not in read_sidecar(counted / "whole.csv")


@pytest.mark.slow
def test_the_commands_that_its_warnings_name_run_as_they_are(tmp_path, caplog):
    models = ["--detector", "detector-cfos", "--refiner", "refiner-cfos", "--threshold", "0.25"]
    assert main(["count", "sample:cfos", "--out", str(tmp_path / "my counts.csv"), *models]) == 0
    assert "upper end of the 90 % interval is more than twice the lower one: cfos (" in caplog.text
    commands = re.findall("`canvas-fm ([^`]+)`", caplog.text)
    assert [words.split()[0] for words in commands] == ["refine", "audit"]
    for words in commands:
        assert main(shlex.split(words.replace("FOUND CELLS", "30 40"))) == 0
    assert Points.read(tmp_path / "my counts.cells" / "cfos_recall.csv").meta["count_of"] == "all cells"


def test_what_is_written_is_a_csv(capsys, tmp_path):
    assert (
        main(["count", "sample:cfos", "--detector", "detector-cfos", "--out", str(tmp_path / "c.xlsx")]) == 1
    )
    assert "the table of counts is a .csv" in json.dumps(capsys.readouterr().err)


def test_a_brain_of_other_voxels_is_counted_with_resample(tmp_path, capsys):
    volume = ["sample:microglia", "--voxel-um", "6", "2", "2"]
    words = ["count", *volume, "--detector", "detector-phantoms", "--out", str(tmp_path / "c.csv"), "--json"]
    assert main(words) == 1
    assert "--resample" in capsys.readouterr().err
    assert main([*words, "--resample"]) == 0
    counted = json.loads(capsys.readouterr().out)
    detect = ["detect", "detector-phantoms", *volume, "--resample", "--out", str(tmp_path / "d.csv")]
    assert main(detect) == 0
    meta = Points.read(tmp_path / "d.csv").meta  # detections alone, by what held-out brains have to each
    assert list(counted["cells"].values()) == [float(meta["expected_cells"])]
    ends = [float(end) for end in meta["expected_cells_90"].split()]
    assert list(counted["interval_90"].values()) == [ends]
    assert counted["count_of"] == meta["count_of"] == "all cells"


def test_what_limits_a_count_is_a_warning(counted, caplog, monkeypatch):
    """The notes that `refine apply` writes beside the refined cells, for each brain."""
    monkeypatch.setattr("canvas_fm.heads.refine.counts.refined_count._seen", lambda *_: ["few labels"])
    words = [
        "count",
        "sample:microglia",
        "--detector",
        "detector-microglia",
        "--refiner",
        "refiner-microglia",
    ]
    assert main([*words, "--out", str(counted / "noted.csv")]) == 0
    assert "microglia: few labels" in caplog.text


def test_each_brain_is_counted_by_its_own_label_volume(tmp_path, capsys):
    import pandas

    (tmp_path / "names.csv").write_text("id,name\n1,here\n2,there\n", encoding="utf-8")
    for number, name in enumerate("ab", 1):
        out = [str(tmp_path / name), "--markers", "NeuN", "--shape", "16", "48", "48"]
        assert main(["phantom", *out, "--seed", str(number), "--quiet"]) == 0
        tifffile.imwrite(tmp_path / f"{name}.tif", np.full((16, 48, 48), number, np.uint8))
    words = [
        "count", *(str(tmp_path / name / "NeuN" / "raw.zarr") for name in "ab"),
        "--out", str(tmp_path / "c.csv"), "--detector", "detector-phantoms", "--resample",
        "--threshold", "0.1", "--json", "--table", str(tmp_path / "names.csv"),
        "--atlas-voxel-um", "4", "1.8", "1.8", "--regions",
    ]  # fmt: skip
    labels = [str(tmp_path / f"{name}.tif") for name in "ab"]
    assert main([*words, *labels]) == 0
    table = pandas.read_csv(tmp_path / "c.csv")
    assert {(row.brain[0], row.id) for row in table.itertuples() if row.own_count} == {("a", 1), ("b", 2)}
    assert read_sidecar(tmp_path / "c.csv")["atlas of b/NeuN b.tif"] == sha256(tmp_path / "b.tif")
    capsys.readouterr()
    assert main([*words, *labels, labels[0]]) == 1
    assert "2 volumes and 3 atlases were given" in capsys.readouterr().err
