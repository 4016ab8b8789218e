"""Detections in planes whose numbers begin elsewhere say which file is plane 0."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile
from scipy.ndimage import gaussian_filter

from canvas_fm.cli import main
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from tests.support.real_data import ABSENT, REAL_DATA


def test_the_file_of_plane_0_stands_beside_the_cells(tmp_path, capsys):
    spots = np.zeros((10, 40, 40), np.float32)
    spots[4, 20, 20] = 60_000
    voxels = (100 + gaussian_filter(spots, (1, 2, 2))).astype(np.uint16)
    folder = tmp_path / "ch0"
    folder.mkdir()
    for z, plane in enumerate(voxels, start=8):
        tifffile.imwrite(folder / f"ch0_{z:04d}.tif", plane)
    out = tmp_path / "cells.csv"
    words = [
        "detect",
        str(folder),
        "--method",
        "log",
        "--voxel-um",
        "4",
        "2",
        "2",
        "--out",
        str(out),
        "--json",
    ]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["plane_0"] == "ch0_0008.tif"
    cells = Points.read(out)
    assert cells.meta["plane_0"] == "ch0_0008.tif"
    assert cells.zyx.round().tolist() == [[4, 20, 20]]  # counted from there, not from plane 0 of the brain
    assert Volume.from_array(voxels, voxel_um=(4, 2, 2)).plane_0 is None


@pytest.mark.slow
def test_real_planes_are_converted_and_their_cells_found(tmp_path, capsys):
    planes = REAL_DATA / "cellfinder_s2p" / "ch0"
    if not planes.is_dir():
        pytest.skip(ABSENT)
    size = ["--voxel-um", "5", "2", "2"]
    assert main(["convert", str(planes), str(tmp_path / "a.zarr"), *size, "--verify"]) == 0
    found = {}
    for name, source, flags in (("planes", planes, size), ("store", tmp_path / "a.zarr", [])):
        out = tmp_path / f"{name}.csv"
        assert main(["detect", str(source), "--method", "log", "--out", str(out), *flags]) == 0
        found[name] = Points.read(out)
    assert len(found["planes"]) > 100
    np.testing.assert_array_equal(found["planes"].zyx, found["store"].zyx)
    assert found["planes"].meta["plane_0"] == "ch0_0008.tif"
    capsys.readouterr()
