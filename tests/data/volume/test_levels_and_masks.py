"""A level in place of its image, masks, codecs that are not installed, and archives of other things."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
import tifffile
import zarr

from canvas_fm.data.volume.tiff.channels import list_channels
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError

VOXELS = np.arange(12 * 20 * 30, dtype=np.uint16).reshape(12, 20, 30)


def write(path, voxels, axes: str, levels: dict[str, float], zarr_format: int = 2):
    """An OME-Zarr of voxels of 4 × 2 × 1 µm; `levels` are their paths and how much coarser they are."""
    sizes = {"z": 4.0, "y": 2.0, "x": 1.0, "c": 1.0}
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    datasets = []
    for name, factor in levels.items():
        coarser = tuple(slice(None, None, int(factor) if axis in "zyx" else 1) for axis in axes)
        group.create_array(name, data=np.ascontiguousarray(voxels[coarser]), chunks=voxels.shape)
        scale = [sizes[axis] * (factor if axis in "zyx" else 1) for axis in axes]
        datasets.append({"path": name, "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    named = [
        {"name": axis, "type": "space", "unit": "micrometer"}
        if axis in "zyx"
        else {"name": axis, "type": "channel"}
        for axis in axes
    ]
    image = {"axes": named, "datasets": datasets}
    if zarr_format == 3:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    else:
        group.attrs["multiscales"] = [image | {"version": "0.4"}]
    return path


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("names", [("0", "1"), ("scale0/image", "scale1/image")])
def test_a_level_has_the_axes_and_the_voxel_size_that_its_image_gives_it(tmp_path, names, zarr_format):
    levels = dict(zip(names, (1.0, 2.0), strict=True))
    path = write(tmp_path / "a.zarr", VOXELS.T, "xyz", levels, zarr_format)
    for name, factor in levels.items():
        level = Volume.open(path / name)
        coarser = np.s_[:: int(factor), :: int(factor), :: int(factor)]
        np.testing.assert_array_equal(np.asarray(level), VOXELS[coarser])
        assert level.voxel_um == (4 * factor, 2 * factor, factor)


def test_a_level_of_channels_or_of_a_plane_is_known_as_that(tmp_path):
    two = write(tmp_path / "a.zarr", np.stack([VOXELS, VOXELS + 1]), "czyx", {"0": 1.0})
    assert list(list_channels(two / "0")) == [0, 1]
    np.testing.assert_array_equal(np.asarray(Volume.open(two / "0", c=1)), VOXELS + 1)
    plane = write(tmp_path / "b.zarr", VOXELS[:3], "cyx", {"0": 1.0})
    with pytest.raises(CanvasError, match="has the axes c, y, x; a volume needs"):
        Volume.open(plane / "0", voxel_um=(4, 2, 1))
    zarr.create_array(two / "other", data=VOXELS, zarr_format=2)  # which the image does not name
    with pytest.raises(CanvasError, match="a plain array states none"):
        Volume.open(two / "other")


def test_other_names_of_axes_are_these_axes(tmp_path):
    names = ["width", "height", "depth"]
    zarr.create_array(tmp_path / "a.zarr", data=VOXELS.T.copy(), dimension_names=names, zarr_format=3)
    np.testing.assert_array_equal(np.asarray(Volume.open(tmp_path / "a.zarr", voxel_um=(4, 2, 1))), VOXELS)


@pytest.mark.parametrize("axes", ["zyx", "xyz"])
def test_a_mask_is_read_as_0_and_1(tmp_path, axes):
    mask = VOXELS % 3 == 0
    path = write(tmp_path / "a.zarr", mask if axes == "zyx" else mask.T, axes, {"0": 1.0}, 3)
    volume = Volume.open(path)
    found = np.asarray(volume)
    assert volume.dtype == found.dtype == np.uint8
    np.testing.assert_array_equal(found, mask)
    assert volume.read((-1, 0, 0), (2, 20, 30)).dtype == np.uint8


def test_a_codec_that_is_not_installed_says_what_to_do(tmp_path):
    path = write(tmp_path / "a.zarr", VOXELS, "zyx", {"0": 1.0})
    about = json.loads((path / "0/.zarray").read_text())
    (path / "0/.zarray").write_text(json.dumps(about | {"compressor": {"id": "nobodys"}}))
    with pytest.raises(CanvasError, match=r"nobodys.*: install the package that brings this codec"):
        Volume.open(path)


def test_archives_say_what_they_hold(tmp_path):
    tifffile.imwrite(tmp_path / "z0.tif", VOXELS[0])
    with zipfile.ZipFile(tmp_path / "planes.zip", "w") as file:
        file.write(tmp_path / "z0.tif", "brain/z0.tif")
    with pytest.raises(CanvasError, match=r"holds TIFF files; unpack it, or pack them as \.tar"):
        Volume.open(tmp_path / "planes.zip")
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as file:
        for name in ("a.zarr", "b.zarr"):
            file.writestr(f"{name}/.zgroup", "{}")
    with pytest.raises(CanvasError, match=r"holds the Zarr stores a\.zarr, b\.zarr; unpack it and give one"):
        Volume.open(tmp_path / "two.zip")


def test_a_store_whose_hidden_files_were_not_copied(tmp_path):
    path = write(tmp_path / "a.zarr", VOXELS, "zyx", {"0": 1.0})
    zarr.consolidate_metadata(path, zarr_format=2)
    for name in (".zattrs", ".zgroup", "0/.zarray"):
        (path / name).unlink()
    with pytest.raises(CanvasError, match=r"of its metadata \.zmetadata alone is left"):
        Volume.open(path)


def test_a_well_names_its_image(tmp_path):
    write(tmp_path / "p.zarr/A/1/0", VOXELS, "zyx", {"0": 1.0})
    zarr.open_group(tmp_path / "p.zarr/A/1", mode="a", zarr_format=2).attrs["well"] = {
        "images": [{"path": "0"}]
    }
    with pytest.raises(CanvasError, match=r"is a well of a plate; give one image in it, such as .*A/1/0"):
        Volume.open(tmp_path / "p.zarr/A/1")
