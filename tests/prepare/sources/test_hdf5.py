"""HDF5 and Imaris files, and vendors' files without their reader."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys
import tarfile

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


def test_imaris(tmp_path, caplog):
    write_imaris(tmp_path / "a.ims", [VOXELS, VOXELS[::-1]])
    done = cf.convert(tmp_path / "a.ims", tmp_path / "a.zarr", verify=True)
    assert done.channels == ("cFos", "NeuN")
    assert done.voxel_um == pytest.approx((4.0, 1.9, 1.8))
    for c, expected in enumerate((VOXELS, VOXELS[::-1])):
        np.testing.assert_array_equal(cf.Volume.open(done.path, c=c).read((0, 0, 0), (20, 30, 40)), expected)
    # Imaris exports positions from where the stage stood.
    assert "begins at -7, -7, -7 µm (z, y, x), the store at 0" in caplog.text
    assert "points convert --voxel-um 4 1.9 1.8 --origin 1.75 3.68421 3.88889`" in caplog.text
    one = cf.convert(tmp_path / "a.ims", tmp_path / "b.zarr", c=(1,))
    np.testing.assert_array_equal(cf.Volume.open(one.path).read((0, 0, 0), (20, 30, 40)), VOXELS[::-1])
    with pytest.raises(CanvasError, match=r"holds the channels 0 \(cFos\), 1 \(NeuN\): there is no c=2"):
        cf.convert(tmp_path / "a.ims", tmp_path / "c.zarr", c=(2,))
    with pytest.raises(CanvasError, match="has 1 time point: there is no t=3"):
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


def tags(axes: str) -> str:
    return json.dumps({"axes": [{"key": axis, "typeFlags": 0} for axis in axes]})


@pytest.mark.parametrize(
    ("axes", "label"), [("zyxc", False), ("tzyxc", False), ("xyz", True), ("czyx", True), ("tczyx", None)]
)
def test_axes_are_those_that_are_named(tmp_path, axes, label):
    planes = VOXELS[:16]  # so few that an order without names takes them for channels
    others = tuple(place for place, axis in enumerate(axes) if axis not in "zyx")
    spatial = [axis for axis in axes if axis in "zyx"]
    stored = np.expand_dims(planes.transpose(["zyx".index(axis) for axis in spatial]), others)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = stored
        if label is False:
            file["data"].attrs["axistags"] = tags(axes)
        elif label:
            for place, axis in enumerate(axes):
                file["data"].dims[place].label = axis
    done = cf.convert(tmp_path / "a.h5", tmp_path / "a.zarr", voxel_um=(4, 2, 2))
    assert len(done.channels) == 1
    np.testing.assert_array_equal(np.asarray(cf.Volume.open(done.path)), VOXELS[:16])


@pytest.mark.parametrize(
    ("named", "message"),
    [("", "the last one, of 2, looks like channels"), ("zyxq", "names its axes z, y, x, q")],
)
def test_channels_that_stand_last_are_never_planes(tmp_path, named, message):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = np.stack([VOXELS[:8], VOXELS[:8]], -1)
        if named:
            file["data"].attrs["axistags"] = tags(named)
    with pytest.raises(CanvasError, match=message):
        cf.convert(tmp_path / "a.h5", tmp_path / "a.zarr", voxel_um=(4, 2, 2))


@pytest.mark.parametrize("kind", [None, "uint16", "int16"])
def test_bigdataviewer_keeps_unsigned_voxels_in_a_signed_type(tmp_path, kind):
    bright = VOXELS + np.uint16(40000)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["t00000/s00/0/cells"] = bright.view(np.int16)
        file["t00000/s00/1/cells"] = bright.view(np.int16)[::2, ::2, ::2]  # a coarser level is no other image
        file.create_group("s00")
        if kind:
            file["s00"].attrs["dataType"] = kind
    done = cf.convert(tmp_path / "a.h5", tmp_path / "a.zarr", voxel_um=(4, 2, 2))
    expected = bright.view(np.int16) if kind == "int16" else bright
    found = np.asarray(cf.Volume.open(done.path))
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_a_filter_that_is_not_installed_is_named(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_chunk((4, 10, 10))
        layout.set_filter(32999, h5py.h5z.FLAG_OPTIONAL, (0,))
        space = h5py.h5s.create_simple((8, 20, 30))
        h5py.h5d.create(file.id, b"data", h5py.h5t.NATIVE_UINT16, space, layout)
    with pytest.raises(
        CanvasError, match=r"filter 32999\), whose decoder is not installed: pip install hdf5plugin"
    ):
        cf.convert(tmp_path / "a.h5", tmp_path / "a.zarr", voxel_um=(4, 2, 2))


@pytest.mark.parametrize("write", [str, lambda value: np.bytes_(str(value)), text])
def test_attributes_of_imaris_in_every_form(tmp_path, write):
    write_imaris(tmp_path / "a.ims", [VOXELS])
    with h5py.File(tmp_path / "a.ims", "r+") as file:
        group = file["DataSet/ResolutionLevel 0/TimePoint 0/Channel 0"].attrs
        for axis, n in zip("ZYX", VOXELS.shape, strict=True):
            group[f"ImageSize{axis}"] = write(n)
        about = file["DataSetInfo/Image"].attrs
        about["Unit"] = write("mm")
        for axis, (n, size) in enumerate(zip((40, 30, 20), (1.8e-3, 1.9e-3, 4e-3), strict=True)):
            about[f"ExtMin{axis}"], about[f"ExtMax{axis}"] = write(0), write(n * size)
    done = cf.convert(tmp_path / "a.ims", tmp_path / "a.zarr")
    assert done.voxel_um == pytest.approx((4.0, 1.9, 1.8))
    np.testing.assert_array_equal(np.asarray(cf.Volume.open(done.path)), VOXELS)


@pytest.mark.parametrize("lacking", ["ImageSize", "DataSetInfo", "extent"])
def test_a_given_voxel_size_wins_where_imaris_states_none(tmp_path, lacking):
    write_imaris(tmp_path / "a.ims", [VOXELS])
    with h5py.File(tmp_path / "a.ims", "r+") as file:
        if lacking == "ImageSize":
            for axis in "ZYX":
                del file["DataSet/ResolutionLevel 0/TimePoint 0/Channel 0"].attrs[f"ImageSize{axis}"]
        elif lacking == "DataSetInfo":
            del file["DataSetInfo"]
        else:
            about = file["DataSetInfo/Image"].attrs
            about["ExtMax0"] = about["ExtMin0"]
    if lacking != "ImageSize":
        with pytest.raises(CanvasError, match="has no voxel size; give --voxel-um"):
            cf.convert(tmp_path / "a.ims", tmp_path / "a.zarr")
    cf.convert(tmp_path / "a.ims", tmp_path / "a.zarr", voxel_um=(4, 2, 2))


@pytest.mark.parametrize("stated", [(4, np.nan, 2), (4, 2), (0, 2, 2)])
def test_a_stated_size_that_is_none_is_replaced_by_the_given_one(tmp_path, stated):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = VOXELS
        file["data"].attrs["element_size_um"] = stated
    with pytest.raises(CanvasError, match=r"has no voxel size; give --voxel-um .*the file states"):
        cf.convert(tmp_path / "a.h5", tmp_path / "a.zarr")
    assert cf.convert(tmp_path / "a.h5", tmp_path / "a.zarr", voxel_um=(4, 2, 2)).voxel_um == (4, 2, 2)


def test_a_virtual_data_set_without_its_sources_is_refused(tmp_path):
    """HDF5 reads what is gone as zeros."""
    for name in ("one.h5", "two.h5"):
        with h5py.File(tmp_path / name, "w") as file:
            file["data"] = np.ones((4, 20, 30), np.uint16)
    layout = h5py.VirtualLayout((8, 20, 30), np.uint16)
    layout[:4], layout[4:] = (h5py.VirtualSource(n, "data", (4, 20, 30)) for n in ("one.h5", "two.h5"))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_virtual_dataset("data", layout)
    cf.convert(tmp_path / "a.h5", tmp_path / "a.zarr", voxel_um=(4, 2, 2))
    assert np.asarray(cf.Volume.open(tmp_path / "a.zarr")).all()
    (tmp_path / "two.h5").unlink()
    with pytest.raises(CanvasError, match=r"/data shows the data set data of two\.h5, which is not there"):
        cf.convert(tmp_path / "a.h5", tmp_path / "b.zarr", voxel_um=(4, 2, 2))
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["other"] = np.ones((4, 20, 30), np.uint16)
    with pytest.raises(CanvasError, match=r"/data shows the data set data of two\.h5, which is not there"):
        cf.convert(tmp_path / "a.h5", tmp_path / "b.zarr", voxel_um=(4, 2, 2))


def test_parts_in_other_files_are_read_and_missing_ones_named(tmp_path):
    """As BigDataViewer exports a set-up a file."""
    for k in (0, 1):
        with h5py.File(tmp_path / f"part{k}.h5", "w") as file:
            file[f"t00000/s0{k}/0/cells"] = np.full((4, 20, 30), 7 + k, np.uint16)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for k in (0, 1):
            file[f"t00000/s0{k}"] = h5py.ExternalLink(f"part{k}.h5", f"t00000/s0{k}")
    options = {"voxel_um": (4, 2, 2)}
    cf.convert(tmp_path / "a.h5", tmp_path / "a.zarr", dataset="t00000/s01/0/cells", **options)
    assert (np.asarray(cf.Volume.open(tmp_path / "a.zarr")) == 8).all()
    with pytest.raises(CanvasError, match=r"s00/0/cells .*s01/0/cells .*choose one with --dataset"):
        cf.convert(tmp_path / "a.h5", tmp_path / "b.zarr", **options)
    (tmp_path / "part1.h5").unlink()
    with pytest.raises(CanvasError, match=r"t00000/s01 is a link to .* in part1\.h5, which is not there"):
        cf.convert(tmp_path / "a.h5", tmp_path / "b.zarr", **options)


def test_files_that_link_to_each_other_end(tmp_path):
    for name, other in (("a.h5", "b.h5"), ("b.h5", "a.h5")):
        with h5py.File(tmp_path / name, "w") as file:
            file["next"] = h5py.ExternalLink(other, "/")
    with pytest.raises(CanvasError, match="holds no image"):
        cf.convert(tmp_path / "a.h5", tmp_path / "a.zarr")


ANNEX = "annex/objects/SHA256E-s10--ab/SHA256E-s10--ab"


@pytest.mark.parametrize("name", ["a.h5", "a.ims", "a.czi"])
@pytest.mark.parametrize("link", [True, False])
def test_files_that_were_not_fetched_are_said_as_that(tmp_path, name, link):
    if link:
        (tmp_path / name).symlink_to(f".git/{ANNEX}")
    else:
        (tmp_path / name).write_text(f"/{ANNEX}")
    with pytest.raises(CanvasError, match="git annex get, datalad get"):
        cf.convert(tmp_path / name, tmp_path / "a.zarr")


def test_a_file_that_is_cut_or_open_elsewhere_is_said_as_that(tmp_path):
    writer = "import h5py, sys; f = h5py.File(sys.argv[1], 'w'); f['a'] = [1]; f.flush(); print(); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", writer, str(tmp_path / "a.h5")], **pipes) as other:
        assert other.stdout.readline()
        with pytest.raises(CanvasError, match="is open in a program that writes it"):
            cf.convert(tmp_path / "a.h5", tmp_path / "a.zarr")
        other.communicate(b"\n")
    content = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(content[:-100])
    with pytest.raises(CanvasError, match=r"is cut short: it has [\d,]+ of [\d,]+ bytes; copy it again"):
        cf.convert(tmp_path / "a.h5", tmp_path / "a.zarr")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "a.h5", "a.h5")
    with pytest.raises(CanvasError, match=r"lies in a\.tar, of which TIFF alone is read; unpack it"):
        cf.convert(tmp_path / "a.tar/a.h5", tmp_path / "a.zarr")


@pytest.mark.parametrize(
    "name", ["t00000/s00/1/cells", "DataSet/ResolutionLevel 1/TimePoint 0/Channel 0/Data"]
)
def test_a_coarser_level_alone_is_never_taken_for_the_finest(tmp_path, name):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file[name] = VOXELS
    with pytest.raises(CanvasError, match=r"lacks (its|the) finest"):
        cf.convert(tmp_path / "a.h5", tmp_path / "a.zarr", voxel_um=(4, 2, 2))
