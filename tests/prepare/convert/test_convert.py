"""Conversion: every voxel of every kind of file comes back, by our reader and by others'."""

from __future__ import annotations

import json
import logging
import threading
import tracemalloc

import numpy as np
import pytest
import tifffile
import zarr
from blake3 import blake3

import canvas_fm as cf
from canvas_fm.data.store.checked_store import CheckedStore
from canvas_fm.data.volume.levels.downsample import mode_down
from canvas_fm.errors import CanvasError, DamagedStore, StorageFull
from tests.prepare.planes import SHAPE, UM, bytes_of, voxels, write_planes

VOXELS = voxels()


@pytest.fixture(scope="module")
def planes(tmp_path_factory):
    return write_planes(tmp_path_factory.mktemp("source") / "planes", VOXELS)


@pytest.mark.parametrize("ome", ["0.5", "0.4"])
def test_planes_become_a_volume_with_the_pyramid_of_the_volume_writer(planes, tmp_path, ome, caplog):
    with caplog.at_level(logging.WARNING, logger="canvas_fm"):
        done = cf.convert(planes, tmp_path / "a.zarr", voxel_um=UM, ome=ome, levels=5, chunk_zyx=(8, 32, 32))
    assert caplog.text == ""
    assert (done.planes, done.bytes_in, done.shape_zyx, done.levels) == (70, VOXELS.nbytes, SHAPE, 5)
    volume = cf.Volume.open(tmp_path / "a.zarr")
    assert (volume.voxel_um, volume.chunk_zyx, volume.checksums) == (UM, (8, 32, 32), True)
    np.testing.assert_array_equal(volume.read((0, 0, 0), SHAPE), VOXELS)
    with cf.Volume.create(tmp_path / "b.zarr", SHAPE, voxel_um=UM, levels=5) as writer:
        writer.write((0, 0, 0), VOXELS)
    for level in range(5):
        ours, other = (
            zarr.open_array(tmp_path / name / str(level), mode="r") for name in ("a.zarr", "b.zarr")
        )
        np.testing.assert_array_equal(ours[...], other[...])
    assert volume.window == cf.Volume.open(tmp_path / "b.zarr").window
    assert CheckedStore(tmp_path / "a.zarr").verify_all() > 5
    assert not (tmp_path / "a.zarr.unfinished").exists()
    listed = json.loads((tmp_path / "a.zarr" / "canvas_fm_sources.json").read_text())["files"]
    assert len(listed) == 70
    assert listed["plane_0003.tif"]["blake3"] == blake3((planes / "plane_0003.tif").read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", ["<u8", ">i8"])
def test_64_bit_planes_have_the_type_that_zarr_knows(tmp_path, kind):
    """tifffile's is another C type of the same size."""
    source = write_planes(tmp_path / "planes", VOXELS[:3].astype(kind))
    cf.convert(source, tmp_path / "a.zarr", voxel_um=UM, labels=True, levels=1)
    np.testing.assert_array_equal(np.asarray(cf.Volume.open(tmp_path / "a.zarr")), VOXELS[:3])


def test_zeros_are_left_out_and_read_as_zeros(tmp_path):
    empty = VOXELS * (np.arange(SHAPE[1])[:, None] < 30)
    source = write_planes(tmp_path / "planes", empty)
    cf.convert(source, tmp_path / "a.zarr", voxel_um=UM, chunk_zyx=(32, 32, 32), levels=1, verify=True)
    volume = cf.Volume.open(tmp_path / "a.zarr")
    np.testing.assert_array_equal(volume.read((0, 0, 0), SHAPE), empty)
    cf.convert(write_planes(tmp_path / "none", empty * 0), tmp_path / "b.zarr", voxel_um=UM)
    assert not list((tmp_path / "b.zarr" / "0").glob("c/**/*"))
    assert cf.Volume.open(tmp_path / "b.zarr").read((0, 0, 0), SHAPE).sum() == 0


def test_channels_become_one_store_each_with_its_marker_and_window(tmp_path):
    folder = tmp_path / "planes"
    for c in (0, 1):
        write_planes(folder, VOXELS[:20] // (c + 1), f"brain_C0{c}_Z{{:04d}}.tif")
    cf.convert(folder, tmp_path / "a.zarr", voxel_um=UM, marker=("cFos", "NeuN"), verify=True)
    for c in (0, 1):
        volume = cf.Volume.open(tmp_path / "a.zarr", c=c)
        np.testing.assert_array_equal(volume.read((0, 0, 0), volume.shape_zyx), VOXELS[:20] // (c + 1))
        alone = cf.convert(folder, tmp_path / f"{c}.zarr", voxel_um=UM, c=(c,))
        assert volume.window == cf.Volume.open(alone.path).window
        assert volume.marker == ("cFos", "NeuN")[c]
    attributes = zarr.open_group(tmp_path / "a.zarr", mode="r").attrs["ome"]
    assert [axis["name"] for axis in attributes["multiscales"][0]["axes"]] == ["c", "z", "y", "x"]
    assert [channel["label"] for channel in attributes["omero"]["channels"]] == ["cFos", "NeuN"]
    with pytest.raises(CanvasError, match=r"has 2 along axis c .cFos, NeuN.: choose one with --c"):
        cf.Volume.open(tmp_path / "a.zarr")
    with pytest.raises(CanvasError, match="names 1 for 2 channels"):
        cf.convert(folder, tmp_path / "c.zarr", voxel_um=UM, marker=("cFos",))
    with pytest.raises(CanvasError, match="there is no c=7"):
        cf.convert(folder, tmp_path / "c.zarr", voxel_um=UM, c=(7,))


@pytest.mark.parametrize(
    "options",
    [{"bigtiff": True}, {"imagej": True}, {"ome": True}, {"compression": "zstd"}, {"tile": (16, 16)}],
)
def test_stacks_in_one_file(tmp_path, options):
    axes = {"metadata": {"axes": "ZYX"}} if options.keys() & {"imagej", "ome"} else {}
    tifffile.imwrite(tmp_path / "a.tif", VOXELS, **options, **axes)
    done = cf.convert(tmp_path / "a.tif", tmp_path / "a.zarr", voxel_um=UM, verify=True)
    assert done.verified
    np.testing.assert_array_equal(cf.Volume.open(done.path).read((0, 0, 0), SHAPE), VOXELS)


def test_channels_of_a_hyperstack(tmp_path):
    stack = np.stack([VOXELS[:9], VOXELS[9:18]], axis=1)
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=True, metadata={"axes": "ZCYX"})
    done = cf.convert(tmp_path / "a.tif", tmp_path / "a.zarr", voxel_um=UM)
    assert len(done.channels) == 2
    volume = cf.Volume.open(done.path, c=1)
    np.testing.assert_array_equal(volume.read((0, 0, 0), volume.shape_zyx), VOXELS[9:18])


def test_another_zarr_is_read_chunk_by_chunk(tmp_path, position_volume):
    path, expected = position_volume()
    done = cf.convert(path, tmp_path / "a.zarr", verify=True, threads=3, memory_gb=0.01)
    np.testing.assert_array_equal(cf.Volume.open(done.path).read((0, 0, 0), expected.shape), expected)
    again = cf.convert(done.path, tmp_path / "b.zarr", ome="0.4")
    np.testing.assert_array_equal(cf.Volume.open(again.path).read((0, 0, 0), expected.shape), expected)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "float32"])
