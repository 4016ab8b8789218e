"""Zarr v2 and v3 metadata in one folder: an image described twice passes, two images are refused or named."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import zarr

from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError

V3, V2 = 300, 200


def write(folder, zarr_format, value, *, shape=(4, 8, 8), dtype="uint16", scale=(4.0, 2.0, 2.0)):
    group = zarr.open_group(str(folder), mode="w", zarr_format=zarr_format)
    keys = {"name": "v2", "separator": "."} if zarr_format == 2 else None
    group.create_array("0", shape=shape, chunks=shape, dtype=dtype, chunk_key_encoding=keys)[:] = value
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    steps = [{"type": "scale", "scale": list(scale)}]
    image = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": steps}]}
    if zarr_format == 2:
        group.attrs["multiscales"] = [image | {"version": "0.4"}]
    else:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}


@pytest.fixture
def both(tmp_path):
    """Write a v3 image, and a v2 one of other settings into the same folder."""

    def make(**settings):
        folder, old = tmp_path / "both.zarr", tmp_path / "old.zarr"
        write(folder, 3, V3)
        write(old, 2, V2, **settings)
        shutil.copytree(old, folder, dirs_exist_ok=True)
        return folder

    return make


@pytest.mark.parametrize("settings", [{"shape": (4, 8, 6)}, {"dtype": "float32"}])
def test_two_arrays_in_one_folder_are_refused(both, settings):
    with pytest.raises(CanvasError, match=r"described twice, by zarr\.json and by \.zarray, as uint16"):
        Volume.open(both(**settings))


def test_other_chunks_and_scales_are_named(both, caplog):
    volume = Volume.open(both(scale=(5.0, 1.0, 1.0)))
    assert volume.voxel_um == (4.0, 2.0, 2.0)
    assert (np.asarray(volume) == V3).all()
    assert "each with chunks of its own" in caplog.text
    assert "levels or scales in zarr.json other than in .zattrs" in caplog.text


def test_metadata_migrated_in_place_pass_without_a_word(tmp_path, caplog):
    folder, new = tmp_path / "migrated.zarr", tmp_path / "new.zarr"
    write(folder, 2, V2)
    write(new, 3, V3)
    array = (new / "0" / "zarr.json").read_text()
    default = (
        '"chunk_key_encoding": {\n    "name": "default",\n    "configuration": {\n      "separator": "/"\n'
    )
    assert default in array
    v2 = default.replace("default", "v2").replace("/", ".")
    (folder / "0" / "zarr.json").write_text(array.replace(default, v2))
    shutil.copy(new / "zarr.json", folder / "zarr.json")
    Volume.open(folder)
    assert not caplog.text
