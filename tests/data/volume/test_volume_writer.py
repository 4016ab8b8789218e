"""Writing volumes: OME-Zarr 0.5 that others read, whatever the order and shape of the boxes."""

from __future__ import annotations

import errno
import json
import threading

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore

from canvas_fm.data.volume import writer as writer_module
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.volume.writer import mean_down, plan_levels
from canvas_fm.errors import CanvasError, StorageFull

SHAPE = (20, 50, 37)
VOXELS = (np.arange(1, 1 + np.prod(SHAPE)) % 65_521).astype(np.uint16).reshape(SHAPE)


def create(path, shape=SHAPE, **options):
    return Volume.create(path, shape, **({"voxel_um": (4, 1.8, 1.8), "chunk_zyx": (8, 16, 16)} | options))


def test_boxes_in_any_order_make_the_volume(tmp_path):
    cuts = [(a, min(a + 7, 20)) for a in range(0, 20, 7)]
    boxes = [(z, y, x) for z in cuts for y in [(0, 13), (13, 50)] for x in [(0, 30), (30, 37)]]
    with create(tmp_path / "a.zarr", shard_zyx=(8, 32, 32)) as writer:
        for at in np.random.default_rng(0).permutation(len(boxes)):
            box = boxes[at]
            writer.write([low for low, _ in box], VOXELS[tuple(slice(*span) for span in box)])
    np.testing.assert_array_equal(Volume.open(tmp_path / "a.zarr").read((0, 0, 0), SHAPE), VOXELS)


