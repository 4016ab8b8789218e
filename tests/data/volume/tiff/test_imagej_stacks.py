"""Stacks as ImageJ writes them: behind one page where they are large, and signed values."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError, DamagedStore

VOXELS = np.arange(6 * 20 * 30, dtype=np.uint16).reshape(6, 20, 30)


def one_page(path, planes, about="", **options):
    """As ImageJ writes what is larger than 4 GB: one page, all planes behind it, big-endian."""
    text = f"ImageJ=1.54f\nimages={len(planes)}\nslices={len(planes)}\n{about}"
    tifffile.imwrite(path, planes[0], description=text, metadata=None, byteorder=">", **options)
    with path.open("ab") as file:
        file.write(planes[1:].astype(">u2").tobytes())
    return path


def test_a_stack_behind_one_page(tmp_path):
    path = one_page(tmp_path / "a.tif", VOXELS)
    np.testing.assert_array_equal(np.asarray(Volume.open(path, voxel_um=(4, 2, 2))), VOXELS)


def test_a_cut_stack_behind_one_page_is_damage_and_no_single_plane(tmp_path):
    path = one_page(tmp_path / "a.tif", VOXELS)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedStore, match="it is cut short: it states 6 planes"):
        Volume.open(path, voxel_um=(4, 2, 2))


@pytest.mark.parametrize("zero", [-32768.0, 0.0])
def test_signed_values_are_said(tmp_path, caplog, zero):
    Volume.open(one_page(tmp_path / "a.tif", VOXELS, f"c0={zero}\nc1=1.0\n"), voxel_um=(4, 2, 2))
    assert ("signed values, which ImageJ keeps 32768 higher" in caplog.text) == (zero < 0)


def test_a_hyperstack_that_was_stopped_is_not_one_axis_of_planes(tmp_path):
    """Pages of two channels by turns would be planes of one."""
    text = "ImageJ=1.54f\nimages=5\nchannels=2\nslices=3\nhyperstack=true\n"
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for plane in VOXELS[:5]:
            writer.write(plane, description=text, metadata=None, contiguous=False)
    with pytest.raises(CanvasError, match="state 2 channels, 3 slices, and it holds 5 planes"):
        Volume.open(tmp_path / "a.tif", voxel_um=(4, 2, 2), c=0)
