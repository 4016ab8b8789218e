"""Tables of measured objects as other programs write them, and points files that hold something else."""

from __future__ import annotations

import json

import numpy as np
import pytest

from canvas_fm.cli import main
from canvas_fm.data.points.formats.read_write import read_points
from canvas_fm.errors import CanvasError

ZYX = np.array([[4.0, 10.0, 20.0], [5.0, 11.0, 21.5]])


@pytest.mark.parametrize(
    ("header", "order"),
    [
        ("label,area,centroid-0,centroid-1,centroid-2", "zyx"),
        (",Name,CX (pix),CY (pix),CZ (pix)", "xyz"),
        ("ImageNumber,ObjectNumber,Location_Center_X,Location_Center_Y,Location_Center_Z", "xyz"),
        ("object_id,timestep,Center of the object_0,Center of the object_1,Center of the object_2", "xyz"),
        ("object_id,timestep,Center_of_the_object_0,Center_of_the_object_1,Center_of_the_object_2", "xyz"),
        ("a,b,coordinate_raw_axis_0,coordinate_raw_axis_1,coordinate_raw_axis_2", "zyx"),
    ],
)
def test_centres_of_measured_objects_are_points(tmp_path, caplog, header, order):
    path = tmp_path / "objects.csv"
    rows = ["1,9," + ",".join(str(row["zyx".index(axis)]) for axis in order) for row in ZYX.tolist()]
    path.write_text("\n".join([header, *rows]) + "\n")
    with caplog.at_level("INFO"):
        points = read_points(path)
    np.testing.assert_array_equal(points.zyx, ZYX)
    assert len(points.columns) == 2
    assert "are taken as z, y, x" in caplog.text


def test_slices_that_are_taken_as_z_are_said_to_begin_at_one(tmp_path, caplog, capsys):
    path, out = tmp_path / "results.csv", tmp_path / "cells.csv"
    path.write_text(" ,Label,X,Y,Slice\n1,img,20,10,5\n")
    with pytest.raises(CanvasError, match=r"points convert --columns"):
        read_points(path)
    words = ["points", "convert", str(path), str(out), "--columns", "Slice", "Y", "X"]
    assert main(words) == 0
    assert "--origin -1 0 0 takes it off" in caplog.text
    assert main([*words, "--overwrite", "--origin", "-1", "0", "0"]) == 0
    assert read_points(out).zyx.tolist() == [[4, 10, 20]]
    assert capsys.readouterr().err.count("Traceback") == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 3\n", "fetch it: git lfs pull"),
        ("/annex/objects/MD5E-s1--a.csv\n", "fetch it: git annex get"),
        ("<!DOCTYPE html><html><body>404</body></html>", "a web page; download the file itself"),
        (None, "is a link to .*which is not here; fetch it: git annex get"),
    ],
)
def test_what_is_no_table_says_what_it_is(tmp_path, content, message):
    path = tmp_path / "cells.csv"
    if content is None:
        path.symlink_to("../annex/x")
    else:
        path.write_text(content)
    with pytest.raises(CanvasError, match=message):
        read_points(path)


def of_neuroglancer(path, layers):
    dimensions = {axis: [size, "m"] for axis, size in zip("xyz", (2e-6, 2e-6, 4e-6), strict=True)}
    path.write_text(json.dumps({"dimensions": dimensions, "layers": layers}))
    return path


def test_layers_of_old_states_are_named_by_their_keys(tmp_path):
    point = {"type": "point", "point": [20.5, 10.5, 4.5], "id": "a"}
    layer = {"type": "annotation", "source": "local://annotations", "annotations": [point]}
    points = read_points(of_neuroglancer(tmp_path / "a.json", {"cells": layer, "image": {"type": "image"}}))
    assert points.zyx.tolist() == [[4, 10, 20]]


def test_annotations_of_which_none_is_a_point_are_refused(tmp_path):
    line = {"type": "line", "pointA": [1, 2, 3], "pointB": [2, 3, 4], "id": "a"}
    layer = {"type": "annotation", "name": "l", "source": "local://annotations", "annotations": [line]}
    with pytest.raises(CanvasError, match="none is a point"):
        read_points(of_neuroglancer(tmp_path / "a.json", [layer]))
    assert len(read_points(of_neuroglancer(tmp_path / "b.json", [layer | {"annotations": []}])).zyx) == 0
