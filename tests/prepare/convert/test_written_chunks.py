"""A sample of a store that is being written is what any reader finds in it."""

from __future__ import annotations

import numpy as np
import pytest

import canvas_fm as cf
from canvas_fm.data.volume import window
from canvas_fm.prepare.convert import finish
from tests.prepare.planes import UM, voxels, write_planes


@pytest.mark.parametrize("ome", ["0.5", "0.4"])
def test_the_window_of_a_sample_is_that_of_another_reader(tmp_path, monkeypatch, ome):
    """The first planes are zero, and what is zero is left out of the store."""
    planes = voxels((40, 80, 70)) % 4001
    planes[:9] = 0
    for module in (window, finish):
        monkeypatch.setattr(module, "SAMPLE", 40_000)
    how = {"voxel_um": UM, "chunk_zyx": (8, 32, 32), "ome": ome}
    cf.convert(write_planes(tmp_path / "planes", planes), tmp_path / "a.zarr", **how)
    brain = cf.Volume.open(tmp_path / "a.zarr")
    kept = brain.window
    again = window.find_window(
        "", lambda a, b: planes[tuple(map(slice, a, b))], planes.shape, brain.chunk_zyx, planes.dtype, 0
    )
    assert kept == again
    np.testing.assert_array_equal(brain.read((0, 0, 0), planes.shape), planes)
