"""Detection in a volume of another voxel size."""

from __future__ import annotations

import numpy as np
import pytest

from canvas_fm.errors import CanvasError, ModelMismatch
from canvas_fm.inference.detect.detect import detect
from canvas_fm.inference.detect.tiles.tiles import Resampled
from tests.inference.detect.nets import VOXEL_UM, blobs, write


def test_another_voxel_size_is_refused_unless_asked_for(detector, tmp_path):
    other = write(tmp_path / "other.zarr", blobs(), voxel_um=(8.0, 3.6, 3.6))
    with pytest.raises(ModelMismatch, match=r"--resample .*--ignore-voxel-size"):
        detect(detector, other)
    assert len(detect(detector, other, ignore_voxel_size=True))
    resampled = detect(detector, other, resample=True, tile_zyx=(16, 32, 32))
    assert np.array_equal(resampled.zyx, detect(detector, other, resample=True).zyx)
    assert resampled.inside(other.shape_zyx).all()


def test_a_region_is_in_the_volumes_own_voxels_when_resampled_too(detector, tmp_path):
    other = write(tmp_path / "other.zarr", blobs(), voxel_um=(8.0, 3.6, 3.6))
    everything = detect(detector, other, resample=True).zyx
    region = (2, 10, 20, 15, 50, 66)
    inside = np.all(
        (everything >= np.array(region[:3]) - 0.5) & (everything < np.array(region[3:]) - 0.5), axis=1
    )
    assert 5 < inside.sum() < len(everything)
    found = detect(detector, other, resample=True, box=region, tile_zyx=(16, 64, 64))
    assert np.array_equal(found.zyx, everything[inside])
    with pytest.raises(CanvasError, match="does not lie in the volume"):
        detect(detector, other, resample=True, box=(0, 0, 0, 30, 9, 9))
    coarse = write(tmp_path / "fine.zarr", blobs(), voxel_um=(1.0, 0.5, 0.5))
    with pytest.raises(CanvasError, match="thinner than a voxel of the model"):
        detect(detector, coarse, resample=True, box=(1, 0, 0, 2, 61, 70))


@pytest.mark.parametrize("factor", [0.5, 0.7, 1.0, 1.6])
def test_a_resampled_volume_keeps_places_whatever_the_box(tmp_path, factor):
    z, y, x = np.indices((20, 30, 24)).astype(np.float32)
    volume = write(tmp_path / "ramp.zarr", 7 * z + 3 * y - 2 * x + 100)
    fine = Resampled(volume, tuple(um * factor for um in VOXEL_UM))
    everything = fine.read((0, 0, 0), fine.shape_zyx)
    inner = fine.read((4, 5, 6), (5, 9, 7))
    np.testing.assert_allclose(inner, everything[4:9, 5:14, 6:13], rtol=1e-6)
    place = np.stack(np.indices((5, 9, 7)).reshape(3, -1), axis=1) + np.array([4, 5, 6])
    expected = fine.to_volume(place) @ [7, 3, -2] + 100
    np.testing.assert_allclose(inner.reshape(-1), expected, rtol=1e-3)
