"""A volume whose voxels lie in memory is read as one that lies on a disk."""

from __future__ import annotations

import pickle

import numpy as np

from canvas_fm.data.volume.volume import Volume, WindowRule


def test_reads_windows_and_pickles_as_a_store_does(position_volume):
    path, voxels = position_volume()
    stored = Volume.open(path)
    held = Volume.from_array(voxels, voxel_um=stored.voxel_um, marker="cFos", name="brain")
    for origin, size in (((3, 5, 7), (10, 11, 12)), ((-2, 60, 40), (8, 20, 20))):
        np.testing.assert_array_equal(held.read(origin, size), stored.read(origin, size))
    for rule in (WindowRule(), WindowRule("median", 0.0, 8.0)):
        assert held.window_by(rule) == stored.window_by(rule)
    again = pickle.loads(pickle.dumps(held.at_contrast(2.0)))
    assert (again.marker, again.name, again.voxel_um) == ("cFos", "brain", held.voxel_um)
    assert again.window == held.at_contrast(2.0).window
    np.testing.assert_array_equal(again.read((0, 0, 0), held.shape_zyx), voxels)
