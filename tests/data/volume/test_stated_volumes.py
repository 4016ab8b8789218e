"""Real volumes have the shape and voxel size that their makers state, and none is made up where none is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError

FIXTURES = "zarr_fixtures/neuroglancer/testdata/datasource/zarr"
ARRAYS = {  # 3D arrays of each writer of Zarr: those that are read, those that are not
    "zarr_v2/from_zarr-python": (4, {"3d.chunked.O": "a volume holds integers or floats"}),
    "zarr_v3/from_zarrita": (6, {"3d.chunked.mixed.i2.F": "cannot be used"}),
}
SCALED = {"identity": (1, 1, 1), "scale": (4, 3, 2), "sequenceScaleTranslation": (4, 3, 2)}


def metas(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*/meta.json"))
    if not found:
        pytest.skip(f"no volumes in {folder}")
    return found


@pytest.mark.parametrize("group", ["unlabelled", "labelled_nuclei"])
def test_shape_and_voxel_size_are_those_of_meta_json(real_data, group):
    for meta in metas(real_data / group):
        stated = json.loads(meta.read_text(encoding="utf-8"))
        c = 0 if "shape_czyx" in stated else None
        shape = tuple(stated.get("shape_zyx") or stated["shape_czyx"][1:])
        um = stated["voxel_um_zyx"]
        for store in sorted(meta.parent.glob("*.zarr")):
            if um is None or store.name == "mask.zarr":  # masks are plain arrays
                with pytest.raises(CanvasError, match="has no voxel size; give --voxel-um"):
                    Volume.open(store, c=c)
            else:
                assert Volume.open(store, c=c).voxel_um == tuple(um), store
            given = Volume.open(store, c=c, voxel_um=(3, 2, 1))
            assert (given.shape_zyx, given.voxel_um) == (shape, (3, 2, 1)), store


@pytest.mark.parametrize("writer", ARRAYS)
def test_every_voxel_of_the_arrays_of_other_writers(real_data, writer):
    """They hold their running index: compressed, sharded, ragged, in either order of axes."""
    arrays = sorted((real_data / FIXTURES / writer / "data.zarr").glob("3d.*"))
    if not arrays:
        pytest.skip(f"no arrays of {writer} in {real_data}")
    readable, refused = ARRAYS[writer]
    read = 0
    for path in arrays:
        if path.name in refused:
            with pytest.raises(CanvasError, match=refused[path.name]):
                Volume.open(path, voxel_um=(1, 1, 1))
            continue
        volume = Volume.open(path, voxel_um=(1, 1, 1), missing_chunks="empty")
        voxels = volume.read((0, 0, 0), volume.shape_zyx)
        np.testing.assert_array_equal(voxels.ravel(), np.arange(voxels.size), err_msg=path.name)
        read += 1
    assert read >= readable


@pytest.mark.parametrize("name", ["identity", "scale", "sequenceScaleTranslation", "translation"])
def test_voxel_sizes_of_ome_zarr_0_6(real_data, name):
    path = real_data / FIXTURES / "ome_zarr" / "all_0.6" / "basic" / f"{name}.zarr"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    if name in SCALED:
        volume = Volume.open(path)
        assert (volume.shape_zyx, volume.voxel_um) == ((27, 226, 186), SCALED[name])
    else:
        with pytest.raises(CanvasError, match="has no voxel size"):
            Volume.open(path)


@pytest.mark.parametrize("name", ["imagej_hyperstack.tiff", "imagej_hyperstack_labels.tiff"])
def test_the_voxel_size_that_imagej_states(real_data, name):
    path = real_data / "formats" / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    volume = Volume.open(path)
    assert (volume.shape_zyx, volume.voxel_um) == ((75, 75, 75), (1, 1, 1))
