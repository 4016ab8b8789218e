"""N5 and precomputed volumes become the same voxels, in z, y, x."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

import canvas_fm as cf
from canvas_fm.errors import CanvasError, DamagedStore, MissingExtra
from tests.prepare.planes import voxels

VOXELS = voxels((20, 33, 47))
ANNEX = "annex/objects/SHA256E-s10--ab/SHA256E-s10--ab"


def write_n5(folder, about):
    tensorstore = pytest.importorskip("tensorstore")
    metadata = {"dimensions": [47, 33, 20], "blockSize": [16, 16, 8], "dataType": "uint16", **about}
    metadata["compression"] = {"type": "gzip"}
    where = {"driver": "file", "path": str(folder)}
    spec = {"driver": "n5", "kvstore": where, "metadata": metadata, "create": True}
    tensorstore.open(spec).result().write(VOXELS.T).result()
    return folder


def write_precomputed(folder, channels=1):
    tensorstore = pytest.importorskip("tensorstore")
    scale = {"resolution": [1800, 1800, 4000], "encoding": "raw", "chunk_size": [16, 16, 8]}
    scale |= {"size": [47, 33, 20], "voxel_offset": [5, 0, 7]}
    multiscale = {"data_type": "uint16", "num_channels": channels, "type": "image"}
    spec = {"driver": "neuroglancer_precomputed", "kvstore": {"driver": "file", "path": str(folder)}}
    spec |= {"multiscale_metadata": multiscale, "scale_metadata": scale, "create": True}
    data = np.stack([VOXELS.T + c for c in range(channels)], axis=-1)
    tensorstore.open(spec).result().write(data).result()
    return folder


def test_n5_and_its_finest_level(tmp_path):
    about = {"resolution": [1.8, 1.8, 4.0], "units": ["um", "um", "um"]}
    write_n5(tmp_path / "a.n5/s0", about)
    for name in ("a.n5", "a.n5/s0"):
        done = cf.convert(tmp_path / name, tmp_path / f"{name[-2:]}.zarr", verify=True)
        assert (done.shape_zyx, done.voxel_um) == (VOXELS.shape, (4.0, 1.8, 1.8))
        np.testing.assert_array_equal(cf.Volume.open(done.path).read((0, 0, 0), VOXELS.shape), VOXELS)


def test_the_image_of_a_bigdataviewer_container_is_found_and_several_are_named(tmp_path):
    write_n5(tmp_path / "a.n5/setup0/timepoint0/s0", {})
    done = cf.convert(tmp_path / "a.n5", tmp_path / "a.zarr", voxel_um=(4, 2, 2))
    np.testing.assert_array_equal(cf.Volume.open(done.path).read((0, 0, 0), VOXELS.shape), VOXELS)
    write_n5(tmp_path / "a.n5/setup1/timepoint0/s0", {})
    with pytest.raises(
        CanvasError, match=r"holds 2 images of BigDataViewer \(setup0/timepoint0, setup1/time"
    ):
        cf.convert(tmp_path / "a.n5", tmp_path / "b.zarr", voxel_um=(4, 2, 2))
    one = cf.convert(tmp_path / "a.n5/setup1/timepoint0", tmp_path / "c.zarr", voxel_um=(4, 2, 2))
    assert one.shape_zyx == VOXELS.shape


def test_a_container_names_its_images(tmp_path):
    for name in ("raw/c0/s0", "raw/c0/s1", "labels"):
        write_n5(tmp_path / "a.n5" / name, {})
    (tmp_path / "a.n5/attributes.json").write_text('{"n5": "2.5.1"}')
    with pytest.raises(CanvasError, match=r"give the folder of one image in it: labels, raw/c0$"):
        cf.convert(tmp_path / "a.n5", tmp_path / "a.zarr", voxel_um=(4, 2, 2))


def test_precomputed_with_an_offset_and_channels(tmp_path, caplog):
    done = cf.convert(write_precomputed(tmp_path / "a", 2), tmp_path / "a.zarr", verify=True)
    assert (done.shape_zyx, done.voxel_um, len(done.channels)) == (VOXELS.shape, (4.0, 1.8, 1.8), 2)
    assert "begins at voxel (5, 0, 7)" in caplog.text
    assert "points convert --origin -7 0 -5" in caplog.text
    for c in range(2):
        brain = cf.Volume.open(done.path, c=c)
        np.testing.assert_array_equal(brain.read((0, 0, 0), VOXELS.shape), VOXELS + c)


def test_what_is_lacking_is_a_sentence(tmp_path, monkeypatch):
    folder = write_n5(tmp_path / "a.n5", {})
    with pytest.raises(CanvasError, match="has no voxel size; give --voxel-um"):
        cf.convert(folder, tmp_path / "a.zarr")
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(MissingExtra, match=r"canvas-fm\[tensorstore\]"):
        cf.convert(folder, tmp_path / "a.zarr", voxel_um=(4, 2, 2))


def test_a_coarser_level_is_never_taken_for_the_finest(tmp_path):
    write_n5(tmp_path / "a.n5/s1", {})
    (tmp_path / "a.n5/attributes.json").write_text('{"scales": [[1, 1, 1], [2, 2, 2]]}')
    with pytest.raises(CanvasError, match="lacks its finest level, s0"):
        cf.convert(tmp_path / "a.n5", tmp_path / "a.zarr", voxel_um=(4, 2, 2))
    folder = write_precomputed(tmp_path / "b")
    info = json.loads((folder / "info").read_text())
    coarser = info["scales"][0] | {"key": "c", "size": [24, 17, 10]}
    (folder / "info").write_text(json.dumps(info | {"scales": [coarser, *info["scales"]]}))
    with pytest.raises(CanvasError, match="is finer than the first one, 'c'; put the finest first"):
        cf.convert(folder, tmp_path / "a.zarr", missing_chunks="empty")


@pytest.mark.parametrize("link", [True, False])
def test_a_block_that_git_annex_has_not_fetched_is_said_as_that(tmp_path, link):
    block = write_n5(tmp_path / "a.n5", {}) / "0/0/1"
    block.unlink()
    if link:
        block.symlink_to(f"../../../.git/{ANNEX}")
    else:
        block.write_text(f"/{ANNEX}")
    with pytest.raises(DamagedStore, match="git annex get, datalad get"):
        cf.convert(tmp_path / "a.n5", tmp_path / "a.zarr", voxel_um=(4, 2, 2))


def test_a_level_that_is_a_link_to_another_disk_is_part_of_the_source(tmp_path):
    folder = write_precomputed(tmp_path / "a")
    level = next(place for place in folder.iterdir() if place.is_dir())
    level.rename(tmp_path / "disk")
    level.symlink_to(tmp_path / "disk")
    (tmp_path / "disk/round").symlink_to(folder)  # links that go in a circle end
    done = cf.convert(folder, tmp_path / "a.zarr")
    np.testing.assert_array_equal(np.asarray(cf.Volume.open(done.path)), VOXELS)
    block = next(file for file in (tmp_path / "disk").iterdir() if file.is_file())
    block.write_bytes(bytes(block.stat().st_size))
    with pytest.raises(CanvasError, match="was made from another source"):
        cf.convert(folder, tmp_path / "a.zarr")
