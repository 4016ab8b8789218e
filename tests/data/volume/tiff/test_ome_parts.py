"""OME-TIFFs in parts: companions, positions, an order of their own, planes that are missing; other pages."""

from __future__ import annotations

import tarfile

import numpy as np
import pytest
import tifffile

from canvas_fm import Volume
from canvas_fm.data.volume.tiff.channels import list_channels
from canvas_fm.errors import CanvasError, DamagedStore

VOXELS = np.arange(6 * 20 * 30, dtype=np.uint16).reshape(6, 20, 30)
SIZES = 'SizeX="30" SizeY="20" SizeC="1" SizeT="1" PhysicalSizeX="2" PhysicalSizeY="2"'


def block(z: int, ifd: int, file: str | None = None) -> str:
    uuid = f'<UUID FileName="{file}">urn:uuid:{file}</UUID>' if file else ""
    return f'<TiffData FirstZ="{z}" IFD="{ifd}" PlaneCount="1">{uuid}</TiffData>'


def ome(*images: list[str], z: int = 6, z_um: float = 4, before: str = "", own: str = "") -> str:
    """OME-XML of images, each a list of its blocks of planes."""
    text = "".join(
        f'<Image ID="Image:{at}"><Pixels ID="Pixels:{at}" DimensionOrder="XYZCT" Type="uint16" {SIZES} '
        f'SizeZ="{z}" PhysicalSizeZ="{z_um}">{"".join(blocks)}</Pixels></Image>'
        for at, blocks in enumerate(images)
    )
    schema = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
    return f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="{schema}"{own}>{before}{text}</OME>'


def write(path, planes, description: str) -> None:
    with tifffile.TiffWriter(path) as file:
        for at, plane in enumerate(planes):
            text = description if at == 0 else None
            file.write(plane, description=text, metadata=None, contiguous=False)


def binary_only(name: str) -> str:
    return ome(before=f'<BinaryOnly MetadataFile="{name}" UUID="urn:uuid:0"/>')


def same(path, voxels=VOXELS, **options) -> None:
    np.testing.assert_array_equal(np.asarray(Volume.open(path, **options)), voxels)


def test_parts_that_leave_their_metadata_to_the_first_file_or_a_companion(tmp_path):
    blocks = [block(z, z % 3, f"p{z // 3}.ome.tif") for z in range(6)]
    for name in ("p0.ome.tif", "s.companion.ome"):
        folder = tmp_path / name[0]
        folder.mkdir()
        for part in range(2):
            text = ome(blocks) if f"p{part}.ome.tif" == name else binary_only(name)
            write(folder / f"p{part}.ome.tif", VOXELS[3 * part :][:3], text)
        (folder / "s.companion.ome").write_text(ome(blocks))
        for path in (folder, folder / "p0.ome.tif", folder / "p1.ome.tif"):
            same(path)
            assert Volume.open(path).voxel_um == (4, 2, 2)
        assert list_channels(folder) == {}
        (folder / name).unlink()
        with pytest.raises(CanvasError, match=f"metadata are in {name}, which is not beside it"):
            Volume.open(folder / "p1.ome.tif")


def test_of_several_positions_the_one_in_the_file_is_read(tmp_path):
    positions = [[block(z, z, f"Pos{at}.ome.tif") for z in range(6)] for at in range(2)]
    for at in range(2):
        write(tmp_path / f"Pos{at}.ome.tif", VOXELS + at, ome(*positions))
    for at in range(2):
        same(tmp_path / f"Pos{at}.ome.tif", VOXELS + at)


@pytest.mark.parametrize("named", [False, True])
def test_two_stacks_in_one_file_are_no_volume(tmp_path, named):
    file = "a.ome.tif" if named else None
    images = [[block(z, 6 * at + z, file) for z in range(6)] for at in range(2)]
    write(tmp_path / "a.ome.tif", [*VOXELS, *VOXELS], ome(*images))
    with pytest.raises(CanvasError, match=r"2 images.*; a volume is one"):
        Volume.open(tmp_path / "a.ome.tif")


