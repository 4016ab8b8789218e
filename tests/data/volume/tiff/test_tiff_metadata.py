"""Voxel sizes, axes and split files that TIFF metadata state."""

from __future__ import annotations

import uuid

import numpy as np
import pytest
import tifffile

from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError

SHAPE = (12, 20, 30)
VOXELS = np.arange(np.prod(SHAPE), dtype=np.uint16).reshape(SHAPE)


def everything(volume):
    return volume.read((0, 0, 0), volume.shape_zyx)


@pytest.mark.parametrize(("unit", "factor"), [("um", 1), ("micron", 1), ("nm", 1e3), ("mm", 1e-3)])
def test_imagej_states_a_voxel_size_in_its_unit(tmp_path, unit, factor):
    resolution = (1 / (1.8 * factor), 1 / (1.7 * factor))
    metadata = {"axes": "ZYX", "spacing": 4.0 * factor, "unit": unit}
    tifffile.imwrite(tmp_path / "a.tif", VOXELS, imagej=True, resolution=resolution, metadata=metadata)
    assert Volume.open(tmp_path / "a.tif").voxel_um == pytest.approx((4.0, 1.7, 1.8), rel=1e-3)
    given = Volume.open(tmp_path / "a.tif", voxel_um=(5, 2, 2))
    assert given.voxel_um == (5, 2, 2)


@pytest.mark.parametrize("unit", ["inch", "pixel", ""])
def test_imagej_without_a_length_states_none(tmp_path, unit):
    metadata = {"axes": "ZYX", "unit": unit} | ({"spacing": 4.0} if unit == "pixel" else {})
    tifffile.imwrite(tmp_path / "a.tif", VOXELS, imagej=True, resolution=(0.5, 0.5), metadata=metadata)
    with pytest.raises(CanvasError, match="has no voxel size; give --voxel-um"):
        Volume.open(tmp_path / "a.tif")


@pytest.mark.parametrize(("unit", "factor"), [(None, 1), ("µm", 1), ("nm", 1e3)])
def test_ome_states_a_voxel_size(tmp_path, unit, factor):
    sizes = {f"PhysicalSize{axis}": um * factor for axis, um in zip("ZYX", (4.0, 1.7, 1.8), strict=True)}
    units = {} if unit is None else {f"PhysicalSize{axis}Unit": unit for axis in "ZYX"}
    tifffile.imwrite(tmp_path / "a.ome.tif", VOXELS, ome=True, metadata={"axes": "ZYX", **sizes, **units})
    assert Volume.open(tmp_path / "a.ome.tif").voxel_um == pytest.approx((4.0, 1.7, 1.8))


@pytest.mark.parametrize("axes", ["TYX", "CYX"])
def test_a_lone_axis_of_planes_is_z(tmp_path, axes):
    tifffile.imwrite(tmp_path / "a.tif", VOXELS, imagej=True, metadata={"axes": axes})
    np.testing.assert_array_equal(everything(Volume.open(tmp_path / "a.tif", voxel_um=(4, 2, 2))), VOXELS)


def test_one_plane_in_three_channels_is_no_stack(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", VOXELS[:3], imagej=True, metadata={"axes": "CYX"})
    for channel in (None, 1):
        with pytest.raises(
            CanvasError, match=r"has the axes CYX .* one plane in 3 channels, give the folder of all"
        ):
            Volume.open(tmp_path / "a.tif", voxel_um=(4, 2, 2), c=channel)


@pytest.mark.parametrize("size", ["abc", "1,8", "nan", "0", "1e999"])
def test_a_given_voxel_size_wins_over_one_that_is_no_number(tmp_path, size):
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels '
        'ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="30" SizeY="20" SizeZ="12" SizeC="1" '
        f'SizeT="1" PhysicalSizeX="{size}" PhysicalSizeY="1.7" PhysicalSizeZ="4"><TiffData/></Pixels>'
        "</Image></OME>"
    )
    tifffile.imwrite(tmp_path / "a.ome.tif", VOXELS, description=xml.encode(), metadata=None)
    with pytest.raises(CanvasError, match="has no voxel size"):
        Volume.open(tmp_path / "a.ome.tif")
    assert Volume.open(tmp_path / "a.ome.tif", voxel_um=(4, 2, 2)).voxel_um == (4, 2, 2)