def test_every_type(tmp_path, dtype):
    source = write_planes(tmp_path / "planes", voxels((9, 40, 30), dtype))
    done = cf.convert(source, tmp_path / "a.zarr", voxel_um=UM, verify=True)
    assert cf.Volume.open(done.path).dtype == dtype


def test_labels_keep_the_most_frequent_value(tmp_path):
    labels = np.random.default_rng(0).integers(0, 4, (10, 11, 12)).astype(np.uint16)
    source = write_planes(tmp_path / "planes", labels)
    cf.convert(source, tmp_path / "a.zarr", voxel_um=UM, labels=True, levels=2)
    coarse = zarr.open_array(tmp_path / "a.zarr/1", mode="r")[...]
    for place in np.ndindex(*coarse.shape):
        block = labels[tuple(slice(2 * p, 2 * p + 2) for p in place)]
        values, counts = np.unique(block, return_counts=True)
        assert coarse[place] == values[counts == counts.max()].max()
    np.testing.assert_array_equal(mode_down(labels, (1, 1, 1)), labels)
    attributes = json.loads((tmp_path / "a.zarr/zarr.json").read_text())["attributes"]["canvas_fm"]
    assert attributes["window"] is None


def test_other_readers(tmp_path, planes):
    tensorstore = pytest.importorskip("tensorstore")
    for ome, driver in (("0.5", "zarr3"), ("0.4", "zarr")):
        cf.convert(planes, tmp_path / f"{ome}.zarr", voxel_um=UM, ome=ome)
        where = {"driver": "file", "path": str(tmp_path / f"{ome}.zarr/0")}
        read = tensorstore.open({"driver": driver, "kvstore": where}).result().read().result()
        np.testing.assert_array_equal(read, VOXELS)