def test_several_threads_may_write(tmp_path):
    with create(tmp_path / "a.zarr") as writer:
        threads = [
            threading.Thread(target=lambda z=z: writer.write((z, 0, 0), VOXELS[z : z + 1])) for z in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    np.testing.assert_array_equal(Volume.open(tmp_path / "a.zarr").read((0, 0, 0), SHAPE), VOXELS)


def test_what_is_written_is_sharded_ome_zarr_0_5_with_checksums(tmp_path):
    with create(tmp_path / "a.zarr", marker="TH", source="a test", levels=2) as writer:
        writer.write((0, 0, 0), VOXELS)
        assert writer.shard_zyx == (24, 64, 48)
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    image = group.attrs["ome"]["multiscales"][0]
    assert group.attrs["ome"]["version"] == "0.5"
    assert image["axes"] == [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    scales = [dataset["coordinateTransformations"][0] for dataset in image["datasets"]]
    assert scales == [{"type": "scale", "scale": scale} for scale in ([4, 1.8, 1.8], [4, 3.6, 3.6])]
    shifts = [dataset["coordinateTransformations"][1]["translation"] for dataset in image["datasets"]]
    assert shifts == [[0, 0, 0], [0, pytest.approx(0.9), pytest.approx(0.9)]]
    ours = group.attrs["canvas_fm"]
    assert (ours["marker"], ours["source"], ours["complete"]) == ("TH", "a test", True)
    assert ours["window_rule"] == "percentiles 0.5 99.9"
    (sharding,) = json.loads((tmp_path / "a.zarr/0/zarr.json").read_text())["codecs"]
    inner = sharding["configuration"]
    assert inner["chunk_shape"] == [8, 16, 16]
    assert [codec["name"] for codec in inner["codecs"]] == ["bytes", "blosc", "crc32c"]
    blosc = inner["codecs"][1]["configuration"]
    assert (blosc["cname"], blosc["clevel"], blosc["shuffle"], blosc["typesize"]) == ("zstd", 1, "shuffle", 2)
    assert [codec["name"] for codec in inner["index_codecs"]] == ["bytes", "crc32c"]
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a.zarr/0", mode="r")[...], VOXELS)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "float32", "float64"])
def test_every_type_comes_back_as_written(tmp_path, dtype):
    voxels = (VOXELS % 200).astype(dtype)
    with create(tmp_path / "a.zarr", dtype=dtype) as writer:
        writer.write((0, 0, 0), voxels)
    volume = Volume.open(tmp_path / "a.zarr")
    assert volume.dtype == dtype
    np.testing.assert_array_equal(volume.read((0, 0, 0), SHAPE), voxels)


def test_a_narrower_type_fits_and_any_other_is_refused(tmp_path):
    with create(tmp_path / "a.zarr") as writer:
        writer.write((0, 0, 0), np.full((2, 2, 2), 200, np.uint8))
        for dtype in ("int16", "float32", "uint32"):
            with pytest.raises(CanvasError, match=f"voxels are {dtype}; this volume holds uint16"):
                writer.write((0, 0, 0), np.ones((2, 2, 2), dtype))
    assert Volume.open(tmp_path / "a.zarr").read((0, 0, 0), (2, 2, 2)).sum() == 1600


def test_the_pyramid_holds_means(tmp_path):
    with create(tmp_path / "a.zarr", levels=4) as writer:
        writer.write((0, 0, 0), VOXELS)
    levels = [zarr.open_array(tmp_path / f"a.zarr/{level}", mode="r")[...] for level in range(4)]
    assert [level.shape for level in levels] == [(20, 50, 37), (20, 25, 19), (10, 13, 10), (5, 7, 5)]
    for z, y, x in [(0, 0, 0), (19, 24, 18), (7, 24, 3), (5, 4, 18)]:
        block = VOXELS[z, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
        assert levels[1][z, y, x] == np.rint(block.mean())
    for z, y, x in [(9, 12, 9), (3, 4, 5)]:
        assert levels[2][z, y, x] == np.rint(
            levels[1][2 * z : 2 * z + 2, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean()
        )


def test_levels_go_towards_cubes_and_end():
    sizes = [voxel for _, voxel, _ in plan_levels((100, 1000, 1000), (4.0, 1.8, 1.8), 4)]
    assert sizes == [(4.0, 1.8, 1.8), (4.0, 3.6, 3.6), (8.0, 7.2, 7.2), (16.0, 14.4, 14.4)]
    assert [shape for shape, _, _ in plan_levels((1, 5, 1), (1.0, 1.0, 1.0), 9)] == [
        (1, 5, 1),
        (1, 3, 1),
        (1, 2, 1),
        (1, 1, 1),
    ]
    np.testing.assert_array_equal(mean_down(np.array([[[1, 2, 9]]], np.float32), (1, 1, 2)), [[[1.5, 9]]])


@pytest.mark.parametrize(
    ("origin", "shape", "message"),
    [
        ((0, 0, 30), (1, 1, 8), "leaves the volume"),
        ((-1, 0, 0), (2, 2, 2), "leaves the volume"),
        ((0, 0, 0), (4, 4), "expected three axes"),
    ],
)
def test_a_box_that_does_not_fit_is_refused(tmp_path, origin, shape, message):
    writer = create(tmp_path / "a.zarr")
    with pytest.raises(CanvasError, match=message):
        writer.write(origin, np.ones(shape, np.uint16))


def test_nan_is_refused(tmp_path):
    writer = create(tmp_path / "a.zarr", dtype="float32")
    with pytest.raises(CanvasError, match="holds NaN"):
        writer.write((0, 0, 0), np.full((2, 2, 2), np.nan, np.float32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (0, 5, 5)}, "expected sizes of at least 1"),
        ({"chunk_zyx": (0, 5, 5)}, "expected sizes of at least 1"),
        ({"shard_zyx": (12, 16, 16)}, "expected multiples of the chunk"),
        ({"dtype": "complex64"}, "a volume holds integers or floats"),
        ({"dtype": "nonsense"}, "a volume holds integers or floats"),
        ({"levels": 0}, "expected at least 1"),
        ({"voxel_um": (1, 2, 0)}, "three positive lengths"),
    ],
)
def test_what_cannot_be_created_is_refused_and_leaves_nothing(tmp_path, options, message):
    with pytest.raises(CanvasError, match=message):
        create(tmp_path / "a.zarr", **options)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_and_nothing_written_after_closing(tmp_path):
    with create(tmp_path / "a.zarr") as writer:
        writer.write((0, 0, 0), VOXELS)
    with pytest.raises(CanvasError, match=r"a\.zarr exists already"):
        create(tmp_path / "a.zarr")
    with pytest.raises(CanvasError, match="is closed"):
        writer.write((0, 0, 0), VOXELS)
    (tmp_path / "file").write_text("")
    with pytest.raises(CanvasError, match=r"a\.zarr cannot be made: Not a directory"):
        create(tmp_path / "file" / "a.zarr")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(CanvasError, match="exists already"):
        create(tmp_path / "link")


def test_an_exception_leaves_no_half_volume(tmp_path):
    def work():
        with create(tmp_path / "a.zarr") as writer:
            writer.write((0, 0, 0), VOXELS)
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("killed_at", ["manifest", "mark"])
def test_the_mark_of_completion_comes_last(tmp_path, monkeypatch, killed_at):
    writer = create(tmp_path / "a.zarr")
    writer.write((0, 0, 0), VOXELS)

    def die(*_):
        raise KeyboardInterrupt

    if killed_at == "manifest":
        monkeypatch.setattr(writer_module, "write_manifest", die)
    else:
        monkeypatch.setattr(writer, "_write_group", die)
    with pytest.raises(KeyboardInterrupt):
        writer.close()
    with pytest.raises(CanvasError, match="never finished"):
        Volume.open(tmp_path / "a.zarr")


@pytest.mark.parametrize("place", ["voxels", "manifest"])
def test_a_full_disk_is_said_and_nothing_half_stays(tmp_path, monkeypatch, place):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    async def full_store(*_, **__):
        full()

    def work():
        with create(tmp_path / "a.zarr") as writer:
            if place == "voxels":
                monkeypatch.setattr(LocalStore, "set", full_store)
            else:
                monkeypatch.setattr(writer_module, "write_manifest", full)
            writer.write((0, 0, 0), VOXELS)

    with pytest.raises(StorageFull, match="no space left on the disk"):
        work()
    assert not list(tmp_path.iterdir())


def test_a_volume_too_small_for_its_chunks(tmp_path):
    with Volume.create(tmp_path / "a.zarr", (3, 4, 5), voxel_um=(1, 1, 1), levels=2) as writer:
        writer.write((0, 0, 0), VOXELS[:3, :4, :5])
    volume = Volume.open(tmp_path / "a.zarr")
    assert volume.chunk_zyx == (3, 4, 5)
    np.testing.assert_array_equal(volume.read((0, 0, 0), (3, 4, 5)), VOXELS[:3, :4, :5])
