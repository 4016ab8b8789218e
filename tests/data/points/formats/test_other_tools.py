"""Tables and annotations as other tools write them: ClearMap, Excel, cellfinder's YAML, Neuroglancer."""

from __future__ import annotations

import json

import numpy as np
import pytest

from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError

ZYX = [[30.0, 20.0, 10.0], [31.0, 21.0, 11.0]]


def read(tmp_path, text, name="cells.csv"):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return Points.read(tmp_path / name)


@pytest.mark.parametrize(
    "text",
    [
        "# x, y, z, size\n10,20,30,5\n11,21,31,6\n",  # numpy.savetxt, ClearMap
        "#x;y;z;size\n10;20;30;5\n11;21;31;6\n",
        "sep=;\nx;y;z;size\n10;20;30;5\n11;21;31;6\n",  # Excel
        "x;y;z;size\n10,0;20,0;30,0;5\n11,0;21,0;31,0;6\n",  # decimal commas
        "x,y,z,size\n10,20,30,5\n,,,\n11,21,31,6\n,,,\n",  # blank rows
        ",,,\nx,y,z,size\n10,20,30,5\n11,21,31,6\n",
    ],
    ids=["hash", "hash without space", "sep", "decimal commas", "blank rows", "blank first row"],
)
def test_tables_as_other_tools_write_them(tmp_path, text):
    points = read(tmp_path, text)
    assert points.zyx.tolist() == ZYX
    assert points.columns["size"].tolist() == [5, 6]


def test_a_note_before_the_columns_is_still_meta(tmp_path):
    points = read(tmp_path, "# volume: a, b, c\n# z, y, x are voxels\nz,y,x\n30,20,10\n")
    assert points.meta == {"volume": "a, b, c"}


CELLS = "candidate_cells:\n  - {x: 10, y: 20, z: 30, type: 2}\n  - {x: 11, y: 21, z: 31, type: 1}\n"


@pytest.mark.parametrize("suffix", ["yml", "yaml"])
def test_cellfinder_yaml(tmp_path, suffix):
    points = read(tmp_path, CELLS, f"cells.{suffix}")
    assert points.zyx.tolist() == ZYX
    assert points.columns["type"].tolist() == [2, 1]
    with pytest.raises(CanvasError, match=r"read only; write \.xml"):
        points.write(tmp_path / "out.yml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not readable as YAML"),
        ("cells: []", "no list 'candidate_cells'"),
        ("candidate_cells: [{x: 1, y: 2, type: 2}]", "cell 1 has z None"),
        ("candidate_cells: [{x: 1, y: 2, z: .nan, type: 2}]", "expected a finite number"),
        ("candidate_cells: [{x: 1, y: 2, z: 3, type: 1.5}]", "types are whole numbers"),
        (CELLS + CELLS, "the key 'candidate_cells' is given twice"),
        ("candidate_cells: [{x: 1, y: 2, z: 3, type: 2, z: 4}]", "the key 'z' is given twice"),
        ("candidate_cells: !!python/object/apply:os.system [true]", "not readable as YAML"),
    ],
)
def test_what_is_no_cellfinder_yaml_is_refused(tmp_path, text, message):
    with pytest.raises(CanvasError, match=message):
        read(tmp_path, text, "cells.yml")


def layer(properties, **annotation):
    one = {"type": "point", "id": "1", "point": [10.5, 20.5, 30.5], **annotation}
    return json.dumps({"layers": [{"name": "a", "annotationProperties": properties, "annotations": [one]}]})


@pytest.mark.parametrize("props", [[1], [1, None], None, []], ids=["short", "null", "none", "empty"])
def test_annotations_that_lack_properties_are_read_with_blanks(tmp_path, props):
    two = [{"id": "s", "type": "float32"}, {"id": "k", "type": "uint8"}]
    points = read(tmp_path, layer(two, props=props), "a.json")
    assert points.zyx.tolist() == [[30.0, 20.0, 10.0]]
    assert np.isnan(points.columns["k"]).all()


@pytest.mark.parametrize(
    ("properties", "props", "message"),
    [
        (["s"], [1], "has no type; expected an object"),
        ({"s": 1}, [1], "expected a list of properties"),
        ([{"id": "s", "type": "float32"}], [1, 2], "its layer declares 1"),
        ([{"id": "s", "type": "float32"}], {"s": 1}, "its layer declares 1"),
    ],
)
def test_properties_that_cannot_be_told_apart_are_refused(tmp_path, properties, props, message):
    with pytest.raises(CanvasError, match=message):
        read(tmp_path, layer(properties, props=props), "a.json")


@pytest.mark.parametrize("value", [2.0**53, -(2.0**60), 1e90])
def test_positions_that_no_integer_holds_are_not_written_as_cellfinder_xml(tmp_path, value):
    with pytest.raises(CanvasError, match="are these really voxels"):
        Points(np.array([[value, 1.0, 2.0]])).write(tmp_path / "cells.xml")
    assert not (tmp_path / "cells.xml").exists()


def test_annotations_are_in_the_input_dimensions_of_their_layer(tmp_path):
    """The layer is shown in voxels of 2 µm; its positions are in voxels of 4 µm."""
    shown = {axis: [2e-6, "m"] for axis in "xyz"}
    own = {name: [4e-6, "m"] for name in "012"}
    state = json.loads(layer([]))
    transform = {"outputDimensions": shown, "inputDimensions": own}
    state["layers"][0]["source"] = {"url": "local://annotations", "transform": transform}
    points = read(tmp_path, json.dumps(state), "a.json")
    assert points.zyx.tolist() == ZYX[:1]
    assert points.meta == {"voxel_um": "4.0 4.0 4.0"}
    transform["inputDimensions"] = {"x": [4e-6, "m"]}
    with pytest.raises(CanvasError, match="expected one for each of"):
        read(tmp_path, json.dumps(state), "a.json")
