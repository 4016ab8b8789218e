"""The intensity window: percentiles of the whole volume, linear, the same however it is stored."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import tifffile
import zarr

from canvas_fm.data.volume import window as window_module
from canvas_fm.data.volume.array.in_memory import InMemory
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.volume.window import (
    Window,
    WindowCache,
    WindowRule,
    cache_folder,
    find_window,
    sample_boxes,
)
from canvas_fm.errors import CanvasError


def noise(shape=(40, 70, 90), dtype="uint16", seed=0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(2.0, 60.0, shape).astype(dtype)


def write_plain(path, voxels, chunks=(16, 32, 32), fill_value=0):
    array = zarr.create_array(
        path, shape=voxels.shape, chunks=chunks, dtype=voxels.dtype, zarr_format=2, fill_value=fill_value
    )
    array[...] = voxels
    return path


def write_ours(path, voxels, **options):
    with Volume.create(path, voxels.shape, voxel_um=(4, 2, 2), dtype=voxels.dtype, **options) as writer:
        writer.write((0, 0, 0), voxels)
    return path


def test_apply_is_linear_and_clipped():
    voxels = np.array([[[0, 10, 20, 30, 50, 60000]]], np.uint16)
    scaled = Window(10, 50).apply(voxels)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, [[[0, 0, 0.25, 0.5, 1, 1]]])
    np.testing.assert_array_equal(voxels, [[[0, 10, 20, 30, 50, 60000]]])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint64", "float32", "float64"])
def test_the_default_is_numpys_percentiles_of_all_voxels(tmp_path, dtype):
    voxels = noise(dtype=dtype)
    if np.dtype(dtype).kind == "i":
        voxels = voxels - np.asarray(90, dtype)
    found = Volume.open(write_ours(tmp_path / "a.zarr", voxels)).window
    assert found == pytest.approx(tuple(np.percentile(voxels, [0.5, 99.9])))
    plain = Volume.open(write_plain(tmp_path / "b.zarr", voxels), voxel_um=(4, 2, 2))
    assert plain.window == found


def test_the_median_rule_scales_by_the_median(tmp_path):
    voxels = noise()
    volume = Volume.open(write_ours(tmp_path / "a.zarr", voxels))
    assert volume.window_by(WindowRule("median", 0, 10)) == (0.0, 10 * np.median(voxels))
    assert volume.window_by(WindowRule("percentiles", 10, 90)) == tuple(np.percentile(voxels, [10, 90]))


def test_blocks_of_nothing_but_the_fill_value_are_left_out(tmp_path):
    voxels = np.zeros((64, 128, 128), np.uint16)
    voxels[:32, :64, 64:] = noise((32, 64, 64))
    expected = tuple(np.percentile(voxels[:32, :64, 64:], [0.5, 99.9]))
    assert Volume.open(write_ours(tmp_path / "a.zarr", voxels)).window == pytest.approx(expected)
    filled = np.where(voxels == 0, 7, voxels).astype(np.uint16)
    path = write_plain(tmp_path / "b.zarr", filled, fill_value=7)
    expected = tuple(np.percentile(filled[:32, :64, 64:], [0.5, 99.9]))
    volume = Volume.open(path, voxel_um=(1, 1, 1), missing_chunks="empty")
    assert volume.window == pytest.approx(expected)


def test_the_same_voxels_have_the_same_window_however_they_are_stored(tmp_path):
    voxels = noise()
    voxels[:, :, 64:] = 0
    expected = Volume.open(write_ours(tmp_path / "a.zarr", voxels)).window
    for chunks in [(40, 70, 90), (1, 70, 90), (7, 11, 13)]:
        path = write_plain(tmp_path / f"{chunks[0]}.zarr", voxels, chunks)
        assert Volume.open(path, voxel_um=(4, 2, 2), missing_chunks="empty").window == expected
    tifffile.imwrite(tmp_path / "stack.tif", voxels, photometric="minisblack")
    assert Volume.open(tmp_path / "stack.tif", voxel_um=(4, 2, 2)).window == expected


def test_a_large_volume_is_sampled_the_same_way_each_time(monkeypatch):
    monkeypatch.setattr(window_module, "SAMPLE", 200_000)
    monkeypatch.setattr(window_module, "_PART", 10_000)
    voxels = noise((64, 200, 200))
    looked_at = []

    def read(start, stop):
        looked_at.append((tuple(start), tuple(stop)))
        return voxels[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]

    found = [find_window("a", read, voxels.shape, (16, 32, 32), voxels.dtype, 0) for _ in range(2)]
    assert found[0] == found[1]
    half = len(looked_at) // 2
    assert looked_at[:half] == looked_at[half:]
    amount = sum(np.prod(np.subtract(stop, start)) for start, stop in looked_at[:half])
    assert 200_000 <= amount < 230_000
    assert found[0] == pytest.approx(tuple(np.percentile(voxels, [0.5, 99.9])), rel=0.1)


def test_sampled_boxes_lie_inside_one_chunk_each_and_come_from_everywhere(monkeypatch):
    monkeypatch.setattr(window_module, "SAMPLE", 1000)
    shape, chunk = (100, 3000, 2000), (1, 3000, 2000)
    boxes = list(sample_boxes(shape, chunk))
    assert len(boxes) == 100
    assert {start[0] for start, _ in boxes} == set(range(100))
    for start, stop in boxes:
        assert all(0 <= a < b <= n for a, b, n in zip(start, stop, shape, strict=True))
        assert stop[0] - start[0] == 1
        assert np.prod(np.subtract(stop, start)) <= 2**20
    assert len({start[1] for start, _ in boxes}) > 50


def test_what_has_no_window_says_so(tmp_path):
    constant = np.full((8, 8, 8), 5, np.uint16)
    with pytest.raises(CanvasError, match=r"a.zarr has no intensity window .* both ends are 5"):
        _ = Volume.open(write_ours(tmp_path / "a.zarr", constant)).window
    empty = write_ours(tmp_path / "b.zarr", np.zeros((8, 8, 8), np.uint8))
    with pytest.raises(CanvasError, match=r"b.zarr is constant"):
        _ = Volume.open(empty).window
    voxels = noise(dtype="float32")
    voxels[3, 4, 5] = np.nan
    volume = Volume.open(write_plain(tmp_path / "c.zarr", voxels), voxel_um=(1, 1, 1))
    with pytest.raises(CanvasError, match=r"c.zarr holds NaN or infinite values"):
        _ = volume.window


@pytest.mark.parametrize(
    "rule", [("percentiles", 50, 50), ("percentiles", -1, 99), ("percentiles", 0, 101), ("median", 3, 2)]
)
def test_a_rule_that_is_none_is_refused(rule):
    with pytest.raises(CanvasError, match="window rule"):
        WindowRule(*rule)


def test_ours_is_stored_and_a_foreign_store_is_never_written_to(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ours, plain = write_ours(tmp_path / "a.zarr", noise()), write_plain(tmp_path / "b.zarr", noise())
    attributes = json.loads((ours / "zarr.json").read_text())["attributes"]["canvas_fm"]
    assert attributes["window"] == pytest.approx(list(np.percentile(noise(), [0.5, 99.9])))
    before = {path: path.stat().st_mtime_ns for path in plain.rglob("*")}
    window = Volume.open(plain, voxel_um=(1, 1, 1)).window
    assert {path: path.stat().st_mtime_ns for path in plain.rglob("*")} == before
    assert cache_folder() == tmp_path / "cache/canvas-fm/windows"
    (cached,) = cache_folder().iterdir()
    monkeypatch.setattr("canvas_fm.data.volume.volume.find_window", None)
    assert Volume.open(plain, voxel_um=(1, 1, 1)).window == window
    assert Volume.open(ours).window == window
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cached.write_text("{")
    assert Volume.open(plain, voxel_um=(1, 1, 1)).window == window


def test_a_changed_foreign_store_gets_a_new_window(tmp_path):
    path = write_plain(tmp_path / "a.zarr", noise())
    first = Volume.open(path, voxel_um=(1, 1, 1)).window
    zarr.open_array(path, mode="r+")[10:20] = 5000
    later = Volume.open(path, voxel_um=(1, 1, 1)).window
    assert later != first
    chunk = path / "0.0.0"
    os.utime(chunk, ns=(1, chunk.stat().st_mtime_ns + 1))
    assert Volume.open(path, voxel_um=(1, 1, 1)).window == later


def test_a_window_found_beside_damage_is_not_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write_plain(tmp_path / "a.zarr", noise())
    chunk = path / "1.1.1"
    chunk.write_bytes(chunk.read_bytes()[:50])
    assert Volume.open(path, voxel_um=(1, 1, 1), on_bad_chunk="skip").window.low == 0
    assert not cache_folder().exists()


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert Volume.open(write_plain(tmp_path / "a.zarr", noise()), voxel_um=(1, 1, 1)).window.low >= 0


def test_a_user_without_a_home_does_without_a_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 2)  # no name and no home belong to it
    path = write_plain(tmp_path / "a.zarr", noise())
    assert Volume.open(path, voxel_um=(1, 1, 1)).window.low >= 0
    assert cache_folder() is None


def test_any_damage_to_a_cached_window_means_that_it_is_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cache, rule = WindowCache(["a"], InMemory(noise())), WindowRule()
    cache.put(rule, Window(10.0, 20.0), ["0/0"])
    assert cache.get(rule) == Window(10.0, 20.0)
    content = cache.path.read_bytes()
    for bit in range(0, 8 * len(content), 3):  # each bit of a byte in turn
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        cache.path.write_bytes(damaged)
        assert cache.get(rule) is None
