"""Points as the field's tools leave them: read right, or refused in a sentence."""

from __future__ import annotations

import gzip
import json
import struct

import numpy as np
import pytest

from canvas_fm.data.points.points import Points, convert_points
from canvas_fm.errors import CanvasError

ZYX = [[10, 20, 30], [11, 21, 31]]


def read(tmp_path, text, name="p.csv", **more):
    (tmp_path / name).write_text(text, newline="")
    return Points.read(tmp_path / name, **more)


@pytest.mark.parametrize(
    "text",
    [
        "x,y,z\r30,20,10\r31,21,11\r",  # old Mac line ends
        "# z y x\n10 20 30\n11 21 31\n",  # numpy.savetxt
        "  z   y   x\n  10  20  30\n  11  21  31\n",
        "sep=;\nz;y;x\n10,0;20,0;30,0\n11,0;21,0;31,0\n",
        '"sep=,"\nz,y,x\n\n10,20,30\n,,\n11,21,31\n',
        ",z,,y,x,\n0,10,,20,30,\n1,11,,21,31,\n",
        "index,axis-0,axis-1,axis-2\n7,10,20,30\n3,11,21,31\n",
        "axis-0,axis-1,axis-2\n10,20,30\n11,21,31\n",
        "brain,X,Y,Z\na,30,20,10\na,31,21,11\n",
    ],
)
def test_tables_are_read(tmp_path, text):
    assert read(tmp_path, text).zyx.tolist() == ZYX


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("z,y,x,unit\n10,20,30,um\n", "physical units"),
        ("index,axis-0,axis-1,axis-2,axis-3\n0,0,10,20,30\n", "more than three axes"),
        ("index,axis-0,axis-1\n0,10,20\n", "no column"),
        ("index,shape-type,vertex-index,axis-0,axis-1,axis-2\n0,path,0,1,2,3\n", "shapes"),
        ('"1,5","2,5","3,5"\n', "no column"),
        ('z,y,x\n"1,5",2,3\n', "expected a number"),
        ("z,y,x\n1,2,3\nz,y,x\n4,5,6\n", "expected a number"),
        ("z,y,x\n1,,3\n", "finite"),
        ("10,20,30\n11,21,31\n", "no column"),
        ("z,y,x\n1,2\n", "has 2 values"),
    ],
)
def test_what_is_no_table_of_voxels_is_refused(tmp_path, text, sentence):
    with pytest.raises(CanvasError, match=sentence):
        read(tmp_path, text)


@pytest.mark.parametrize("blank", ["", "NA", "NaN", "nan", "N/A", "#N/A", "<NA>", "null", "None"])
def test_blanks_of_any_program_are_no_number(tmp_path, blank):
    points = read(tmp_path, f"z,y,x,label\n1,2,3,1\n1,2,4,{blank}\n1,2,5,0\n")
    np.testing.assert_array_equal(points.columns["label"], [1, np.nan, 0])


@pytest.mark.parametrize("second", ["", "12"])
def test_segment_ids_keep_every_digit(tmp_path, second):
    ids = ["720575940623374218", second, str(2**64 - 1)]
    text = "z,y,x,id\n" + "".join(f"1,2,3,{one}\n" for one in ids)
    assert read(tmp_path, text).columns["id"].astype(str).tolist() == ids


def test_ids_of_a_later_block_keep_every_digit(tmp_path, monkeypatch):
    monkeypatch.setattr("canvas_fm.data.points.csv_columns.columns._BLOCK", 2)
    monkeypatch.setattr("canvas_fm.data.points.csv_columns.columns._CHARACTERS", 2)
    text = "z,y,x,id\n1,2,3,720575940623374217\n1,2,3,5\n1,2,3,\n1,2,3,6\n"
    assert read(tmp_path, text).columns["id"].tolist() == ["720575940623374217", "5", "", "6"]


# --- NumPy