def test_a_stack_beside_a_smaller_level_is_read_with_a_warning(tmp_path, caplog):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(VOXELS, photometric="minisblack")
        file.write(VOXELS[:, ::2, ::2], photometric="minisblack")
    same(tmp_path / "a.tif", voxel_um=(4, 2, 2))
    assert "the first is read" in caplog.text
    tifffile.imwrite(tmp_path / "b.tif", VOXELS, photometric="minisblack")
    tifffile.imwrite(tmp_path / "b.tif", VOXELS, photometric="minisblack", append=True)
    with pytest.raises(CanvasError, match="holds 2 images"):
        Volume.open(tmp_path / "b.tif", voxel_um=(4, 2, 2))


@pytest.mark.parametrize("alone", [True, False])
def test_a_renamed_file_is_known_by_its_identifier_or_as_the_only_one(tmp_path, alone):
    files = ["old.ome.tif"] * 6 if alone else ["old.ome.tif"] * 5 + ["rest.ome.tif"]
    blocks = [block(z, z if name[0] == "o" else 0, name) for z, name in enumerate(files)]
    own = "" if alone else ' UUID="urn:uuid:old.ome.tif"'
    write(tmp_path / "new.ome.tif", VOXELS if alone else VOXELS[:5], ome(blocks, own=own))
    if not alone:
        write(tmp_path / "rest.ome.tif", VOXELS[5:], ome(blocks))
    same(tmp_path / "new.ome.tif")


def test_names_that_contradict_the_metadata_are_refused(tmp_path):
    blocks = [block(z, 0, f"p{5 - z}.ome.tif") for z in range(6)]
    for z in range(6):
        write(tmp_path / f"p{5 - z}.ome.tif", VOXELS[z : z + 1], ome(blocks))
    with pytest.raises(
        CanvasError, match=r"p0\.ome\.tif is plane 5 and p1\.ome\.tif plane 4, by their names"
    ):
        Volume.open(tmp_path)
    same(tmp_path / "p0.ome.tif")


def test_metadata_of_more_or_fewer_planes_than_pages(tmp_path, caplog):
    write(tmp_path / "a.ome.tif", VOXELS, ome(["<TiffData/>"], z=8))
    with pytest.raises(
        CanvasError, match="state 8 planes, and it holds 6, as where an acquisition was stopped"
    ):
        Volume.open(tmp_path / "a.ome.tif")
    write(tmp_path / "b.ome.tif", VOXELS, ome(["<TiffData/>"], z=4))
    same(tmp_path / "b.ome.tif", VOXELS[:4])
    assert "state 4 planes, and it has 6 pages" in caplog.text


def test_a_stage_that_moves_down_states_the_same_size(tmp_path):
    write(tmp_path / "a.ome.tif", VOXELS, ome(["<TiffData/>"], z_um=-4))
    assert Volume.open(tmp_path / "a.ome.tif").voxel_um == (4, 2, 2)


@pytest.mark.parametrize(
    ("about", "y_per_unit", "expected"),
    [({"zunit": "mm", "spacing": 0.02}, 0.5, (20, 2, 2)), ({"yunit": "nm"}, 0.00025, (4, 4, 2))],
)
def test_imagej_may_state_a_unit_for_each_axis(tmp_path, about, y_per_unit, expected):
    metadata = {"axes": "ZYX", "spacing": 4, "unit": "micron", **about}
    how = {"resolution": (0.5, y_per_unit), "metadata": metadata}
    tifffile.imwrite(tmp_path / "a.tif", VOXELS, imagej=True, **how)
    assert Volume.open(tmp_path / "a.tif").voxel_um == pytest.approx(expected)


