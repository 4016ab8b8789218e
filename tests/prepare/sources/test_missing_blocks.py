"""Blocks that N5, precomputed and HDF5 volumes lack are counted, never silent zeros."""

from __future__ import annotations

import gzip

import h5py
import numpy as np
import pytest

import canvas_fm as cf
from canvas_fm.errors import CanvasError, DamagedStore
from canvas_fm.prepare.sources.source import open_source
from tests.prepare.planes import voxels
from tests.prepare.sources.test_tensorstore_folder import write_n5, write_precomputed

VOXELS = voxels((20, 30, 40))
OPTIONS = {"voxel_um": (4, 2, 2)}


@pytest.mark.parametrize(
    ("write", "lost"),
    [(lambda p: write_n5(p, {}), "0/0/1"), (write_precomputed, "1800_1800_4000/5-21_0-16_15-23")],
)
def test_a_lost_block_is_named_and_read_as_empty_on_request(tmp_path, write, lost):
    folder = write(tmp_path / "a")
    (folder / lost).unlink()
    with pytest.raises(
        DamagedStore, match=r"missing, as 1 of the image's 27 chunks is; .*--missing-chunks empty"
    ):
        cf.convert(folder, tmp_path / "a.zarr", **OPTIONS)
    cf.convert(folder, tmp_path / "a.zarr", **OPTIONS, missing_chunks="empty")


def test_blocks_packed_as_cloudvolume_leaves_them_are_said(tmp_path):
    folder = write_precomputed(tmp_path / "a")
    for file in (folder / "1800_1800_4000").iterdir():
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    with pytest.raises(CanvasError, match=r"compressed files \(.*\.gz\), .*: gunzip -r .*1800_1800_4000"):
        cf.convert(folder, tmp_path / "a.zarr")


@pytest.mark.parametrize("chunks", [(8, 20, 30), None])
def test_voxels_of_hdf5_that_were_never_written_are_damage(tmp_path, chunks):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("data", VOXELS.shape, np.uint16, chunks=chunks)
        if chunks:
            data[:8] = VOXELS[:8]
    with pytest.raises(DamagedStore, match=r"missing[,;] .*(ever|never) written.*--missing-chunks empty"):
        cf.convert(tmp_path / "a.h5", tmp_path / "a.zarr", **OPTIONS)
    cf.convert(tmp_path / "a.h5", tmp_path / "a.zarr", **OPTIONS, missing_chunks="empty")
    found = np.asarray(cf.Volume.open(tmp_path / "a.zarr"))
    np.testing.assert_array_equal(found[:8], VOXELS[:8] if chunks else 0)


def test_chunks_of_another_channel_may_be_missing(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", (2, *VOXELS.shape), np.uint16, chunks=(1, 8, 20, 30))[1] = VOXELS
    with pytest.raises(DamagedStore, match="as 12 of the image's 12 chunks are"):
        cf.convert(tmp_path / "a.h5", tmp_path / "a.zarr", **OPTIONS)
    cf.convert(tmp_path / "a.h5", tmp_path / "a.zarr", **OPTIONS, c=(1,))
    np.testing.assert_array_equal(np.asarray(cf.Volume.open(tmp_path / "a.zarr")), VOXELS)


@pytest.mark.parametrize("how", ["link", "virtual", "raw"])
def test_a_changed_file_that_hdf5_only_names_is_another_source(tmp_path, how):
    """Its voxels lie in the other file, whose checksum is kept too."""
    part = tmp_path / "part.h5"

    def write_part(data):
        if how == "raw":
            part.write_bytes(data.tobytes())
        else:
            with h5py.File(part, "w") as file:
                file["x"] = data

    write_part(VOXELS)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        if how == "link":
            file["data"] = h5py.ExternalLink("part.h5", "x")
        elif how == "raw":
            file.create_dataset("data", VOXELS.shape, np.uint16, external=[(str(part), 0, VOXELS.nbytes)])
        else:
            layout = h5py.VirtualLayout(VOXELS.shape, np.uint16)
            layout[:] = h5py.VirtualSource("part.h5", "x", VOXELS.shape)
            file.create_virtual_dataset("data", layout)
    done = cf.convert(tmp_path / "a.h5", tmp_path / "a.zarr", **OPTIONS)
    assert "part.h5" in (done.path / "canvas_fm_sources.json").read_text()
    write_part(VOXELS + 1)
    with pytest.raises(CanvasError, match="was made from another source"):
        cf.convert(tmp_path / "a.h5", tmp_path / "a.zarr", **OPTIONS)


def test_a_converted_hdf5_file_can_be_written_again(tmp_path, monkeypatch):
    """By this very process: what is left of the source, in a traceback for example, keeps no file open."""
    opened = []
    monkeypatch.setattr(
        "canvas_fm.prepare.convert.convert.open_source",
        lambda *a: opened.append(open_source(*a)) or opened[-1],
    )
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = VOXELS
    cf.convert(tmp_path / "a.h5", tmp_path / "a.zarr", **OPTIONS)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = VOXELS + 1
    assert len(opened) == 1
