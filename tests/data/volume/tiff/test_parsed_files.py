"""The pages of a stack are listed once for each thread, and again where the file changed."""

from __future__ import annotations

import os
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile

from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import DamagedStore

VOXELS = (np.arange(1, 1 + 40 * 20 * 30) % 65_521).astype(np.uint16).reshape(40, 20, 30)
UM = (4.0, 2.0, 2.0)


@pytest.fixture(params=["pages", "ome", "compressed", "tar"])
def stack(tmp_path, request):
    """A stack of forty pages, each with an entry of its own in the file."""
    path = tmp_path / {"ome": "a.ome.tif", "tar": "a.tar"}.get(request.param, "a.tif")
    write(path, VOXELS, "zlib" if request.param == "compressed" else None)
    return path


def write(path, voxels, compression):
    if path.name.endswith(".ome.tif"):
        how = {"photometric": "minisblack", "metadata": {"axes": "ZYX"}, "compression": compression}
        tifffile.imwrite(path, voxels, **how)
        return
    if path.suffix == ".tar":
        write(path.with_suffix(".tif"), voxels, compression)
        with tarfile.open(path, "w") as archive:
            archive.add(path.with_suffix(".tif"), "a.tif")
        return
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for plane in voxels:
            writer.write(plane, contiguous=False, photometric="minisblack", compression=compression)


@pytest.fixture
def parsed(monkeypatch):
    """How often a file was opened anew."""
    opened = []
    init = tifffile.TiffFile.__init__

    def noted(self, *args, **options):
        opened.append(args)
        init(self, *args, **options)

    monkeypatch.setattr(tifffile.TiffFile, "__init__", noted)
    return opened


def planes(volume):
    return np.concatenate([volume.read((z, 0, 0), (1, 20, 30)) for z in range(40)])


def test_all_planes_are_read_of_one_list(stack, parsed):
    volume = Volume.open(stack, voxel_um=UM)
    parsed.clear()
    np.testing.assert_array_equal(planes(volume), VOXELS)
    assert len(parsed) == 1


def test_threads_do_not_share_a_handle(stack):
    volume = Volume.open(stack, voxel_um=UM)
    with ThreadPoolExecutor(4) as pool:
        for read in pool.map(lambda _: planes(volume), range(8)):
            np.testing.assert_array_equal(read, VOXELS)


def test_no_handle_stays_open(stack):
    volume = Volume.open(stack, voxel_um=UM)
    planes(volume)
    held = [os.path.realpath(f"/proc/self/fd/{handle}") for handle in os.listdir("/proc/self/fd")]
    assert str(stack) not in held


def test_a_file_that_changed_is_listed_again(stack, parsed):
    volume = Volume.open(stack, voxel_um=UM)
    assert volume.read((3, 0, 0), (1, 20, 30)).any()
    parsed.clear()
    write(stack, VOXELS + 7, "lzw")
    np.testing.assert_array_equal(volume.read((3, 0, 0), (1, 20, 30))[0], VOXELS[3] + 7)
    assert len(parsed) == 1
    stack.write_bytes(stack.read_bytes()[:2000])
    with pytest.raises(DamagedStore, match=r"cannot be decoded|is cut off"):
        volume.read((30, 0, 0), (1, 20, 30))