@pytest.mark.parametrize("ome", ["0.5", "0.4"])
def test_the_reference_implementation_reads_levels_axes_and_channels(tmp_path, planes, ome):
    io, reader = pytest.importorskip("ome_zarr.io"), pytest.importorskip("ome_zarr.reader")
    for c in (0, 1):
        write_planes(tmp_path / "two", VOXELS[:40] // (c + 1), f"s_C0{c}_Z{{:04d}}.tif")
    for source, stored in ((planes, VOXELS), (tmp_path / "two", np.stack([VOXELS[:40], VOXELS[:40] // 2]))):
        path = tmp_path / f"{source.name}.zarr"
        cf.convert(source, path, voxel_um=UM, ome=ome, levels=2)
        (node, *_) = reader.Reader(io.parse_url(path))()
        axes = node.metadata["axes"]
        assert [axis["name"] for axis in axes] == list("czyx")[-stored.ndim :]
        assert {axis.get("unit") for axis in axes if axis["type"] == "space"} == {"micrometer"}
        scales = [each[0]["scale"][-3:] for each in node.metadata["coordinateTransformations"]]
        assert scales == [list(UM), [2 * n for n in UM]]
        assert len(node.metadata.get("channel_names", [])) == (2 if stored.ndim == 4 else 0)
        np.testing.assert_array_equal(np.asarray(node.data[0]), stored)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("ome", ["0.5", "0.4"])
def test_the_metadata_are_those_of_the_specification(tmp_path, planes, ome, several):
    models = pytest.importorskip("ome_zarr_models")
    if several:
        for c in range(2):
            write_planes(tmp_path / "planes", VOXELS[:40], f"s_ch{c}_{{:04d}}.tif")
        planes = tmp_path / "planes"
    cf.convert(planes, tmp_path / "a.zarr", voxel_um=UM, ome=ome, levels=3)
    image = models.open_ome_zarr(zarr.open_group(tmp_path / "a.zarr", mode="r"))
    attributes = image.attributes.model_dump()
    multiscales = attributes.get("ome", attributes)["multiscales"]
    assert [axis["name"] for axis in multiscales[0]["axes"]] == list("czyx" if several else "zyx")
    assert [level["path"] for level in multiscales[0]["datasets"]] == ["0", "1", "2"]


def test_a_plane_is_refused_by_name(tmp_path):
    def source(name):
        return write_planes(tmp_path / name, VOXELS[:40])

    def refusal(folder, match, kind=CanvasError, **options):
        with pytest.raises(kind, match=match):
            cf.convert(folder, tmp_path / "a.zarr", voxel_um=UM, **options)
        assert not (tmp_path / "a.zarr").exists()
        import shutil

        shutil.rmtree(tmp_path / "a.zarr.unfinished", ignore_errors=True)

    cut = source("cut")
    content = (cut / "plane_0017.tif").read_bytes()
    (cut / "plane_0017.tif").write_bytes(content[: len(content) // 2])
    refusal(cut, r"plane_0017\.tif.*cannot be decoded", DamagedStore)
    none = source("none")
    (none / "plane_0033.tif").write_bytes(b"")
    refusal(none, r"plane_0033\.tif.*is empty: 0 bytes", DamagedStore)
    wide = source("wide")
    tifffile.imwrite(wide / "plane_0020.tif", VOXELS[20, :, :50])
    refusal(wide, r"plane_0020\.tif holds 1 plane of shape \(90, 50\), uint16; the first plane")
    mixed = source("mixed")
    tifffile.imwrite(mixed / "plane_0021.tif", VOXELS[20].astype(np.uint8))
    refusal(mixed, r"plane_0021\.tif holds 1 plane of shape \(90, 75\), uint8; the first plane")
    gap = source("gap")
    (gap / "plane_0005.tif").unlink()
    refusal(gap, r"1 plane is missing between plane_0004\.tif and plane_0006\.tif")
    nan = write_planes(tmp_path / "nan", np.where(VOXELS[:9] == 77, np.nan, 1.0).astype(np.float32))
    refusal(nan, r"holds NaN or infinite values near \(0, 0, 0\)")
    refusal(tmp_path / "missing", "missing does not exist")
    refusal("https://x.org/a.zarr", "is an address; copy it to the disk")
    with pytest.raises(CanvasError, match=r"are written as \.zarr; give .*b\.zarr"):
        cf.convert(gap, tmp_path / "b.tif", voxel_um=UM)


def test_damage_and_gaps_may_be_read_as_zeros(tmp_path):
    folder = write_planes(tmp_path / "planes", VOXELS[:12])
    (folder / "plane_0003.tif").write_bytes(b"")
    (folder / "plane_0007.tif").unlink()
    options = {"voxel_um": UM, "on_bad_chunk": "skip", "missing_chunks": "empty"}
    done = cf.convert(folder, tmp_path / "a.zarr", **options)
    expected = VOXELS[:12].copy()
    expected[[3, 7]] = 0
    np.testing.assert_array_equal(cf.Volume.open(done.path).read((0, 0, 0), expected.shape), expected)
    assert len(done.bad_chunks) == 1
    assert "plane_0003.tif" in done.bad_chunks[0]


def test_a_full_disk_is_a_sentence_and_the_work_goes_on(planes, tmp_path, monkeypatch):
    import errno
    import os

    real, lock, calls = os.fsync, threading.Lock(), [0]

    def full(handle):
        with lock:
            calls[0] += 1
        if calls[0] > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr("canvas_fm.prepare.convert.shards.shard_files.os.fsync", full)
    with pytest.raises(StorageFull, match="no space left on the disk while writing"):
        cf.convert(planes, tmp_path / "a.zarr", voxel_um=UM, chunk_zyx=(8, 16, 16))
    monkeypatch.undo()
    cf.convert(planes, tmp_path / "a.zarr", voxel_um=UM, chunk_zyx=(8, 16, 16))
    cf.convert(planes, tmp_path / "b.zarr", voxel_um=UM, chunk_zyx=(8, 16, 16))
    ours, other = bytes_of(tmp_path / "a.zarr"), bytes_of(tmp_path / "b.zarr")
    assert {k: v for k, v in ours.items() if k.startswith("0/")} == {
        k: v for k, v in other.items() if k.startswith("0/")
    }


@pytest.mark.parametrize("left", [1, "torn"])
def test_a_kill_while_the_empty_store_is_made_leaves_nothing_in_the_way(left, tmp_path, monkeypatch):
    from canvas_fm.prepare.convert import layout

    planes = write_planes(tmp_path / "planes", VOXELS[:8, :32, :32])

    real, calls = zarr.create_array, [0]

    def killed(**options):
        if calls[0] == left:
            raise KeyboardInterrupt
        calls[0] += 1
        return real(**options)

    options = {"voxel_um": UM, "chunk_zyx": (8, 16, 16), "levels": 2, "checksums": "none"}
    sound = cf.convert(planes, tmp_path / "sound.zarr", **options).path
    if left == "torn":  # as older versions made it in place, and a power cut tore it
        monkeypatch.setattr("canvas_fm.prepare.convert.slab_workers.SlabPlan.open", killed)
        with pytest.raises(TypeError):
            cf.convert(planes, tmp_path / "a.zarr", **options)
        (tmp_path / "a.zarr.unfinished/store/1/zarr.json").write_bytes(b"")
    else:
        monkeypatch.setattr(layout.zarr, "create_array", killed)
        with pytest.raises(KeyboardInterrupt):
            cf.convert(planes, tmp_path / "a.zarr", **options)
    monkeypatch.undo()
    cf.convert(planes, tmp_path / "a.zarr", **options)
    for name in ("0/zarr.json", "1/zarr.json", "0/c/0/0/0"):
        assert (tmp_path / "a.zarr" / name).read_bytes() == (sound / name).read_bytes()


def test_the_same_command_takes_what_is_there_and_another_is_refused(planes, tmp_path):
    first = cf.convert(planes, tmp_path / "a.zarr", voxel_um=UM)
    before = bytes_of(tmp_path / "a.zarr")
    assert cf.convert(planes, tmp_path / "a.zarr", voxel_um=UM, verify=True).bytes_out == first.bytes_out
    assert bytes_of(tmp_path / "a.zarr") == before
    with pytest.raises(CanvasError, match="was made from another source or with other options"):
        cf.convert(planes, tmp_path / "a.zarr", voxel_um=(4, 2, 2))
    (tmp_path / "a.zarr/0/c/0/0/0").write_bytes(b"x")
    with pytest.raises(DamagedStore, match="bytes where"):
        cf.convert(planes, tmp_path / "a.zarr", voxel_um=UM, verify=True)


def test_slabs_are_thin_where_memory_is_short(planes, tmp_path):
    """A plane has 13.5 kB: 0.3 MB hold 10 planes, so slabs of 8."""
    tracemalloc.start()
    cf.convert(planes, tmp_path / "a.zarr", voxel_um=UM, memory_gb=0.0003, levels=4, threads=2)
    tracemalloc.stop()
    assert cf.Volume.open(tmp_path / "a.zarr").chunk_zyx[0] == 8
    cf.convert(planes, tmp_path / "b.zarr", voxel_um=UM, levels=4)
    for level in range(4):
        thin, thick = (
            zarr.open_array(tmp_path / name / str(level), mode="r") for name in ("a.zarr", "b.zarr")
        )
        np.testing.assert_array_equal(thin[...], thick[...])
    with pytest.raises(CanvasError, match=r"a plane of .* has 0\.00 GB; give --memory-gb"):
        cf.convert(planes, tmp_path / "c.zarr", voxel_um=UM, memory_gb=0.00001)


def test_a_preview_writes_nothing(planes, tmp_path):
    found = cf.preview_conversion(planes, tmp_path / "a.zarr", voxel_um=UM)
    assert list(tmp_path.iterdir()) == []
    assert (found["shape_zyx"], found["bytes_in"], found["chunk_zyx"]) == (
        list(SHAPE),
        VOXELS.nbytes,
        [32, 64, 64],
    )
    real = cf.convert(planes, tmp_path / "a.zarr", voxel_um=UM).bytes_out
    assert 0.3 * real < found["bytes_out"] < 3 * real
    assert found["minutes"] > 0


def test_planes_in_a_tar_are_converted_where_they_lie(planes, tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "planes.tar", "w") as tar:
        tar.add(planes, "brain/planes")
        (tmp_path / "notes.txt").write_text("x")
        tar.add(tmp_path / "notes.txt", "brain/notes.txt")
    cf.convert(planes, tmp_path / "folder.zarr", voxel_um=UM)
    for name in ("planes.tar", "planes.tar/brain/planes"):
        out = tmp_path / "tar.zarr"
        done = cf.convert(tmp_path / name, out, voxel_um=UM, verify=True)
        assert (done.shape_zyx, done.verified) == (SHAPE, True)
        ours, other = bytes_of(out), bytes_of(tmp_path / "folder.zarr")
        assert {k: v for k, v in ours.items() if "/c/" in k} == {k: v for k, v in other.items() if "/c/" in k}
        sources = json.loads((out / "canvas_fm_sources.json").read_text())
        digest = blake3((tmp_path / "planes.tar").read_bytes()).hexdigest()
        assert [each["blake3"] for each in sources["files"].values()] == [digest]
        import shutil

        shutil.rmtree(out)


@pytest.mark.parametrize(
    "file", ["0/zarr.json", "0/c/0/0/0", "canvas_fm_sources.json", "canvas_fm_manifest.json"]
)
@pytest.mark.parametrize("damage", ["gone", "cut", "flipped"])
@pytest.mark.parametrize("read_bytes", [0, 10**9])
def test_a_damaged_store_is_not_taken_as_done(file, damage, read_bytes, tmp_path, monkeypatch):
    planes = write_planes(tmp_path / "planes", VOXELS[:4])
    cf.convert(planes, tmp_path / "a.zarr", voxel_um=UM, levels=1)
    monkeypatch.setattr("canvas_fm.prepare.convert.finish._READ_BYTES", read_bytes)
    path = tmp_path / "a.zarr" / file
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    path.write_bytes(content[:-5] if damage == "cut" else content)
    if damage == "gone":
        path.unlink()
    if (read_bytes, damage) == (0, "flipped") and file in ("0/c/0/0/0", "canvas_fm_sources.json"):
        return  # of a large store contents are compared by --verify, and by whatever reads them
    with pytest.raises(DamagedStore):
        cf.convert(planes, tmp_path / "a.zarr", voxel_um=UM, levels=1)


def test_an_output_that_is_a_broken_link_is_said_as_that(tmp_path):
    write_planes(tmp_path / "planes", voxels((4, 20, 30)))
    (tmp_path / "a.zarr").symlink_to(tmp_path / "disk/a.zarr")
    with pytest.raises(CanvasError, match=r"a\.zarr is a link to .*disk/a\.zarr, which is not there"):
        cf.convert(tmp_path / "planes", tmp_path / "a.zarr", voxel_um=UM)


def test_a_channel_is_given_once(tmp_path):
    with pytest.raises(CanvasError, match="--c is 1 1; give each channel once"):
        cf.convert(tmp_path, tmp_path / "a.zarr", c=(1, 1))
