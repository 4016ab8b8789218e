"""HDF5 and Imaris files, and vendors' files without their reader."""

from __future__ import annotations

import builtins

import h5py
import numpy as np
import pytest

import canvas_fm as cf
from canvas_fm.errors import CanvasError, DamagedStore, MissingExtra
from tests.prepare.planes import voxels

VOXELS = voxels((20, 30, 40))


def text(value: object) -> np.ndarray:
    return np.array([bytes([letter]) for letter in str(value).encode()], dtype="S1")


def write_imaris(path, channels):
    """As Imaris lays it out: data padded to whole chunks, axes counted from x, text as arrays of bytes."""
    with h5py.File(path, "w") as file:
        for c, data in enumerate(channels):
            group = file.create_group(f"DataSet/ResolutionLevel 0/TimePoint 0/Channel {c}")
            padded = np.pad(data, [(0, 12), (0, 2), (0, 24)])
            group.create_dataset("Data", data=padded, chunks=(16, 16, 32), compression="gzip")
            for axis, n in zip("ZYX", data.shape, strict=True):
                group.attrs[f"ImageSize{axis}"] = text(n)
            file.create_group(f"DataSetInfo/Channel {c}").attrs["Name"] = text(("cFos", "NeuN")[c])
        image = file.create_group("DataSetInfo/Image").attrs
        image["Unit"] = text("um")
        for axis, (n, size) in enumerate(zip((40, 30, 20), (1.8, 1.9, 4.0), strict=True)):
            image[f"ExtMin{axis}"], image[f"ExtMax{axis}"] = text(-7.0), text(n * size - 7.0)


def test_imaris(tmp_path):
    write_imaris(tmp_path / "a.ims", [VOXELS, VOXELS[::-1]])
    done = cf.convert(tmp_path / "a.ims", tmp_path / "a.zarr", verify=True)
    assert done.channels == ("cFos", "NeuN")
    assert done.voxel_um == pytest.approx((4.0, 1.9, 1.8))
    for c, expected in enumerate((VOXELS, VOXELS[::-1])):
        np.testing.assert_array_equal(cf.Volume.open(done.path, c=c).read((0, 0, 0), (20, 30, 40)), expected)
    one = cf.convert(tmp_path / "a.ims", tmp_path / "b.zarr", c=(1,))
    np.testing.assert_array_equal(cf.Volume.open(one.path).read((0, 0, 0), (20, 30, 40)), VOXELS[::-1])
    with pytest.raises(CanvasError, match=r"holds the channels 0 \(cFos\), 1 \(NeuN\): there is no c=2"):
        cf.convert(tmp_path / "a.ims", tmp_path / "c.zarr", c=(2,))
    with pytest.raises(CanvasError, match="has 1 time points: there is no t=3"):
        cf.convert(tmp_path / "a.ims", tmp_path / "c.zarr", t=3)


def test_a_data_set_is_chosen_and_its_voxel_size_read(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = VOXELS
        file["deep/both"] = np.stack([VOXELS, VOXELS + 1])
        file["raw"].attrs["element_size_um"] = (4, 1.8, 1.8)
    with pytest.raises(
        CanvasError, match=r"holds the images deep/both \(2, 20.*, raw .*: choose one with --dataset"
    ):
        cf.convert(tmp_path / "a.h5", tmp_path / "a.zarr")
    with pytest.raises(CanvasError, match="has no image 'label'; it holds"):
        cf.convert(tmp_path / "a.h5", tmp_path / "a.zarr", dataset="label")
    done = cf.convert(tmp_path / "a.h5", tmp_path / "a.zarr", dataset="raw", verify=True)
    assert done.voxel_um == (4.0, 1.8, 1.8)
    np.testing.assert_array_equal(cf.Volume.open(done.path).read((0, 0, 0), (20, 30, 40)), VOXELS)
    with pytest.raises(CanvasError, match="has no voxel size; give --voxel-um"):
        cf.convert(tmp_path / "a.h5", tmp_path / "b.zarr", dataset="deep/both")
    both = cf.convert(tmp_path / "a.h5", tmp_path / "b.zarr", dataset="/deep/both", voxel_um=(1, 1, 1))
    assert len(both.channels) == 2
    (tmp_path / "b.h5").write_bytes(b"no HDF5")
    with pytest.raises(CanvasError, match=r"b\.h5 is no readable HDF5 file"):
        cf.convert(tmp_path / "b.h5", tmp_path / "c.zarr")


def test_a_cut_file_is_damage(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("raw", data=VOXELS, chunks=(5, 30, 40), compression="gzip")
        place = file["raw"].id.get_chunk_info(2)
    with (tmp_path / "a.h5").open("r+b") as file:
        file.seek(place.byte_offset)
        file.write(bytes(place.size))
    with pytest.raises(DamagedStore, match=r"array '/raw'.*cannot be decoded"):
        cf.convert(tmp_path / "a.h5", tmp_path / "a.zarr", voxel_um=(1, 1, 1))


@pytest.mark.parametrize("suffix", [".czi", ".nd2", ".lif"])
def test_the_missing_reader_is_named(tmp_path, monkeypatch, suffix):
    (tmp_path / f"a{suffix}").write_bytes(b"?")
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("bioio"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=rf"reading {suffix} files needs bioio-.*canvas-fm\[vendors\]"):
        cf.convert(tmp_path / f"a{suffix}", tmp_path / "a.zarr")


def test_real_files(real_data, tmp_path):
    done = cf.convert(real_data / "formats/1136_mini.h5", tmp_path / "a.zarr", dataset="raw", verify=True)
    assert done.voxel_um == pytest.approx((0.2837, 0.1276, 0.1276), abs=1e-4)
    planes = real_data / "cellfinder_s2p" / "ch0"
    if planes.is_dir():
        done = cf.convert(planes, tmp_path / "b.zarr", voxel_um=(5, 2, 2), verify=True)
        assert done.shape_zyx == (14, 510, 667)
