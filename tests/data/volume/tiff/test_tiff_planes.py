"""TIFF planes as volumes: their order along z, their channels, and damaged ones."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError, DamagedStore

SHAPE = (12, 20, 30)
VOXELS = np.arange(np.prod(SHAPE), dtype=np.uint16).reshape(SHAPE)


def write_folder(folder, names, planes=VOXELS, **options):
    folder.mkdir(exist_ok=True)
    for name, plane in zip(names, planes, strict=True):
        tifffile.imwrite(folder / name, plane, **options)
    return folder


def open_planes(path, **options):
    return Volume.open(path, voxel_um=(4, 2, 2), **options)


def everything(volume):
    return volume.read((0, 0, 0), volume.shape_zyx)


@pytest.mark.parametrize(
    "pattern", ["plane{}.tif", "a7_z{:03d}.tiff", "{}.TIF", "Z{}_ch1.tif", "344170_392340_{:06d}_ch2.tiff"]
)
def test_planes_lie_in_the_order_of_their_numbers(tmp_path, pattern):
    folder = write_folder(
        tmp_path / "planes", [pattern.format(10 * z) for z in range(12)], compression="zlib"
    )
    volume = open_planes(folder)
    assert (volume.shape_zyx, volume.chunk_zyx, volume.dtype) == (SHAPE, (1, 20, 30), np.uint16)
    np.testing.assert_array_equal(everything(volume), VOXELS)
    np.testing.assert_array_equal(volume.read((-1, 18, 28), (4, 4, 4))[1:, :2, :2], VOXELS[:3, 18:, 28:])
    np.testing.assert_array_equal(volume.read_chunk((7, 0, 0)), VOXELS[7:8])
    assert not volume.checksums


def test_channels_of_a_canvas_folder_are_chosen(tmp_path):
    folder = tmp_path / "NeuN_1" / "image"
    folder.parent.mkdir()
    for channel in (1, 2):
        write_folder(folder, [f"10_20_{10 * z:06d}_ch{channel}.tiff" for z in range(12)], VOXELS + channel)
    with pytest.raises(CanvasError, match=r"holds the channels \[1, 2\]: choose one with --c"):
        open_planes(folder)
    with pytest.raises(CanvasError, match="there is no c=0"):
        open_planes(folder, c=0)
    volume = open_planes(folder, c=2)
    assert volume.name == "NeuN_1"
    np.testing.assert_array_equal(everything(volume), VOXELS + 2)
    tifffile.imwrite(folder / "overview.tif", VOXELS[0])
    with pytest.raises(CanvasError, match=r"overview\.tif are not named alike"):
        open_planes(folder, c=2)
    (folder / "overview.tif").unlink()
    tifffile.imwrite(folder / "11_20_000000_ch2.tiff", VOXELS[0])
    with pytest.raises(CanvasError, match="holds 2 tiles"):
        open_planes(folder, c=2)


def test_other_names_mix_neither_channels_nor_sides(tmp_path):
    names = [f"z{z:03d}_ch{channel}.tif" for z in range(6) for channel in (0, 1)]
    folder = write_folder(tmp_path / "channels", names)
    with pytest.raises(CanvasError, match=r"holds the channels \[0, 1\]"):
        open_planes(folder)
    np.testing.assert_array_equal(everything(open_planes(folder, c=1)), VOXELS[1::2])
    names = [f"{side}_{z:03d}.tif" for z in range(6) for side in ("left", "right")]
    sides = write_folder(tmp_path / "sides", names)
    with pytest.raises(CanvasError, match=r"holds the channels 0 \(left\), 1 \(right\): choose one"):
        open_planes(sides)
    np.testing.assert_array_equal(everything(open_planes(sides, c=1)), VOXELS[1::2])


def test_the_voxel_size_is_asked_for_and_slowness_is_said(tmp_path, caplog):
    folder = write_folder(tmp_path / "planes", [f"{z}.tif" for z in range(12)])
    with pytest.raises(CanvasError, match="planes has no voxel size; give --voxel-um z y x once"):
        Volume.open(folder)
    caplog.clear()
    caplog.set_level("WARNING", "canvas_fm")  # whatever level a command before asked for
    volume = open_planes(folder)
    volume.read((0, 0, 0), volume.shape_zyx)
    assert caplog.text == ""
    for _ in range(2):
        volume.read((0, 0, 0), (2, 3, 4))
    assert caplog.text.count("reading boxes of TIFF planes is slow") == 1
    assert "canvas-fm convert" in caplog.text


@pytest.mark.parametrize(
    "options",
    [{}, {"compression": "zlib"}, {"imagej": True}, {"ome": True}, {"tile": (16, 16)}, {"bigtiff": True}],
)
def test_a_stack_in_one_file(tmp_path, options):
    axes = {"metadata": {"axes": "ZYX"}} if options.keys() & {"imagej", "ome"} else {}
    tifffile.imwrite(tmp_path / "a.tif", VOXELS, photometric="minisblack", **options, **axes)
    volume = open_planes(tmp_path / "a.tif")
    assert volume.shape_zyx == SHAPE
    np.testing.assert_array_equal(everything(volume), VOXELS)
    np.testing.assert_array_equal(volume.read((5, 3, 4), (2, 3, 4)), VOXELS[5:7, 3:6, 4:8])


@pytest.mark.parametrize("imagej", [True, False])
def test_t_and_c_of_a_stack_are_chosen(tmp_path, imagej):
    stack = np.stack([np.stack([VOXELS + 100 * t + c for c in range(3)], axis=1) for t in range(2)])
    metadata = {"axes": "TZCYX"}
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=imagej, ome=not imagej, metadata=metadata)
    np.testing.assert_array_equal(everything(open_planes(tmp_path / "a.tif", t=1, c=2)), VOXELS + 102)
    with pytest.raises(CanvasError, match="3 along axis c: choose one with --c 0 to 2"):
        open_planes(tmp_path / "a.tif", t=1)
    with pytest.raises(CanvasError, match="there is no t=2"):
        open_planes(tmp_path / "a.tif", t=2, c=0)


def test_what_is_no_stack_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "plane.tif", VOXELS[0])
    with pytest.raises(CanvasError, match="a volume needs planes along z"):
        open_planes(tmp_path / "plane.tif")
    tifffile.imwrite(tmp_path / "colour.tif", np.zeros((4, 20, 30, 3), np.uint8), photometric="rgb")
    with pytest.raises(CanvasError, match="3 values a pixel"):
        open_planes(tmp_path / "colour.tif")
    tifffile.imwrite(tmp_path / "complex.tif", VOXELS.astype(np.complex64), photometric="minisblack")
    with pytest.raises(CanvasError, match="integers or floats"):
        open_planes(tmp_path / "complex.tif")
    folder = write_folder(tmp_path / "stacks", ["1.tif", "2.tif"], [VOXELS] * 2, photometric="minisblack")
    with pytest.raises(CanvasError, match="holds 12 planes; in a folder each file holds one"):
        open_planes(folder)


@pytest.mark.parametrize("other", [VOXELS[0, :, :-1], VOXELS[0].astype(np.uint8), VOXELS[:2]])
def test_planes_that_differ_are_refused(tmp_path, other):
    folder = write_folder(tmp_path / "planes", [f"{z}.tif" for z in range(12)])
    tifffile.imwrite(folder / "7.tif", other, photometric="minisblack")
    with pytest.raises(CanvasError, match=r"7\.tif .*(the first plane, 0\.tif|holds 2 planes)"):
        everything(open_planes(folder))


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("damage", ["cut", "half", "empty", "garbage", "gone"])
def test_a_damaged_plane_is_named_and_can_be_skipped(tmp_path, damage, compression):
    folder = write_folder(tmp_path / "planes", [f"p{z}.tif" for z in range(12)], compression=compression)
    plane = folder / "p7.tif"
    content = plane.read_bytes()
    volume, skipping = open_planes(folder), open_planes(folder, on_bad_chunk="skip")
    if damage == "gone":
        plane.unlink()
    else:
        size = len(content)
        left = {
            "cut": content[: size - 40],
            "half": content[: size // 2],
            "empty": b"",
            "garbage": b"II*\0" + b"x" * 99,
        }
        plane.write_bytes(left[damage])
    with pytest.raises(DamagedStore, match=r"p7\.tif") as caught:
        everything(volume)
    assert "\n" not in str(caught.value)
    for _ in range(2):
        box = everything(skipping)
    assert not box[7].any()
    np.testing.assert_array_equal(np.delete(box, 7, 0), np.delete(VOXELS, 7, 0))
    assert len(skipping.bad_chunks) == 1


@pytest.mark.parametrize("part", [0.02, 0.5, 0.97])
def test_a_truncated_stack_is_damage(tmp_path, part):
    tifffile.imwrite(tmp_path / "a.tif", VOXELS, photometric="minisblack", compression="zlib")
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[: int(len(content) * part)])
    with pytest.raises(CanvasError, match=r"a\.tif"):
        everything(open_planes(tmp_path / "a.tif"))


def test_real_planes(real_data):
    volume = Volume.open(real_data / "cellfinder_s2p/ch0", voxel_um=(5, 2, 2))
    assert (volume.shape_zyx, volume.dtype) == ((14, 510, 667), np.uint16)
    plane = tifffile.imread(real_data / "cellfinder_s2p/ch0/ch0_0011.tif")
    np.testing.assert_array_equal(volume.read((3, 100, 200), (1, 50, 60))[0], plane[100:150, 200:260])
    assert volume.window.low < volume.window.high


def test_several_stacks_in_a_folder_are_said_as_that(tmp_path):
    """As NDTiff and ImageJ leave them: their names say no order of planes."""
    write_folder(tmp_path / "a", ["b.tif", "b_1.tif"], VOXELS.reshape(2, 6, 20, 30), photometric="minisblack")
    with pytest.raises(CanvasError, match=r"b\.tif holds 6 planes; in a folder each file holds one"):
        open_planes(tmp_path / "a")
