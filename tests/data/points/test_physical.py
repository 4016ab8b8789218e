"""Tables and XML of Imaris and TrackMate: positions in µm become voxels by a voxel size that is stated."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from canvas_fm.data.points.points import Points, convert_points
from canvas_fm.errors import CanvasError

VOXEL_UM = (4.0, 1.8, 1.8)
ZYX = [[30.0, 20.0, 10.0], [31.0, 21.0, 11.5]]


def write(tmp_path, text, name="spots.csv", encoding="utf-8"):
    (tmp_path / name).write_bytes(text.encode(encoding))
    return tmp_path / name


def um(axis, row, corner=0.0):
    return (ZYX[row][axis] + corner) * VOXEL_UM[axis]


def imaris(unit="um", times=(1, 1), end=",", factor=1.0):
    """A statistics file of Imaris: an empty line, title, rule, columns, a comma at the end of each line."""
    lines = ["", "Position", " ==================== "]
    lines += [f"Position X,Position Y,Position Z,Unit,Category,Collection,Time,ID{end}"]
    for row, time in enumerate(times):
        x, y, z = (repr(um(axis, row, 0.5) * factor) for axis in (2, 1, 0))
        lines.append(f"{x},{y},{z},{unit},Spot,Position,{time},{row},")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("unit", "factor"), [("um", 1), ("µm", 1), ("nm", 1000), ("mm", 0.001)], ids=["um", "µm", "nm", "mm"]
)
def test_imaris_statistics_are_converted_from_the_corner_of_the_first_voxel(tmp_path, unit, factor):
    points = Points.read(write(tmp_path, imaris(unit, factor=factor)), voxel_um=VOXEL_UM)
    np.testing.assert_allclose(points.zyx, ZYX, rtol=0, atol=1e-9)
    assert list(points.columns) == ["Category", "Collection", "Time", "ID"]
    assert points.columns["ID"].tolist() == [0, 1]


def test_imaris_columns_without_the_last_comma_and_with_crlf(tmp_path):
    text = imaris(end="").replace("\n", "\r\n")
    points = Points.read(write(tmp_path, text), voxel_um=VOXEL_UM)
    np.testing.assert_allclose(points.zyx, ZYX, rtol=0, atol=1e-9)


def test_positions_in_um_without_a_voxel_size_are_refused_and_conversion_is_named(tmp_path):
    path = write(tmp_path, imaris())
    with pytest.raises(CanvasError, match=r"points convert spots\.csv cells\.csv --voxel-um Z Y X"):
        Points.read(path)
    convert_points(path, tmp_path / "cells.csv", voxel_um=VOXEL_UM)
    back = Points.read(tmp_path / "cells.csv")
    np.testing.assert_allclose(back.zyx, ZYX, rtol=0, atol=1e-9)
    assert back.meta["voxel_um"] == "4.0 1.8 1.8"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (imaris(times=(1, 2)), "holds 2 time points"),
        (imaris("furlong"), "positions in furlong; expected one unit"),
        (imaris().replace("um,", "mm,", 1), "positions in mm, um; expected one unit"),
        ("Position X,Position Y,Position Z\n1,2,3\n", "does not say the unit of Position Z"),
    ],
)
def test_positions_that_cannot_be_converted_are_refused(tmp_path, text, sentence):
    with pytest.raises(CanvasError, match=sentence):
        Points.read(write(tmp_path, text), voxel_um=VOXEL_UM)


TRACKMATE = (
    "LABEL,ID,TRACK_ID,QUALITY,POSITION_X,POSITION_Y,POSITION_Z,POSITION_T,FRAME,RADIUS,VISIBILITY\n"
    "Label,Spot ID,Track ID,Quality,X,Y,Z,T,Frame,Radius,Visibility\n"
    "Label,Spot ID,Track ID,Quality,X,Y,Z,T,Frame,R,Visibility\n"
    ",,,(quality),({unit}),({unit}),({unit}),(sec),,({unit}),\n"
)


def spots(unit, scale=VOXEL_UM, frames=(0, 0)):
    rows = [
        f"ID{row},{row},,{5 + row}.5,"
        + ",".join(repr(ZYX[row][axis] * scale[axis]) for axis in (2, 1, 0))
        + f",0.0,{frame},7.5,1\n"
        for row, frame in enumerate(frames)
    ]
    return TRACKMATE.format(unit=unit) + "".join(rows)


@pytest.mark.parametrize("unit", ["micron", "microns", "µm", "um"])
def test_trackmate_spots_in_um_with_their_rows_of_names_and_units(tmp_path, unit):
    points = Points.read(write(tmp_path, spots(unit)), voxel_um=VOXEL_UM)
    np.testing.assert_allclose(points.zyx, ZYX, rtol=0, atol=1e-9)
    assert points.columns["QUALITY"].tolist() == [5.5, 6.5]
    assert points.columns["LABEL"].tolist() == ["ID0", "ID1"]


def test_trackmate_spots_in_pixels_are_voxels_and_in_um_are_refused_without_a_size(tmp_path):
    assert Points.read(write(tmp_path, spots("pixel", (1, 1, 1)))).zyx.tolist() == ZYX
    with pytest.raises(CanvasError, match="positions in physical units"):
        Points.read(write(tmp_path, spots("micron")))
    # Naming the columns does not make voxels of them.
    with pytest.raises(CanvasError, match="positions in physical units"):
        Points.read(write(tmp_path, spots("micron")), columns=["POSITION_Z", "POSITION_Y", "POSITION_X"])
    with pytest.raises(CanvasError, match="holds 2 time points"):
        Points.read(write(tmp_path, spots("micron", frames=(0, 1))), voxel_um=VOXEL_UM)


def trackmate_xml(unit="micron", sizes=VOXEL_UM, frames=(0, 0), extra=""):
    spot = '<Spot ID="{0}" name="ID{0}" QUALITY="{0}.5" POSITION_X="{1}" POSITION_Y="{2}" POSITION_Z="{3}" FRAME="{4}" RADIUS="5.0" VISIBILITY="1" />'  # noqa: E501
    rows = [
        spot.format(row, *(repr(ZYX[row][axis] * VOXEL_UM[axis]) for axis in (2, 1, 0)), frame)
        for row, frame in enumerate(frames)
    ]
    z, y, x = sizes
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<TrackMate version="7.11.1"><Model spatialunits="{unit}" '
        f'timeunits="sec"><AllSpots nspots="2"><SpotsInFrame frame="0">{"".join(rows)}{extra}</SpotsInFrame>'
        f'</AllSpots></Model><Settings><ImageData filename="a.tif" pixelwidth="{x}" pixelheight="{y}" '
        f'voxeldepth="{z}" timeinterval="1.0" /></Settings></TrackMate>\n'
    )


HIDDEN = '<Spot ID="9" POSITION_X="0" POSITION_Y="0" POSITION_Z="0" FRAME="0" VISIBILITY="0" />'


def test_trackmate_xml_is_converted_by_its_own_pixel_size(tmp_path, caplog):
    points = Points.read(write(tmp_path, trackmate_xml(extra=HIDDEN), "a.xml"))
    np.testing.assert_allclose(points.zyx, ZYX, rtol=0, atol=1e-9)
    assert points.columns["QUALITY"].tolist() == [0.5, 1.5]
    assert points.meta == {"voxel_um": "4.0 1.8 1.8"}
    assert "1 hidden spot left out, as TrackMate's filters" in caplog.text


def test_trackmate_xml_without_a_depth_needs_the_voxel_size_and_another_one_is_refused(tmp_path):
    flat = write(tmp_path, trackmate_xml(sizes=(0, 1.8, 1.8)), "flat.xml")
    with pytest.raises(CanvasError, match="give the volume's voxel size once"):
        Points.read(flat)
    np.testing.assert_allclose(Points.read(flat, voxel_um=VOXEL_UM).zyx, ZYX, rtol=0, atol=1e-9)
    path = write(tmp_path, trackmate_xml(), "a.xml")
    with pytest.raises(CanvasError, match=r"state voxels of 4\.0 1\.8 1\.8 µm, and 8\.0 3\.6 3\.6"):
        Points.read(path, voxel_um=(8.0, 3.6, 3.6))
    with pytest.raises(CanvasError, match="holds 2 time points"):
        Points.read(write(tmp_path, trackmate_xml(frames=(0, 1)), "two.xml"))
    with pytest.raises(CanvasError, match="positions in 'inch'"):
        Points.read(write(tmp_path, trackmate_xml(unit="inch"), "inch.xml"))


@pytest.mark.parametrize("names", ["x_um,y_um,z_um", "X (µm),Y (µm),Z (µm)", "x [um],y [um],z [um]"])
def test_a_unit_in_the_columns_name_is_read(tmp_path, names):
    text = names + "".join(f"\n{um(2, row)},{um(1, row)},{um(0, row)}" for row in (0, 1)) + "\n"
    np.testing.assert_allclose(
        Points.read(write(tmp_path, text), voxel_um=VOXEL_UM).zyx, ZYX, rtol=0, atol=1e-9
    )
    with pytest.raises(CanvasError, match="positions in physical units"):
        Points.read(write(tmp_path, text))


def test_columns_in_voxels_win_over_those_in_um(tmp_path):
    path = write(tmp_path, "z,y,x,z_um,y_um,x_um\n30,20,10,120,36,18\n")
    points = Points.read(path, voxel_um=VOXEL_UM)
    assert points.zyx.tolist() == ZYX[:1]
    assert points.columns["z_um"].tolist() == [120]


def test_a_table_of_another_voxel_size_is_refused(tmp_path):
    path = write(tmp_path, "# voxel_um: 8 3.6 3.6\nz,y,x\n1,2,3\n")
    with pytest.raises(CanvasError, match=r"state voxels of 8\.0 3\.6 3\.6 µm, and 4\.0 1\.8 1\.8"):
        convert_points(path, tmp_path / "out.csv", voxel_um=VOXEL_UM)


# --- how the text is stored

TABLE = "x,y,z,size\n10,20,30,5\n11.5,21,31,6\n"


@pytest.mark.parametrize("name", ["cells.csv.gz", "cells.CSV.GZ", "cells.csv"])
def test_gzip_is_unpacked_whatever_its_name(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(TABLE.encode()))
    assert Points.read(tmp_path / name).zyx.tolist() == ZYX


@pytest.mark.parametrize("name", ["cells.csv.gz", "cells.tsv.gz", "cells.tsv"])
def test_what_is_written_packed_or_with_tabs_comes_back_and_repeats_its_bytes(tmp_path, name):
    points = Points(np.array(ZYX), {"tag": np.array(["a,b", "c\td"])})
    points.write(tmp_path / name)
    first = (tmp_path / name).read_bytes()
    points.write(tmp_path / name)
    assert (tmp_path / name).read_bytes() == first
    back = Points.read(tmp_path / name)
    assert back.zyx.tolist() == ZYX
    assert back.columns["tag"].tolist() == ["a,b", "c\td"]
    text = (gzip.decompress(first) if name.endswith(".gz") else first).decode()
    assert text.startswith("z\ty\tx" if ".tsv" in name else "z,y,x")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])  # Excel's "CSV UTF-8" and its "Unicode text"
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_byte_order_marks_and_line_ends(tmp_path, encoding, end):
    text = TABLE.replace(",", "\t").replace("\n", end)
    assert Points.read(write(tmp_path, text, "cells.txt", encoding)).zyx.tolist() == ZYX


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (gzip.compress(TABLE.encode() * 50)[:-9], "damaged or cut gzip"),
        (b"PK\x03\x04rest", "an Excel workbook; call a workbook .xlsx, or save"),
        (b"BZh91AY", "compressed with bzip2"),
        (TABLE.encode("utf-16-le"), "holds zero bytes"),
        ("x,y,z,größe\n1,2,3,4\n".encode("cp1252"), "is not UTF-8"),
    ],
    ids=["cut gzip", "xlsx", "bzip2", "utf-16 without a mark", "cp1252"],
)
def test_other_encodings_are_refused(tmp_path, content, sentence):
    (tmp_path / "cells.csv").write_bytes(content)
    with pytest.raises(CanvasError, match=sentence):
        Points.read(tmp_path / "cells.csv")


# --- dialects


def test_clearmap_writes_first_letters_and_names_with_commas(tmp_path):
    text = (
        "# x, y, z, s, s, x, y, z, o, n\n10,20,30,5,100,1.5,2.5,3.5,7,Field CA1\n"
        "11.5,21,31,6,90,1.6,2.6,3.6,8,Primary motor area, Layer 1\n"
    )
    points = Points.read(write(tmp_path, text))
    assert points.zyx.tolist() == ZYX
    assert points.columns["xt"].tolist() == [1.5, 1.6]
    assert points.columns["name"].tolist() == ["Field CA1", "Primary motor area, Layer 1"]


@pytest.mark.parametrize(
    "text",
    [
        ",z,y,x\n0,30,20,10\n1,31,21,11.5\n",  # pandas' index
        ",,,\n,z,y,x,,\n,30,20,10,,\n,,,,,\n,31,21,11.5,,\n",  # blank rows and columns of a sheet
        "x:y:z:size\n10:20:30:5\n11.5:21:31:6\n",  # ClearMap with colons
        "z\ty\tx\n30\t20\t10\n31,0\t21,0\t11,5\n",  # tabs and decimal commas
        "z;y;x;p\n30;20;10;nan\n31;21;11,5;0,5\n",  # a gap beside decimal commas
        '"sep=|"\nz|y|x\n30|20|10\n31|21|11.5\n',
    ],
    ids=["index", "blank columns", "colons", "tabs", "gap", "sep"],
)
def test_dialects_of_other_tools(tmp_path, text):
    points = Points.read(write(tmp_path, text))
    assert points.zyx.tolist() == ZYX
    if "p\n" in text:
        assert points.columns["p"].dtype.kind == "f"


def test_napari_shapes_are_refused_and_its_own_columns_are_not_overwritten(tmp_path):
    text = "index,shape-type,vertex-index,axis-0,axis-1,axis-2\n0,polygon,0,1,2,3\n"
    with pytest.raises(CanvasError, match=r"napari shapes .* not points; save a points layer"):
        Points.read(write(tmp_path, text))
    with pytest.raises(CanvasError, match="the column 'index' is napari's own"):
        Points(np.array(ZYX), {"index": np.arange(2)}).write(tmp_path / "a.csv", "napari")


def test_what_the_readers_could_not_take_back_is_not_written(tmp_path):
    with pytest.raises(CanvasError, match="differ in case alone"):
        Points(np.array(ZYX), {"a": np.arange(2), "A": np.arange(2)}).write(tmp_path / "a.csv")
    with pytest.raises(CanvasError, match="XML cannot hold the control characters"):
        Points(np.array(ZYX), {"comment": np.array(["a\x01", ""])}).write(
            tmp_path / "a.nml", voxel_um=VOXEL_UM
        )
    assert not list(tmp_path.iterdir())


def test_napari_vectors_are_no_points(tmp_path):
    path = tmp_path / "v.csv"
    path.write_text("index,axis-0,axis-1,axis-2,vector-0,vector-1,vector-2\n0,1,2,3,1,1,1\n")
    with pytest.raises(CanvasError, match=r"napari vectors .* not points; save a points layer"):
        Points.read(path)


@pytest.mark.parametrize("name", ["frame", "t", "Time Point", "timestep"])
def test_rows_of_several_time_points_are_refused_also_beside_plain_columns(name, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(f"{name},z,y,x\n0,1,2,3\n0,4,5,6\n")
    assert len(Points.read(path)) == 2
    path.write_text(f"{name},z,y,x\n0,1,2,3\n1,1,2,3\n")
    with pytest.raises(CanvasError, match=rf"holds 2 time points \(column {name}\)"):
        Points.read(path)
    path.write_text("time,z,y,x\n0,1,2,3\n9,1,2,3\n")  # when somebody clicked
    assert len(Points.read(path)) == 2


@pytest.mark.parametrize("mass", ["Homogeneous", "Image"])
def test_surfaces_of_imaris_have_a_centre_of_mass(mass, tmp_path):
    path = tmp_path / "s.csv"
    names = ",".join(f"Center of {mass} Mass {axis}" for axis in "XYZ")
    path.write_text(f"\n\n\n{names},Unit,Category,Time,ID\n600,40,2,um,Surface,1,0\n")
    np.testing.assert_array_equal(Points.read(path, voxel_um=(2, 2, 2)).zyx, [[0.5, 19.5, 299.5]])


@pytest.mark.parametrize("rows", ["1_0,20,300\n", "1,20,300\n" * 40 + "1.5,2_0,300\n"])
def test_a_number_that_python_alone_reads_is_none(rows, tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(f"z,y,x\n{rows}")
    with pytest.raises(CanvasError, match=r"is '\d_0', expected a number"):
        Points.read(path)
