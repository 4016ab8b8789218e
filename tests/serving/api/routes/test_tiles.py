"""Tiles of registered volumes: the voxels of their levels, bounded and refused as other routes are."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

import canvas_fm as cf
from serving.core.volumes.tiles import SIDE, Tiles
from serving.protocol.request_options import TileQuery
from tests.serving.conftest import array_of, refused

NPY = {"Accept": "application/x-npy"}


def test_a_tile_has_the_voxels_of_its_plane(service, volume_path):
    volume = cf.Volume.open(volume_path)
    about = service.get("/v1/pyramid?volume=cube").json()
    assert about["levels"][0] == {"shape_zyx": [*volume.shape_zyx], "voxel_um": [*volume.voxel_um]}
    _, high, wide = volume.shape_zyx
    expected = volume.read((3, 0, 0), (1, min(high, SIDE), min(wide, SIDE)))[0]
    tile = array_of(service.get("/v1/tile?volume=cube&z=3&row=0&column=0", headers=NPY))
    assert np.array_equal(tile, expected)
    reply = service.get("/v1/tile?volume=cube&level=0&z=3&row=0&column=0&window=200,1200")
    assert reply.headers["content-type"] == "image/png"
    grey = np.asarray(Image.open(io.BytesIO(reply.content)))
    through = np.clip((expected.astype(float) - 200) / 1000, 0, 1) * 255
    assert np.abs(grey - through).max() <= 1
    z, y, x = about["start_zyx"]
    assert volume.read((z, y, x), (1, 1, 1))[0, 0, 0] == volume.read((0, 0, 0), volume.shape_zyx).max()


@pytest.mark.parametrize(
    ("query", "code", "sentence"),
    [
        ("volume=cube&z=9999&row=0&column=0", 404, "no such tile"),
        ("volume=cube&z=0&row=7&column=0", 404, "no such tile"),
        ("volume=cube&z=0&row=0&column=0&level=9", 404, "levels 0 to"),
        ("volume=none&z=0&row=0&column=0", 404, "no volume is registered"),
        ("volume=cube&z=-1&row=0&column=0", 422, "z"),
        ("volume=cube&z=0&row=0", 422, "column"),
        ("volume=cube&z=0&row=0&column=0&window=5,5", 422, "the lower one first"),
    ],
)
def test_tiles_that_are_not_there_are_refused(service, query, code, sentence):
    refused(service.get(f"/v1/tile?{query}"), code, sentence)


def test_coarser_levels_are_means_and_each_tile_is_read_once():
    voxels = np.arange(8 * 600 * 520, dtype=np.uint32).reshape(8, 600, 520)
    volume = cf.Volume.from_array(voxels, voxel_um=(4.0, 1.0, 1.0))
    tiles = Tiles()
    about = tiles.about("a", volume)
    assert [level.shape_zyx for level in about.levels] == [(8, 600, 520), (8, 300, 260), (8, 150, 130)]
    query = TileQuery(volume="a", level=1, z=5, row=1, column=1)
    tile = tiles.get("a", volume, query)
    blocks = voxels[5].reshape(300, 2, 260, 2).mean(axis=(1, 3))[256:, 256:]
    assert np.abs(tile - blocks).max() <= 0.5
    assert tiles.get("a", volume, query) is tile
    assert about.start_zyx[0] == 7
