"""A volume as an array: what numpy, dask and xarray see are its voxels."""

import sys

import numpy as np
import pytest

from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError, MissingExtra


@pytest.fixture
def volume(position_volume):
    path, voxels = position_volume((10, 20, 30))
    return Volume.open(path), voxels


@pytest.mark.parametrize(
    "key",
    [
        np.s_[3], np.s_[-1], np.s_[2:5], np.s_[2:5, 3, ::4], np.s_[..., 7], np.s_[:, -3:], np.s_[5:2],
        np.s_[...], np.s_[8:99, ..., np.int64(2)], np.s_[1, 2, 3],
    ],
)  # fmt: skip
def test_a_slice_is_numpys(volume, key):
    opened, voxels = volume
    assert np.array_equal(opened[key], voxels[key])
    assert np.shape(opened[key]) == voxels[key].shape


def test_a_slice_reads_its_box_alone(volume, monkeypatch):
    opened, _ = volume
    boxes = []
    read = opened.read

    def noted(origin, size):
        boxes.append((origin, size))
        return read(origin, size)

    monkeypatch.setattr(opened, "read", noted)
    opened[2:5, 3, ::4]
    assert boxes == [((2, 3, 0), (3, 1, 30))]


def test_what_numpy_would_copy_is_refused(volume):
    opened, _ = volume
    for key, sentence in (
        ([1, 2], "not by list"), (np.s_[::-1], "goes backwards"), (np.s_[0, 0, 0, 0], "too many"),
        (None, "not by NoneType"), (True, "not by bool"),
    ):  # fmt: skip
        with pytest.raises(CanvasError, match=sentence):
            opened[key]
    with pytest.raises(IndexError, match="10 lies outside an axis of 10"):
        opened[10]


def test_as_an_array_it_is_its_voxels_never_an_object(volume):
    opened, voxels = volume
    assert np.array_equal(np.asarray(opened), voxels)
    assert np.asarray(opened, np.float32).dtype == np.float32
    assert (opened.shape, opened.ndim, opened.dtype) == (voxels.shape, 3, voxels.dtype)
    assert np.array_equal(np.stack(list(opened)), voxels)


def test_lazy_arrays_are_the_same_voxels(volume):
    opened, voxels = volume
    array = opened.to_dask()
    assert (array.shape, array.dtype, array.chunksize) == (voxels.shape, voxels.dtype, opened.chunk_zyx)
    assert np.array_equal(array[2:7, :, 4].compute(scheduler="synchronous"), voxels[2:7, :, 4])
    named = opened.to_xarray()
    assert named.dims == ("z", "y", "x")
    line = named.sel(z=8.0, x=5.4, method="nearest").to_numpy()  # array_equal alone would hide an error
    assert np.array_equal(line, voxels[2, :, 3])


def test_a_missing_library_is_named_with_its_extra(volume, monkeypatch):
    monkeypatch.setitem(sys.modules, "dask.array", None)
    with pytest.raises(MissingExtra, match=r"canvas-fm\[xarray\]"):
        volume[0].to_dask()