def test_clearmaps_structured_array_is_read_by_its_names(tmp_path):
    kind = [("x", "<i8"), ("y", "<i8"), ("z", "<i8"), ("size", "<i8"), ("name", "<U20")]
    np.save(tmp_path / "cells.npy", np.array([(30, 20, 10, 5, "CA1"), (31, 21, 11, 6, "DG")], kind))
    points = Points.read(tmp_path / "cells.npy")
    assert points.zyx.tolist() == ZYX
    assert points.columns["size"].tolist() == [5, 6]
    assert points.columns["name"].tolist() == ["CA1", "DG"]


def test_a_plain_array_is_refused_unless_its_axes_are_named(tmp_path):
    np.save(tmp_path / "p.npy", np.array(ZYX)[:, ::-1])
    with pytest.raises(CanvasError, match="no column z, y, x; found 0, 1, 2"):
        Points.read(tmp_path / "p.npy")
    assert Points.read(tmp_path / "p.npy", columns=["2", "1", "0"]).zyx.tolist() == ZYX
    with pytest.raises(CanvasError, match="read only"):
        Points(np.array(ZYX)).write(tmp_path / "q.npy")


@pytest.mark.parametrize(
    "array", [np.array([{"z": 1}], object), np.zeros((2, 3, 4)), np.zeros((2, 3), complex)]
)
def test_other_arrays_are_refused(tmp_path, array):
    np.save(tmp_path / "p.npy", array, allow_pickle=True)
    with pytest.raises(CanvasError, match=r"NumPy array|expected rows of points"):
        Points.read(tmp_path / "p.npy")


# --- Neuroglancer


def state(tmp_path, annotations, *, dimensions=None, source=None, **layer):
    layer = {"type": "annotation", "name": "a", "annotations": annotations, **layer}
    layer |= {} if source is None else {"source": source}
    content = {"layers": [layer]} | ({} if dimensions is None else {"dimensions": dimensions})
    (tmp_path / "s.json").write_text(json.dumps(content))
    return Points.read(tmp_path / "s.json")


def point(*position, **more):
    return {"type": "point", "id": "1", "point": list(position), **more}


def test_properties_of_every_type_become_columns(tmp_path):
    kinds = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "rgb", "rgba"]
    properties = [{"id": f"p_{kind}", "type": kind} for kind in kinds]
    row = point(30.5, 20.5, 10.5, props=[1, -1, 2, -2, 3, -3, 0.5, "#ff8000", "#ff800080"])
    points = state(tmp_path, [row], annotationProperties=properties)
    found = [points.columns[f"p_{kind}"].tolist()[0] for kind in kinds]
    assert found == [1, -1, 2, -2, 3, -3, 0.5, "#ff8000", "#ff800080"]
    assert points.zyx.tolist() == [[10, 20, 30]]


def test_an_identity_is_no_transform_and_others_are_refused(tmp_path):
    rows, dimensions = [point(30.5, 20.5, 10.5)], {axis: [1e-6, "m"] for axis in "xyz"}
    matrix = np.eye(3, 4)
    transform = {"outputDimensions": dimensions, "matrix": matrix.tolist()}
    source = {"url": "local://annotations", "transform": transform}
    assert state(tmp_path, rows, source=source).zyx.tolist() == [[10, 20, 30]]
    for place in ((0, 0), (1, 3), (0, 1)):
        changed = matrix.copy()
        changed[place] = 2
        transform["matrix"] = changed.tolist()
        with pytest.raises(CanvasError, match="have a transform"):
            state(tmp_path, rows, source=source)


def test_points_of_several_times_are_refused(tmp_path):
    dimensions = {"x": [1e-6, "m"], "y": [1e-6, "m"], "z": [1e-6, "m"], "t": [1, "s"]}
    one = [point(30.5, 20.5, 10.5, 4), point(31.5, 21.5, 11.5, 4)]
    assert state(tmp_path, one, dimensions=dimensions).zyx.tolist() == ZYX
    with pytest.raises(CanvasError, match="2 places of the axis 't'"):
        state(tmp_path, [one[0], point(31.5, 21.5, 11.5, 5)], dimensions=dimensions)


PROPERTIES = [{"id": "kind", "type": "uint8"}, {"id": "score", "type": "float32"},
              {"id": "tint", "type": "rgb"}, {"id": "size", "type": "uint16"}]  # fmt: skip


