"""Precomputed volumes: TensorStore reads every level of the pyramid as it is."""

from __future__ import annotations

import numpy as np
import pytest

import canvas_fm as cf
from canvas_fm.data.precomputed.write_image import chunk_bytes, image_info, write_image
from canvas_fm.data.volume.levels.downsample import mean_down
from canvas_fm.data.volume.levels.pyramid import open_pyramid
from canvas_fm.errors import CanvasError

VOXEL_UM = (4.0, 1.8, 1.8)
SHAPE = (70, 150, 333)


@pytest.fixture(scope="module")
def voxels():
    z, y, x = np.indices(SHAPE, np.uint16)
    return (z * 700 + y * 3 + x).astype(np.uint16)


def read_back(folder, level):
    ts = pytest.importorskip("tensorstore")
    spec = {"driver": "neuroglancer_precomputed", "kvstore": f"file://{folder}/", "scale_index": level}
    return ts.open(spec, open=True).result().read().result()[..., 0].T


@pytest.mark.parametrize("stored", [True, False])
def test_tensorstore_reads_every_level(tmp_path, voxels, stored):
    if stored:
        with cf.Volume.create(tmp_path / "a.zarr", SHAPE, voxel_um=VOXEL_UM, levels=3) as writer:
            writer.write((0, 0, 0), voxels)
        volume = cf.Volume.open(tmp_path / "a.zarr")
    else:
        volume = cf.Volume.from_array(voxels, voxel_um=VOXEL_UM)
    levels = open_pyramid(volume)
    assert [level.stored for level in levels] == [True, stored, stored, False]
    info = write_image(volume, tmp_path / "out", encoding="gzip" if stored else "raw")
    assert info["scales"][1]["resolution"] == [3600.0, 3600.0, 4000.0]
    expected = voxels
    for number, (level, factor) in enumerate(
        zip(levels, [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2)], strict=True)
    ):
        expected = mean_down(expected, factor)
        assert level.shape_zyx == expected.shape
        assert np.array_equal(read_back(tmp_path / "out", number), expected)
    assert len(list((tmp_path / "out" / "level0").iterdir())) == 1
    with pytest.raises(CanvasError, match="exists already"):
        write_image(volume, tmp_path / "out")


def test_labels_keep_their_numbers(tmp_path):
    labels = np.zeros((20, 130, 130), np.int64)
    labels[:, 40:80, 41:90] = 614_454_277
    volume = cf.Volume.from_array(labels, voxel_um=VOXEL_UM)
    info = write_image(volume, tmp_path / "out", layer="segmentation")
    assert (info["type"], info["data_type"]) == ("segmentation", "uint64")
    for level in range(len(info["scales"])):
        assert {*np.unique(read_back(tmp_path / "out", level))} == {0, 614_454_277}


def test_files_are_few_however_many_chunks(tmp_path):
    """1,296 chunks lie in the files of 128 each."""
    volume = cf.Volume.from_array(np.zeros((1, 2304, 2304), np.uint8), voxel_um=(1.0, 1.0, 1.0))
    write_image(volume, tmp_path / "out")
    assert len(list((tmp_path / "out" / "level0").iterdir())) <= 2 * -(-1296 // 128)
    assert not read_back(tmp_path / "out", 0).any()


def test_chunks_made_on_request_are_those_of_the_files(voxels):
    volume = cf.Volume.from_array(voxels, voxel_um=VOXEL_UM)
    assert "sharding" not in image_info(volume, encoding=None)["scales"][0]
    content = chunk_bytes(open_pyramid(volume)[0], (64, 128, 320), "uint16")
    assert content == voxels[64:, 128:, 320:].tobytes()


def test_values_that_the_viewer_cannot_show_are_refused(tmp_path):
    volume = cf.Volume.from_array(np.zeros((4, 4, 4), np.float32), voxel_um=VOXEL_UM)
    with pytest.raises(CanvasError, match=r"shows uint8, .* as segmentation"):
        write_image(volume, tmp_path / "out", layer="segmentation")
