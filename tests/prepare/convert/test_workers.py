"""Workers of a cluster write the bytes that one process writes, also where they are killed."""

from __future__ import annotations

import pickle

import pytest

import canvas_fm as cf
from canvas_fm.errors import CanvasError
from canvas_fm.prepare.convert.layout import plan
from canvas_fm.prepare.convert.slab_workers import SlabJob
from canvas_fm.prepare.convert_flags import ConvertOptions
from canvas_fm.prepare.sources.source import open_source
from tests.prepare.planes import UM, bytes_of, voxels, write_planes
from tests.support.dask_cluster import cluster_of_threads
from tests.support.killed_workers import two_of_four_killed

HOW = {"voxel_um": UM, "chunk_zyx": (8, 32, 32), "levels": 5}  # nine slabs, and levels made of the whole
pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def planes(tmp_path_factory):
    return write_planes(tmp_path_factory.mktemp("source") / "planes", voxels())


@pytest.fixture(scope="module")
def alone(planes, tmp_path_factory):
    return bytes_of(cf.convert(planes, tmp_path_factory.mktemp("alone") / "a.zarr", **HOW).path)


def test_workers_of_a_scheduler_write_the_same_bytes(planes, alone, tmp_path):
    with cluster_of_threads(2, threads=2) as local:
        where = {"scheduler": local.scheduler_address}
        done = cf.convert(planes, tmp_path / "a.zarr", **HOW, **where, destripe=False, verify=True)
    assert done.verified
    assert bytes_of(tmp_path / "a.zarr") == alone
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_a_worker_that_sees_other_files_refuses(planes, tmp_path):
    options = ConvertOptions.of(**HOW)
    source = open_source(planes, options)
    layout = plan(source, options)
    assert source.reopen is not None
    job = SlabJob(source.reopen, "another", layout, [], options, tmp_path)
    with pytest.raises(CanvasError, match="other files, sizes or times where a worker sees it"):
        pickle.loads(pickle.dumps(job)).tile(0)
    with pytest.raises(CanvasError, match="workers is 0; give at least 1"):
        cf.convert(planes, tmp_path / "a.zarr", **HOW, workers=0)


@pytest.mark.slow
def test_killed_workers_are_replaced_and_no_byte_differs(tmp_path):
    """Two of four workers are killed while they write; their slabs are written by others."""
    source = write_planes(tmp_path / "planes", voxels((400, 90, 75)))
    (tmp_path / "alone").mkdir()
    expected = bytes_of(cf.convert(source, tmp_path / "alone/a.zarr", **HOW).path)

    def done() -> int:
        return len(list((tmp_path / "a.zarr.unfinished").glob("*.part")))

    with two_of_four_killed(done, each=4) as scheduler:
        cf.convert(source, tmp_path / "a.zarr", **HOW, scheduler=scheduler)
    assert bytes_of(tmp_path / "a.zarr") == expected