@pytest.mark.parametrize(
    ("shape", "how", "message"),
    [
        ((20, 30, 6), {"planarconfig": "contig"}, "6 values a pixel.*write them as 6 pages"),
        ((6, 20, 30), {"planarconfig": "separate"}, "6 values a pixel.*write them as 6 pages"),
        ((3, 20, 30), {"photometric": "rgb", "planarconfig": "separate"}, "3 values a pixel.*each colour"),
        ((6, 3, 20, 30), {"photometric": "rgb", "planarconfig": "separate"}, "3 values a pixel.*each colour"),
        ((6, 20, 30), {"metadata": {"axes": "XYZ"}}, "has the axes XYZ.*with the axes z, y, x"),
        ((2, 6, 20, 30), {"metadata": {}}, "has the axes QQYX.*nothing says which of them is z"),
    ],
)
def test_pages_that_are_no_planes_say_why(tmp_path, shape, how, message):
    options = {"photometric": "minisblack", "metadata": None, **how}
    tifffile.imwrite(tmp_path / "a.tif", np.zeros(shape, np.uint8), **options)
    with pytest.raises(CanvasError, match=message):
        Volume.open(tmp_path / "a.tif", voxel_um=(4, 2, 2))


@pytest.mark.parametrize(("shape", "kind"), [((3, 20, 30), "separate"), ((20, 30, 2), "contig")])
def test_planes_in_colour_say_so_in_a_folder_too(tmp_path, shape, kind):
    options = {"photometric": "rgb" if 3 in shape else "minisblack", "planarconfig": kind, "metadata": None}
    for z in range(3):
        tifffile.imwrite(tmp_path / f"z{z}.tif", np.zeros(shape, np.uint8), **options)
    with pytest.raises(CanvasError, match=r"z0\.tif has [23] values a pixel"):
        Volume.open(tmp_path, voxel_um=(4, 2, 2))


def test_planes_with_coarser_pages_are_planes(tmp_path):
    for z, plane in enumerate(VOXELS):
        with tifffile.TiffWriter(tmp_path / f"z{z}.tif") as file:
            file.write(plane, metadata=None)
            file.write(plane[::2, ::2], subfiletype=1, metadata=None)
    same(tmp_path, voxel_um=(4, 2, 2))


def test_masks_of_one_bit_are_read_as_0_and_1(tmp_path):
    (tmp_path / "planes").mkdir()
    mask = VOXELS % 3 == 0
    for z, plane in enumerate(mask):
        tifffile.imwrite(tmp_path / f"planes/z{z}.tif", plane, photometric="minisblack")
    tifffile.imwrite(tmp_path / "a.tif", mask, photometric="minisblack")
    for path in (tmp_path / "planes", tmp_path / "a.tif"):
        same(path, mask.astype(np.uint8), voxel_um=(4, 2, 2))


def test_strips_that_were_never_written_are_damage(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", VOXELS, photometric="minisblack", compression="zlib", metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as file:
        for name in ("StripByteCounts", "StripOffsets"):
            file.pages[3].tags[name].overwrite(0)
    with pytest.raises(DamagedStore, match=r"1 of its 1 strips or tiles were never written"):
        np.asarray(Volume.open(tmp_path / "a.tif", voxel_um=(4, 2, 2)))
    skipped = Volume.open(tmp_path / "a.tif", voxel_um=(4, 2, 2), on_bad_chunk="skip")
    np.testing.assert_array_equal(np.asarray(skipped)[2:4], [VOXELS[2], 0 * VOXELS[3]])


@pytest.mark.parametrize("name", ["p0.ome.tif", "s.companion.ome"])
def test_parts_in_a_tar_are_those_of_a_folder(tmp_path, name):
    blocks = [block(z, z % 3, f"p{z // 3}.ome.tif") for z in range(6)]
    for part in range(2):
        text = ome(blocks) if f"p{part}.ome.tif" == name else binary_only(name)
        write(tmp_path / f"p{part}.ome.tif", VOXELS[3 * part :][:3], text)
    (tmp_path / "s.companion.ome").write_text(ome(blocks))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for file in ("p0.ome.tif", "p1.ome.tif", "s.companion.ome"):
            archive.add(tmp_path / file, file)
    for path in (tmp_path / "a.tar", tmp_path / "a.tar/p1.ome.tif"):
        same(path)
        assert Volume.open(path).voxel_um == (4, 2, 2)
        assert list_channels(path) == {}
    with pytest.raises(CanvasError, match=r"a\.tar holds nothing called 'p2\.ome\.tif'"):
        list_channels(tmp_path / "a.tar/p2.ome.tif")
