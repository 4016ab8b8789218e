"""A sample of a store that is being written is what any reader finds in it."""

from __future__ import annotations

import numpy as np
import pytest

import canvas_fm as cf
from canvas_fm.data.volume import window
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.zyx import Zyx
from canvas_fm.prepare.convert import finish, window_sample
from canvas_fm.prepare.convert.shards.written_chunks import WrittenChunks
from canvas_fm.prepare.convert.write_slabs import Slabs
from tests.prepare.planes import UM, voxels, write_planes

HOW = {"voxel_um": UM, "chunk_zyx": (8, 32, 32)}


@pytest.fixture
def planes(monkeypatch) -> np.ndarray:
    """Five slabs of which a part is looked at; the first planes are zero, which leaves chunks out."""
    for module in (window, finish, window_sample):
        monkeypatch.setattr(module, "SAMPLE", 120_000)
    planes = voxels((40, 80, 70)) % 4001
    planes[:9] = 0
    return planes


@pytest.fixture
def read(monkeypatch) -> list[Zyx]:
    """Corners of the chunks that are read from the store."""
    corners: list[Zyx] = []
    whole = WrittenChunks.read

    def noted(self, start, stop):
        corners.append(start)
        return whole(self, start, stop)

    monkeypatch.setattr(WrittenChunks, "read", noted)
    return corners


def expected(planes: np.ndarray, brain: Volume) -> window.Window:
    return window.find_window(
        "", lambda a, b: planes[tuple(map(slice, a, b))], planes.shape, brain.chunk_zyx, planes.dtype, 0
    )


@pytest.mark.parametrize("ome", ["0.5", "0.4"])
def test_the_window_of_a_sample_is_that_of_another_reader(tmp_path, planes, read, ome):
    cf.convert(write_planes(tmp_path / "planes", planes), tmp_path / "a.zarr", ome=ome, **HOW)
    brain = cf.Volume.open(tmp_path / "a.zarr")
    assert brain.window == expected(planes, brain)
    assert 0 < len(read) < 20  # instead of those that were empty; the others were counted before
    np.testing.assert_array_equal(brain.read((0, 0, 0), planes.shape), planes)


def test_the_window_is_the_same_where_slabs_were_written_before_a_kill(tmp_path, planes, read, monkeypatch):
    source, whole, slabs = write_planes(tmp_path / "planes", planes), Slabs._slab, []

    def slab(self, *which):
        slabs.append(which)
        if len(slabs) == 4:
            raise KeyboardInterrupt
        return whole(self, *which)

    with monkeypatch.context() as patch:
        patch.setattr(Slabs, "_slab", slab)
        with pytest.raises(KeyboardInterrupt):
            cf.convert(source, tmp_path / "a.zarr", **HOW)
    cf.convert(source, tmp_path / "a.zarr", **HOW)
    brain, resumed = cf.Volume.open(tmp_path / "a.zarr"), len(read)
    assert brain.window == expected(planes, brain)
    cf.convert(source, tmp_path / "b.zarr", **HOW)
    assert len(read) - resumed < resumed
