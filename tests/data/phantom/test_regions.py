"""A synthetic atlas: every voxel has a region of the table, and known cells are counted exactly by region."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from canvas_fm.analysis.regions.tree import RegionTree
from canvas_fm.cli import main
from canvas_fm.data.phantom.regions import REGIONS, _slab, write_phantom_regions
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError

SHAPE = (70, 60, 50)


def voxels(path: Path) -> np.ndarray:
    volume = Volume.open(path)
    return volume.read((0, 0, 0), volume.shape_zyx)


def test_every_voxel_has_a_region_of_the_table(tmp_path: Path) -> None:
    labels, table = write_phantom_regions(tmp_path, SHAPE, voxel_um=(6, 1.62, 1.62))
    assert Volume.open(labels).voxel_um == (6, 1.62, 1.62)
    regions = voxels(labels)
    leaves = {3, 4, 6, 7}
    assert regions.shape == SHAPE
    assert set(np.unique(regions).tolist()) == leaves
    assert all((regions == one).mean() > 0.1 for one in leaves)
    tree = RegionTree.read(table)
    assert [one.name for one in tree.regions] == [one.name for one in REGIONS]
    assert {one.id: one.parent for one in tree.regions}[3] == 2


def test_borders_are_of_the_seed_and_slabs_meet(tmp_path: Path) -> None:
    first, second, again = (
        voxels(write_phantom_regions(tmp_path / name, SHAPE, seed=seed)[0])
        for name, seed in (("a", 1), ("b", 2), ("c", 1))
    )
    assert (first == again).all()
    assert (first != second).any()
    whole = _slab(0, SHAPE[0], SHAPE, np.array([4.0, 1.8, 1.8]), 1)  # in one piece, as stored in two
    assert (first == whole).all()


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    write_phantom_regions(tmp_path, SHAPE)
    with pytest.raises(CanvasError, match="exists already"):
        write_phantom_regions(tmp_path, SHAPE)


def test_known_cells_are_counted_exactly_by_region(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "brain"
    assert (
        main(["phantom", str(out), "--markers", "NeuN", "--shape", "24", "80", "80", "--regions", "--json"])
        == 0
    )
    paths = json.loads(capsys.readouterr().out)
    assert set(paths) == {"regions", "table", "NeuN"}
    cells = str(out / "NeuN" / "centroids.csv")
    counted = tmp_path / "counted.csv"
    command = ["regions", cells, paths["regions"], "--table", paths["table"], "--out", str(counted)]
    assert main([*command, "--voxel-um", "4", "1.8", "1.8"]) == 0
    at = np.rint(Points.read(cells).zyx).astype(int)
    regions = voxels(Path(paths["regions"]))[tuple(at.T)]
    with counted.open(newline="") as table:
        rows = {
            int(row["id"]): float(row["count"])
            for row in csv.DictReader(table)
            if row["hemisphere"] == "both"
        }
    assert {one: rows.get(one, 0) for one in (3, 4, 6, 7)} == {
        one: (regions == one).sum() for one in (3, 4, 6, 7)
    }


def test_random_brains_have_no_regions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["phantom", str(tmp_path / "x"), "--randomise", "1", "--regions"])
    assert "--regions goes with --markers" in capsys.readouterr().err
