"""OME-Zarr as other tools write it: several images, scales at either level, mirrored axes, old versions."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
import zarr

from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError

VOXELS = (np.arange(1, 1 + 12 * 20 * 30) % 65_521).astype(np.uint16).reshape(12, 20, 30)
UM = (4.0, 1.8, 1.5)
IDENTITY = [{"type": "identity"}]


def write(path, voxels=VOXELS, axes="zyx", *, steps=None, outer=None, version="0.4", copies=1):
    group = zarr.open_group(path, mode="w", zarr_format=2)
    array = group.create_array("0", shape=voxels.shape, chunks=voxels.shape, dtype=voxels.dtype)
    array[...] = voxels
    image: dict = {"version": version, "datasets": [{"path": "0"}]}
    if version == "0.4":
        kinds = {"c": "channel", "t": "time"}
        image["axes"] = [
            {"name": a, "type": kinds.get(a, "space")} | ({"unit": "micrometer"} if a in "zyx" else {})
            for a in axes
        ]
    elif version == "0.3":
        image["axes"] = list(axes)
    if steps is not None:
        image["datasets"][0]["coordinateTransformations"] = steps
    if outer is not None:
        image["coordinateTransformations"] = [{"type": "scale", "scale": outer}]
    group.attrs["multiscales"] = [image] * copies
    return path


def scaled(*numbers):
    return [{"type": "scale", "scale": list(numbers)}]


def everything(volume):
    return volume.read((0, 0, 0), volume.shape_zyx)


def test_of_several_images_the_first_is_the_default(tmp_path, caplog):
    volume = Volume.open(write(tmp_path / "a.zarr", steps=scaled(*UM), copies=2))
    np.testing.assert_array_equal(everything(volume), VOXELS)
    assert "holds 2 images; the first is the default" in caplog.text


@pytest.mark.parametrize("steps", [None, IDENTITY, []], ids=["absent", "identity", "empty"])
def test_a_scale_on_the_image_alone_is_the_voxel_size(tmp_path, steps):
    assert Volume.open(write(tmp_path / "a.zarr", steps=steps, outer=list(UM))).voxel_um == UM


def test_three_numbers_for_four_axes_are_those_of_space(tmp_path):
    path = write(tmp_path / "a.zarr", VOXELS[None], "czyx", steps=scaled(*UM))
    assert Volume.open(path).voxel_um == UM


def affine(*rows):
    return [{"type": "affine", "affine": [list(row) for row in rows]}]


def test_an_affine_that_scales_and_shifts_is_a_voxel_size(tmp_path):
    steps = affine([4.0, 0, 0, 7], [0, 1.8, 0, 0], [0, 0, 1.5, -3])
    volume = Volume.open(write(tmp_path / "a.zarr", steps=steps))
    assert volume.voxel_um == UM
    np.testing.assert_array_equal(everything(volume), VOXELS)


@pytest.mark.parametrize(
    "steps",
    [
        affine([4.0, 0.1, 0, 0], [0, 1.8, 0, 0], [0, 0, 1.5, 0]),
        affine([4.0, 0, 0], [0, 1.8, 0], [0, 0, 1.5]),
        affine([4.0, 0, 0, 0], [0, 1.8, 0, 0]),
    ],
    ids=["shear", "no translation", "two rows"],
)
def test_an_affine_that_does_more_is_refused(tmp_path, steps):
    with pytest.raises(CanvasError, match="only a scale can be read"):
        Volume.open(write(tmp_path / "a.zarr", steps=steps))


def test_a_scale_that_holds_no_number_is_said_as_a_scale(tmp_path):
    with pytest.raises(CanvasError, match=r"has scale \[4\.0, None, 1\.5\], expected 3 numbers"):
        Volume.open(write(tmp_path / "a.zarr", steps=scaled(4.0, None, 1.5)))


def test_a_mirrored_axis_keeps_its_size(tmp_path, caplog):
    volume = Volume.open(write(tmp_path / "a.zarr", steps=scaled(4.0, -1.8, 1.5)))
    assert volume.voxel_um == UM
    np.testing.assert_array_equal(everything(volume), VOXELS)
    assert "is mirrored" in caplog.text


@pytest.mark.parametrize(
    "steps",
    [
        scaled(4.0, 0, 1.5),
        scaled(4.0, 1.8),
        [{"type": "affine", "affine": [[1, 0]]}],
        [{"type": "scale"}],
        "none",
        [None],
        scaled(10**400, 1, 1),
    ],
    ids=["zero", "two numbers", "affine", "no numbers", "text", "null", "huge"],
)
def test_a_given_voxel_size_wins_over_a_scale_that_cannot_be_used(tmp_path, steps):
    path = write(tmp_path / "a.zarr", steps=steps)
    with pytest.raises(CanvasError, match=r"has no voxel size; give --voxel-um .*level '0'"):
        Volume.open(path)
    assert Volume.open(path, voxel_um=UM).voxel_um == UM


@pytest.mark.parametrize("version", ["0.1", "0.2", "0.3"])
def test_old_versions_name_no_unit_and_are_read_with_a_given_size(tmp_path, version):
    path = write(tmp_path / "a.zarr", VOXELS[None, None], "tczyx", version=version)
    with pytest.raises(CanvasError, match="has no voxel size"):
        Volume.open(path)
    volume = Volume.open(path, voxel_um=UM)
    np.testing.assert_array_equal(everything(volume), VOXELS)


def test_a_later_version_is_named(tmp_path):
    with pytest.raises(CanvasError, match=r"this version reads 0\.1 to 0\.6"):
        Volume.open(write(tmp_path / "a.zarr", version="0.9"), voxel_um=UM)


def test_a_zip_as_macos_makes_it(tmp_path):
    folder = write(tmp_path / "a.zarr", steps=scaled(*UM))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            name = file.relative_to(tmp_path).as_posix()
            archive.write(file, name)
            archive.writestr(f"__MACOSX/{name}", b"\0\5\26\7")
        archive.writestr(".DS_Store", b"Bud1")
    volume = Volume.open(tmp_path / "a.zip")
    np.testing.assert_array_equal(everything(volume), VOXELS)


def test_a_store_of_links_is_read_as_git_annex_keeps_it(tmp_path):
    folder = write(tmp_path / "a.zarr", steps=scaled(*UM))
    objects = tmp_path / ".git/annex/objects"
    objects.mkdir(parents=True)
    for number, file in enumerate(
        sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".json")
    ):
        if not file.name.startswith("."):
            file.rename(objects / f"key{number}")
            file.symlink_to(objects / f"key{number}")
    np.testing.assert_array_equal(everything(Volume.open(folder)), VOXELS)
    assert json.loads((folder / ".zattrs").read_text())["multiscales"]
    with pytest.raises(CanvasError, match="a link leads out of the store"):
        everything(Volume.open(folder, follow_links=False))


@pytest.mark.parametrize("unit", ["Micrometer", "micrometre", "microns", "micrometers"])
def test_common_spellings_of_a_unit(tmp_path, unit):
    path = write(tmp_path / "a.zarr", steps=scaled(*UM))
    text = (path / ".zattrs").read_text()
    (path / ".zattrs").write_text(text.replace("micrometer", unit))
    assert Volume.open(path).voxel_um == UM


@pytest.mark.parametrize("inside", ["", "a.zarr/", "deep/a.zarr/"])
def test_a_zip_with_resource_files_or_the_store_deeper_in(tmp_path, inside):
    folder = write(tmp_path / "a.zarr", steps=scaled(*UM))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, inside + file.relative_to(folder).as_posix())
        archive.writestr("._a.zarr", b"\0\5")
    np.testing.assert_array_equal(everything(Volume.open(tmp_path / "a.zip")), VOXELS)


def test_a_link_to_a_file_that_was_not_fetched_is_never_empty(tmp_path):
    folder = write(tmp_path / "a.zarr", steps=scaled(*UM))
    (chunk,) = (p for p in (folder / "0").rglob("*") if p.is_file() and not p.name.startswith("."))
    chunk.unlink()
    chunk.symlink_to(tmp_path / "gone")
    with pytest.raises(CanvasError, match="git annex get"):
        everything(Volume.open(folder, missing_chunks="empty"))


@pytest.mark.parametrize("missing", ["error", "empty"])
def test_a_wrong_separator_is_named(tmp_path, missing):
    folder = write(tmp_path / "a.zarr", steps=scaled(*UM))
    metadata = json.loads((folder / "0/.zarray").read_text())
    other = {".": "/", "/": "."}[metadata.get("dimension_separator", ".")]
    (folder / "0/.zarray").write_text(json.dumps(metadata | {"dimension_separator": other}))
    with pytest.raises(CanvasError, match="names its chunks with the separator"):
        everything(Volume.open(folder, missing_chunks=missing))


def test_channels_of_a_plain_array_come_first_and_are_chosen(tmp_path):
    zarr.create_array(tmp_path / "p.zarr", data=np.stack([VOXELS, VOXELS[::-1]]))
    np.testing.assert_array_equal(
        everything(Volume.open(tmp_path / "p.zarr", voxel_um=UM, c=1)), VOXELS[::-1]
    )
    zarr.create_array(tmp_path / "q.zarr", data=np.stack([VOXELS, VOXELS], -1))
    with pytest.raises(CanvasError, match="like channels: name the axes"):
        Volume.open(tmp_path / "q.zarr", voxel_um=UM, c=1)


def test_a_zip_whose_folders_have_backslashes(tmp_path):
    folder = write(tmp_path / "a.zarr", steps=scaled(*UM))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.writestr(file.relative_to(tmp_path).as_posix().replace("/", "\\"), file.read_bytes())
    with pytest.raises(CanvasError, match=r"a\.zip names its folders with backslashes, .* give the folder"):
        Volume.open(tmp_path / "a.zip")


def test_the_metadata_in_place_of_the_store(tmp_path):
    folder = write(tmp_path / "a.zarr", steps=scaled(*UM))
    name = next(name for name in ("zarr.json", ".zattrs") if (folder / name).is_file())
    with pytest.raises(CanvasError, match=r"is the metadata of a Zarr store; give its folder, .*a\.zarr$"):
        Volume.open(folder / name)


@pytest.mark.parametrize("size", [1000 * UM[0], UM[0] / 1000])
def test_a_voxel_that_no_microscope_has_is_not_believed(size, tmp_path):
    path = write(tmp_path / "a.zarr", steps=scaled(size, *UM[1:]))
    with pytest.raises(CanvasError, match=r"a voxel of .* µm, which no light-sheet microscope has: its unit"):
        Volume.open(path)
    assert Volume.open(path, voxel_um=UM).voxel_um == UM


def test_attributes_that_are_null_are_none(tmp_path):
    """As zarr-python reads them."""
    zarr.create_array(tmp_path / "a.zarr", data=VOXELS, zarr_format=3)
    metadata = json.loads((tmp_path / "a.zarr/zarr.json").read_text())
    (tmp_path / "a.zarr/zarr.json").write_text(json.dumps(metadata | {"attributes": None}))
    np.testing.assert_array_equal(everything(Volume.open(tmp_path / "a.zarr", voxel_um=UM)), VOXELS)
    (tmp_path / "a.zarr/zarr.json").write_text(json.dumps(metadata | {"attributes": []}))
    with pytest.raises(CanvasError, match="describes neither a group nor an array"):
        Volume.open(tmp_path / "a.zarr", voxel_um=UM)


def test_a_first_level_that_is_a_coarser_one_is_refused_without_scales_too(tmp_path):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    for name, voxels in (("0", VOXELS), ("1", VOXELS[::2, ::2, ::2])):
        group.create_array(name, data=voxels)
    axes = [{"name": axis, "type": "space"} for axis in "zyx"]
    image = {"version": "0.4", "axes": axes, "datasets": [{"path": "1"}, {"path": "0"}]}
    group.attrs["multiscales"] = [image]
    with pytest.raises(CanvasError, match="level '0' is finer than the first one, '1'"):
        Volume.open(tmp_path / "a.zarr", voxel_um=UM)
    group.attrs["multiscales"] = [image | {"datasets": image["datasets"][::-1]}]
    assert Volume.open(tmp_path / "a.zarr", voxel_um=UM).shape_zyx == VOXELS.shape