def precomputed(folder, **changes):
    """Two points in two levels of a spatial index, packed as the format's page says."""
    (folder / "spatial0").mkdir(parents=True)
    (folder / "spatial1").mkdir()
    info = {
        "@type": "neuroglancer_annotations_v1",
        "dimensions": {"x": [1.8e-6, "m"], "y": [1.8e-6, "m"], "z": [4e-6, "m"]},
        "annotation_type": "POINT", "properties": PROPERTIES, "relationships": [],
        "spatial": [{"key": "spatial0"}, {"key": "spatial1"}], "by_id": {"key": "by_id"},
    } | changes  # fmt: skip
    (folder / "info").write_text(json.dumps(info))
    for level, (z, y, x) in enumerate(ZYX):
        row = struct.pack("<3f", x + 0.5, y + 0.5, z + 0.5)
        row += struct.pack("<fHB3B", 0.25 + level, 300 + level, 2 + level, 255, 128, level) + b"\0\0"
        chunk = struct.pack("<Q", 1) + row + struct.pack("<Q", 2**40 + level)
        (folder / f"spatial{level}" / "0_0_0").write_bytes(chunk)
    return folder


def test_precomputed_annotations_are_read(tmp_path):
    folder = precomputed(tmp_path / "a")
    for path in (folder, folder / "info"):
        points = Points.read(path)
        assert points.zyx.tolist() == ZYX
        assert points.meta == {"voxel_um": "4.0 1.8 1.8"}
        assert points.columns["kind"].tolist() == [2, 3]
        assert points.columns["score"].tolist() == [0.25, 1.25]
        assert points.columns["size"].tolist() == [300, 301]
        assert points.columns["tint"].tolist() == ["#ff8000", "#ff8001"]
    convert_points(folder, tmp_path / "c.csv")
    assert Points.read(tmp_path / "c.csv").zyx.tolist() == ZYX


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"annotation_type": "LINE"}, "only points are read"),
        ({"@type": "neuroglancer_multiscale_volume"}, "expected precomputed annotations"),
        ({"spatial": [{"key": "spatial0", "sharding": {}}]}, "sharded"),
        ({"spatial": [{"key": "../b"}]}, "no folder of annotations inside it"),
        ({"spatial": [{"key": "spatial9"}]}, "has no folder"),
        ({"properties": [{"id": "a", "type": "text"}]}, "no known type"),
        ({"properties": PROPERTIES[:1]}, "not what its count"),
        ({"dimensions": {"x": [1, "m"], "y": [1, "m"]}}, "expected z, y and x"),
    ],
)
def test_other_precomputed_annotations_are_refused(tmp_path, change, sentence):
    with pytest.raises(CanvasError, match=sentence):
        Points.read(precomputed(tmp_path / "a", **change))


def test_a_cut_chunk_is_refused_and_a_packed_one_read(tmp_path):
    folder = precomputed(tmp_path / "a")
    chunk = folder / "spatial1" / "0_0_0"
    content = chunk.read_bytes()
    chunk.write_bytes(content[:-1])
    with pytest.raises(CanvasError, match="not what its count"):
        Points.read(folder)
    chunk.unlink()
    (folder / "spatial1" / "0_0_0.gz").write_bytes(gzip.compress(content))
    assert Points.read(folder).zyx.tolist() == ZYX


# --- cellfinder and ImageJ's Cell Counter


@pytest.mark.parametrize(("image", "said"), [("placeholder.tif", False), ("brain.tif", True)])
def test_cell_counters_slices_are_said(tmp_path, caplog, image, said):
    text = (
        f"<CellCounter_Marker_File><Image_Properties><Image_Filename>{image}</Image_Filename></Image_Properties>"
        "<Marker_Data><Marker_Type><Type>1</Type><Marker><MarkerX>30</MarkerX><MarkerY>20</MarkerY>"
        "<MarkerZ>10</MarkerZ></Marker></Marker_Type></Marker_Data></CellCounter_Marker_File>"
    )
    assert read(tmp_path, text, "c.xml").zyx.tolist() == ZYX[:1]
    assert ("counts slices from 1" in caplog.text) is said
