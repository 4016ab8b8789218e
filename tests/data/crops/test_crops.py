"""Crops: every voxel where it belongs, each chunk decoded once, in bounded memory, with both backends."""

from __future__ import annotations

import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import zarr

from canvas_fm.data.crops.decoders import ZarrDecoder
from canvas_fm.data.crops.reader import CropReader, cache_for, crop_starts
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError, DamagedStore, MissingExtra

BACKENDS = ["zarr", "tensorstore"]
CROP = (16, 32, 32)


def one_at_a_time(voxels: np.ndarray, starts: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    """The oracle: each voxel of each crop looked up by itself."""
    crops = np.zeros((len(starts), *size), voxels.dtype)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij"), axis=-1)
    for row, start in enumerate(starts):
        place = index + start
        inside = np.all((place >= 0) & (place < voxels.shape), axis=-1)
        crops[row][inside] = voxels[tuple(place[inside].T)]
    return crops


def some_points(shape: tuple[int, int, int], n: int = 60, seed: int = 0) -> np.ndarray:
    """Points inside and up to a crop outside, in no order, some of them twice."""
    random = np.random.default_rng(seed)
    points = random.uniform(-20, np.asarray(shape) + 20, (n, 3))
    return np.concatenate([points, points[: n // 5], np.floor(points[: n // 5]) + 0.5])


class Counted(ZarrDecoder):
    """Counts how often each chunk is decoded."""

    def __init__(self, volume: Volume) -> None:
        super().__init__(volume)
        self.seen: Counter = Counter()

    def chunks(self, indices):
        self.seen.update(indices)
        return super().chunks(indices)


def counted_reader(volume: Volume, crop=CROP, **options) -> tuple[CropReader, Counter]:
    reader = CropReader(volume, crop, backend="zarr", **options)
    counter = Counted(volume)
    reader._decoder = counter
    return reader, counter.seen


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("chunk", [(8, 16, 16), (32, 64, 64), (7, 11, 13)])
def test_crops_are_what_one_at_a_time_gives(position_volume, backend: str, chunk) -> None:
    path, voxels = position_volume(chunk_zyx=chunk)
    points = some_points(voxels.shape)
    crops = CropReader(Volume.open(path), CROP, backend=backend).read_points(points)
    starts = np.floor(points + 0.5).astype(int) - (8, 16, 16)
    assert crops.dtype == np.uint16
    np.testing.assert_array_equal(crops, one_at_a_time(voxels, starts, CROP))


def test_the_points_voxel_is_the_crops_middle_one(position_volume) -> None:
    path, voxels = position_volume()
    points = np.array([[20, 40, 30], [20.49, 39.5, 30.2], [19.5, 40.4, 29.51]])
    crops = CropReader(Volume.open(path), CROP).read_points(points)
    assert (crops[:, 8, 16, 16] == voxels[20, 40, 30]).all()
    odd = CropReader(Volume.open(path), (5, 7, 9)).read_points(points)
    assert (odd[:, 2, 3, 4] == voxels[20, 40, 30]).all()
    assert crop_starts(np.array([[0, 0, 0]]), (16, 7, 1)).tolist() == [[-8, -3, 0]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
def test_other_types_are_kept(position_volume, backend: str, dtype: str) -> None:
    path, voxels = position_volume(dtype=dtype)
    crops = CropReader(Volume.open(path), CROP, backend=backend).read(np.array([[3, 4, 5]]))
    assert crops.dtype == dtype
    np.testing.assert_array_equal(crops[0], voxels[3:19, 4:36, 5:37])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_foreign_stores_and_their_axes(
    tmp_path: Path, position_volume, backend: str, zarr_format: int
) -> None:
    _, voxels = position_volume()
    # Stored big-endian as t, x, c, z, y with chunks longer than one along c.
    stored = np.stack([np.zeros_like(voxels), voxels]).transpose(3, 0, 1, 2)[None].astype(">u2")
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=zarr_format)
    array = group.create_array("0", shape=stored.shape, dtype=stored.dtype, chunks=(1, 20, 2, 16, 16))
    array[:] = stored
    scale = [{"type": "scale", "scale": [1.0, 1.8, 1.0, 4.0, 1.8]}]
    axes = [{"name": "t", "type": "time"}, {"name": "x", "type": "space", "unit": "micrometer"}]
    axes += [{"name": "c", "type": "channel"}]
    axes += [{"name": name, "type": "space", "unit": "micrometer"} for name in "zy"]
    image = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}], "name": "a"}
    if zarr_format == 2:
        group.attrs["multiscales"] = [image | {"version": "0.4"}]
    else:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    volume = Volume.open(tmp_path / "a.zarr", c=1)
    points = some_points(voxels.shape, 20)
    reader = CropReader(volume, CROP, backend=backend)
    assert reader.backend == backend
    expected = one_at_a_time(voxels, crop_starts(points, CROP), CROP)
    np.testing.assert_array_equal(reader.read_points(points), expected)


def test_each_chunk_is_decoded_once_a_call_and_not_again_from_the_cache(position_volume) -> None:
    path, voxels = position_volume()
    reader, seen = counted_reader(Volume.open(path))
    points = some_points(voxels.shape, 200)
    first = reader.read_points(points)
    assert set(seen.values()) == {1}
    assert len(seen) == 5 * 5 * 4  # all of the volume's chunks
    np.testing.assert_array_equal(reader.read_points(points), first)
    assert set(seen.values()) == {1}


def test_without_a_cache_each_chunk_is_still_decoded_once_a_call(position_volume) -> None:
    path, voxels = position_volume()
    reader, seen = counted_reader(Volume.open(path), cache_bytes=0)
    reader.read_points(some_points(voxels.shape, 200))
    assert set(seen.values()) == {1}
    reader.read_points(some_points(voxels.shape, 200))
    assert set(seen.values()) == {2}


def test_only_touched_chunks_are_decoded(position_volume) -> None:
    path, _ = position_volume()
    reader, seen = counted_reader(Volume.open(path))
    # Of the last two one lies beyond the border but in the grid of the clipped last chunk.
    crops = reader.read(np.array([[8, 16, 16], [-16, 0, 0], [500, 0, 0], [0, 0, 52]]))
    assert set(seen) == {(z, y, x) for z in (1, 2) for y in (1, 2) for x in (1, 2)}
    assert not crops[1:].any()


def test_the_cache_never_holds_more_than_it_may(position_volume) -> None:
    path, voxels = position_volume()
    chunk_bytes = 8 * 16 * 16 * 2
    reader, _ = counted_reader(Volume.open(path), cache_bytes=7 * chunk_bytes + 1)
    points = some_points(voxels.shape, 100)
    expected = one_at_a_time(voxels, crop_starts(points, CROP), CROP)
    for rows, crops in reader.batches_points(points, 8):
        np.testing.assert_array_equal(crops, expected[rows])
        held = [chunk.nbytes for chunk in reader._cache._values.values()]
        assert sum(held) == reader._cache.held <= 7 * chunk_bytes
        assert all(
            chunk.base is None or chunk.base.nbytes == chunk.nbytes
            for chunk in reader._cache._values.values()
        )


def test_batches_give_each_row_once_and_few_chunks_twice(position_volume) -> None:
    path, voxels = position_volume((64, 128, 128), chunk_zyx=(16, 32, 32))
    volume = Volume.open(path)
    total = 4 * 4 * 4
    points = np.random.default_rng(0).uniform(0, voxels.shape, (200, 3))
    reader, seen = counted_reader(volume, (8, 16, 16), cache_bytes=total // 4 * 16 * 32 * 32 * 2)
    rows = []
    for some, crops in reader.batches_points(points, 10):
        assert len(some) == len(crops) == 10
        rows.extend(some.tolist())
    assert sorted(rows) == list(range(200))
    in_chunk_order = sum(seen.values())
    assert in_chunk_order < 1.6 * total
    reader, seen = counted_reader(volume, (8, 16, 16), cache_bytes=total // 4 * 16 * 32 * 32 * 2)
    for first in range(0, 200, 10):
        reader.read_points(points[first : first + 10])
    assert in_chunk_order < sum(seen.values()) / 2


def test_no_points_are_no_crops(position_volume) -> None:
    path, _ = position_volume()
    reader = CropReader(Volume.open(path), CROP)
    assert reader.read_points(np.empty((0, 3))).shape == (0, *CROP)
    assert list(reader.batches_points(np.empty((0, 3)), 8)) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_reader_serves_several_threads(position_volume, backend: str) -> None:
    path, voxels = position_volume()
    reader = CropReader(Volume.open(path), CROP, backend=backend, cache_bytes=200_000)

    def agrees(seed: int) -> bool:
        points = some_points(voxels.shape, 20, seed)
        expected = one_at_a_time(voxels, crop_starts(points, CROP), CROP)
        return bool((reader.read_points(points) == expected).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(agrees, range(8)))


@pytest.mark.parametrize("model_um", [(4.0, 1.8, 1.8), (6.0, 1.62, 1.62), (2.0, 3.6, 1.8), (9.0, 4.1, 4.1)])
def test_resampled_crops_have_the_models_physical_size(tmp_path: Path, model_um) -> None:
    # Values rise linearly in micrometres, so a sample's value says where it lies.
    z, y, x = (np.arange(n) * size for n, size in zip((60, 100, 100), (4.0, 1.8, 1.8), strict=True))
    voxels = (1000 + 3 * z[:, None, None] + 2 * y[:, None] - x).astype(np.float32)
    with Volume.create(
        tmp_path / "a.zarr", voxels.shape, voxel_um=(4.0, 1.8, 1.8), dtype="float32", chunk_zyx=(16, 32, 32)
    ) as writer:
        writer.write((0, 0, 0), voxels)
    crop = (6, 8, 8)
    reader = CropReader(Volume.open(tmp_path / "a.zarr"), crop, resample_to_um=model_um)
    points = np.array([[31, 53, 50.49], [30, 50, 50], [28.4, 51.2, 44.9], [30, 41, 33]])
    crops = reader.read_points(points)
    assert crops.shape == (4, *crop)
    assert crops.dtype == np.float32
    for point, got in zip(np.floor(points + 0.5) * (4.0, 1.8, 1.8), crops, strict=True):
        z, y, x = (p + (np.arange(n) - n // 2) * m for p, n, m in zip(point, crop, model_um, strict=True))
        np.testing.assert_allclose(got, 1000 + 3 * z[:, None, None] + 2 * y[:, None] - x, rtol=1e-5)
    together = np.zeros_like(crops)
    for rows, some in reader.batches_points(points, 2):
        together[rows] = some
    np.testing.assert_allclose(together, crops, rtol=1e-6)


def chunk_file(store: Path) -> Path:
    return max(
        (path for path in store.rglob("*") if path.is_file() and "c" in path.parts),
        key=lambda p: p.stat().st_size,
    )


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_the_same_error_with_both_backends(position_volume, damage: str) -> None:
    path, voxels = position_volume(shard_zyx=(8, 16, 16))
    file = chunk_file(path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(content if damage == "flip" else content[:-3])
    points = some_points(voxels.shape, 100)
    sentences = []
    for backend in BACKENDS:
        with pytest.raises(DamagedStore) as problem:
            CropReader(Volume.open(path), CROP, backend=backend).read_points(points)
        sentences.append(str(problem.value))
    assert sentences[0] == sentences[1]
    assert file.relative_to(path / "0").as_posix() in sentences[0]


def test_skipped_damage_is_zeros_and_reported_with_both_backends(position_volume) -> None:
    path, voxels = position_volume(shard_zyx=(8, 16, 16))
    file = chunk_file(path)
    file.unlink()
    z, y, x = (int(part) for part in file.parts[-3:])
    expected = voxels.copy()
    expected[z * 8 : z * 8 + 8, y * 16 : y * 16 + 16, x * 16 : x * 16 + 16] = 0
    points = some_points(voxels.shape, 100)
    for backend in BACKENDS:
        volume = Volume.open(path, on_bad_chunk="skip")
        crops = CropReader(volume, CROP, backend=backend).read_points(points)
        np.testing.assert_array_equal(crops, one_at_a_time(expected, crop_starts(points, CROP), CROP))
        assert len(volume.bad_chunks) == 1


def test_what_tensorstore_cannot_decode_is_named_as_the_volume_names_it(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", shape=(16, 32, 32), chunks=(8, 16, 16), dtype="uint16")
    array[:] = np.arange(16 * 32 * 32, dtype=np.uint16).reshape(16, 32, 32)
    file = chunk_file(tmp_path / "a.zarr")
    file.write_bytes(file.read_bytes()[:40])
    for backend in BACKENDS:
        volume = Volume.open(tmp_path / "a.zarr", voxel_um=(4, 2, 2))
        with pytest.raises(DamagedStore, match="c/"):
            CropReader(volume, (16, 32, 32), backend=backend).read(np.zeros((1, 3), int))


def test_auto_falls_back_to_zarr_and_an_explicit_wish_is_refused(position_volume, monkeypatch) -> None:
    path, _ = position_volume()
    assert CropReader(Volume.open(path), CROP).backend == "tensorstore"
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    assert CropReader(Volume.open(path), CROP).backend == "zarr"
    with pytest.raises(MissingExtra, match=r"canvas-fm\[tensorstore\]"):
        CropReader(Volume.open(path), CROP, backend="tensorstore")


def test_wrong_sizes_and_starts_are_refused(position_volume) -> None:
    path, _ = position_volume()
    volume = Volume.open(path)
    with pytest.raises(CanvasError, match=r"crop_zyx is \(0, 4, 4\)"):
        CropReader(volume, (0, 4, 4))
    reader = CropReader(volume, CROP)
    with pytest.raises(CanvasError, match=r"expected at least 1 crop"):
        next(reader.batches_points(np.zeros((1, 3)), 0))
    with pytest.raises(CanvasError, match="is not finite"):
        reader.read_points(np.array([[0.0, np.nan, 0.0]]))


def test_real_cells_lie_in_the_middle_of_their_crops(real_data: Path) -> None:
    cube = real_data / "delivr_microglia" / "1874"
    volume = Volume.open(cube / "raw.zarr")
    points = Points.read(cube / "centroids.csv")
    points.check_inside(volume.shape_zyx)
    zyx = points.zyx[:: len(points) // 12][:12]
    crops = CropReader(volume, CROP, backend="zarr").read_points(zyx)
    np.testing.assert_array_equal(crops, CropReader(volume, CROP, backend="tensorstore").read_points(zyx))
    for start, crop in zip(crop_starts(zyx, CROP), crops, strict=True):
        np.testing.assert_array_equal(crop, volume.read(start, CROP))
    middle = crops[:, 7:10, 14:19, 14:19].mean(axis=(1, 2, 3))
    assert (middle > 1.5 * crops.mean(axis=(1, 2, 3))).all()


@pytest.mark.parametrize(
    ("chunk", "remote", "megabytes"),
    [((32, 64, 64), None, 64), ((128,) * 3, None, 128), ((256,) * 3, None, 256), ((32, 64, 64), "s3", 256)],
)
def test_so_much_is_kept_of_decoded_chunks_as_saves_decoding(chunk, remote, megabytes):
    """A few rows of chunks, not a share of the volume: memory is the same for a larger one."""
    volume = SimpleNamespace(chunk_zyx=chunk, dtype=np.dtype(np.uint16), remote=remote)
    assert cache_for(volume) == megabytes * 2**20


def test_a_reader_keeps_that_much_where_nothing_is_said(position_volume, monkeypatch):
    path, _ = position_volume()
    monkeypatch.setattr("canvas_fm.data.crops.reader.cache_for", lambda volume: 12_345)
    assert CropReader(Volume.open(path), CROP)._cache.limit == 12_345
    assert CropReader(Volume.open(path), CROP, cache_bytes=7)._cache.limit == 7