def write_split(folder, channels=1):
    """An OME-TIFF with a file for each plane, every file naming all of them; the names' order is not z's."""
    folder.mkdir()
    places = [(z, c) for z in range(len(VOXELS)) for c in range(channels)]
    files = {place: f"p{(5 * i) % len(places):03d}.ome.tif" for i, place in enumerate(places)}
    ids = {place: str(uuid.uuid4()) for place in places}
    data = "".join(
        f'<TiffData IFD="0" FirstZ="{z}" FirstC="{c}" FirstT="0" PlaneCount="1">'
        f'<UUID FileName="{files[z, c]}">urn:uuid:{ids[z, c]}</UUID></TiffData>'
        for z, c in places
    )
    for z, c in places:
        xml = (
            '<?xml version="1.0" encoding="UTF-8"?>'
            '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="urn:uuid:{ids[z, c]}"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" '
            f'Type="uint16" SizeX="30" SizeY="20" SizeZ="{len(VOXELS)}" SizeC="{channels}" SizeT="1" '
            'PhysicalSizeX="1.8" PhysicalSizeY="1.7" PhysicalSizeZ="4">'
            f"{data}</Pixels></Image></OME>"
        )
        plane = VOXELS[z] + 1000 * c
        tifffile.imwrite(folder / files[z, c], plane, description=xml.encode(), metadata=None)
    return [folder / files[place] for place in places]


def test_a_split_ome_tiff_is_put_together_by_its_metadata(tmp_path):
    files = write_split(tmp_path / "split")
    volume = Volume.open(files[0])
    assert volume.voxel_um == (4.0, 1.7, 1.8)
    np.testing.assert_array_equal(everything(volume), VOXELS)


def test_channels_of_a_split_ome_tiff_are_chosen(tmp_path):
    files = write_split(tmp_path / "split", channels=2)
    with pytest.raises(CanvasError, match="choose one with --c"):
        Volume.open(files[0])
    np.testing.assert_array_equal(everything(Volume.open(files[0], c=1)), VOXELS + 1000)


def test_a_missing_file_of_a_split_ome_tiff_is_the_one_that_is_named(tmp_path):
    files = write_split(tmp_path / "split")
    files[5].unlink()
    with pytest.raises(CanvasError, match=rf"{files[5].name}, the file of plane 5, is missing"):
        Volume.open(files[0])


def test_a_lost_last_file_of_a_split_ome_tiff_is_named_for_the_folder_too(tmp_path):
    files = write_split(tmp_path / "split")
    by_name = sorted(files)
    by_name[-1].unlink()
    with pytest.raises(CanvasError, match=rf"{by_name[-1].name}, which the OME metadata name, is missing"):
        Volume.open(tmp_path / "split", voxel_um=(4, 2, 2))


def test_a_split_ome_tiff_opens_each_file_once(tmp_path, monkeypatch):
    files = write_split(tmp_path / "split")
    opened = []
    original = tifffile.TiffFile.__init__

    def count(self, file, *args, **options):
        opened.append(str(file))
        original(self, file, *args, **options)

    volume = Volume.open(files[0])
    monkeypatch.setattr(tifffile.TiffFile, "__init__", count)
    everything(volume)
    assert sorted(opened) == sorted(map(str, files))


def test_names_of_other_folders_are_not_followed(tmp_path):
    """A plane's file lies beside the one that names it, whatever path the metadata give."""
    files = write_split(tmp_path / "split")
    text = files[0].read_bytes()
    name = files[3].name.encode()
    moved = b"../" + name[: -len(b".ome.tif") - 3] + b".ome.tif"
    assert len(moved) == len(name)
    files[0].write_bytes(text.replace(name, moved))
    with pytest.raises(CanvasError, match="is missing"):
        Volume.open(files[0])


@pytest.mark.parametrize("compression", ["lzw", "zstd", "zlib", "packbits", "jpegxl", "lerc"])
def test_compressed_planes_are_read(tmp_path, compression):
    for z, plane in enumerate(VOXELS):
        tifffile.imwrite(tmp_path / f"Z{z:03d}.tif", plane, compression=compression)
    options = {"voxel_um": (4, 2, 2)}
    np.testing.assert_array_equal(everything(Volume.open(tmp_path, **options)), VOXELS)


def test_a_damaged_first_plane_can_be_skipped(tmp_path):
    for z, plane in enumerate(VOXELS):
        tifffile.imwrite(tmp_path / f"Z{z:03d}.tif", plane)
    (tmp_path / "Z000.tif").write_bytes(b"II*\0" + b"x" * 99)
    with pytest.raises(CanvasError, match=r"Z000\.tif"):
        Volume.open(tmp_path, voxel_um=(4, 2, 2))
    volume = Volume.open(tmp_path, voxel_um=(4, 2, 2), on_bad_chunk="skip")
    box = everything(volume)
    assert not box[0].any()
    np.testing.assert_array_equal(box[1:], VOXELS[1:])


def test_missing_planes_are_read_as_zero_on_request(tmp_path):
    for z, plane in enumerate(VOXELS):
        if z not in (4, 5):
            tifffile.imwrite(tmp_path / f"Z{z:03d}.tif", plane)
    with pytest.raises(CanvasError, match=r"2 planes are missing between Z003\.tif and Z006\.tif"):
        Volume.open(tmp_path, voxel_um=(4, 2, 2))
    box = everything(Volume.open(tmp_path, voxel_um=(4, 2, 2), missing_chunks="empty"))
    assert not box[4:6].any()
    np.testing.assert_array_equal(np.delete(box, (4, 5), 0), np.delete(VOXELS, (4, 5), 0))
