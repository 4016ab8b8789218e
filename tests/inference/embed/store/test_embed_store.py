"""A store of embeddings: what it keeps, how it goes on after a stop, damage, full disks and bad chunks."""

from __future__ import annotations

import logging
import shutil

import numpy as np
import pytest

from canvas_fm.data.crops.reader import CropReader
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError, DamagedStore, StorageFull
from canvas_fm.inference.embed import point_crops as source
from canvas_fm.inference.embed.embed import embed_to_store
from canvas_fm.inference.embed.store import resumable_embeddings as unfinished
from canvas_fm.inference.embed.store.embedding_store import Embeddings

from ...conftest import assert_same, by_hand, make_encoder, noise, random_points, write_volume  # isort: skip


def test_a_store_keeps_rows_points_columns_and_where_they_came_from(encoder, volume, points, tmp_path):
    out = tmp_path / "x.emb.zarr"
    stored = embed_to_store(encoder, volume, points, out, pool="centre", batch=50)
    assert_same(stored.vectors, by_hand(encoder, volume, points.zyx, "centre"), 1e-5)
    np.testing.assert_array_equal(stored.zyx, points.zyx)
    np.testing.assert_array_equal(stored.columns["region"], points.columns["region"])
    assert stored.encoder_sha256 == encoder.sha256
    assert (stored.pool, stored.precision, stored.volume) == ("centre", "fp32", "brain")
    assert tuple(stored.window) == tuple(volume.window)
    assert stored.attributes["bad_chunks"] == []
    assert [path.name for path in tmp_path.iterdir()] == ["x.emb.zarr"]


def test_cells_of_a_real_brain(real_data, tmp_path):
    """A foreign store: no manifest, so that its files' sizes and times stand for what it holds."""
    cube = real_data / "delivr_microglia" / "1874"
    volume = Volume.open(cube / "raw.zarr")
    encoder = make_encoder(tmp_path / "encoder", voxel_um=volume.voxel_um)
    cells = Points.read(cube / "centroids.csv")
    some = Points(cells.zyx[:40], {name: values[:40] for name, values in cells.columns.items()})
    stored = embed_to_store(encoder, volume, some, tmp_path / "x.emb.zarr", pool="centre")
    assert_same(stored.vectors, by_hand(encoder, volume, some.zyx, "centre"), 1e-5)
    np.testing.assert_array_equal(stored.columns["n_voxels"], some.columns["n_voxels"])
    again = Volume.open(cube / "raw.zarr")
    assert embed_to_store(encoder, again, some, tmp_path / "x.emb.zarr", pool="centre").verify()


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(unfinished, "BLOCK", 32)


class Stop(Exception):
    pass


def stop_after(monkeypatch, blocks: int) -> None:
    """The work ends, as by a kill, before this block is marked."""
    true, seen = unfinished.ResumableEmbeddings.keep, []

    def write(self, block, vectors, bad_chunks):
        if len(seen) == blocks:
            raise Stop
        seen.append(block)
        true(self, block, vectors, bad_chunks)

    monkeypatch.setattr(unfinished.ResumableEmbeddings, "keep", write)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def count_crops(monkeypatch) -> list[int]:
    from canvas_fm.inference.embed.embed import Runner

    true, seen = Runner.__call__, []

    def call(self, crops):
        seen.append(len(crops))
        return true(self, crops)

    monkeypatch.setattr(Runner, "__call__", call)
    return seen


def test_it_goes_on_where_it_stopped_and_gives_the_same_bytes(
    encoder, volume, points, tmp_path, small_blocks, monkeypatch
):
    whole, out = tmp_path / "whole.emb.zarr", tmp_path / "x.emb.zarr"
    embed_to_store(encoder, volume, points, whole, batch=10)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stop):
            embed_to_store(encoder, volume, points, out, batch=10)
    with pytest.raises(CanvasError, match="is unfinished"):
        Embeddings.open(out)
    seen = count_crops(monkeypatch)
    embed_to_store(encoder, volume, points, out, batch=10)
    assert sum(seen) == 150 - 2 * 32
    assert files(out) == files(whole)
    seen.clear()
    assert embed_to_store(encoder, volume, points, out, batch=10).path == out
    assert seen == []


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"pool": "cls"}, r"pool \(was mean, is cls\)"),
        ({"precision": "bf16"}, r"precision \(was fp32, is bf16\)"),
        ({"encoder": "other"}, r"encoder \("),
        ({"points": "moved"}, r"points \("),
        ({"points": "relabelled"}, r"points \("),
        ({"volume": "other"}, r"volume \("),
    ],
    ids=["pool", "precision", "encoder", "points", "labels", "volume"],
)
def test_other_inputs_are_refused_by_name(
    encoder, volume, points, tmp_path, small_blocks, monkeypatch, change, named, finished
):
    out = tmp_path / "x.emb.zarr"
    if finished:
        embed_to_store(encoder, volume, points, out)
    else:
        with monkeypatch.context() as patch:
            stop_after(patch, 1)
            with pytest.raises(Stop):
                embed_to_store(encoder, volume, points, out)
    other: dict = dict(encoder=encoder, volume=volume, points=points)
    if "encoder" in change:
        other["encoder"] = make_encoder(tmp_path / "other", seed=1)
    elif "volume" in change:
        other["volume"] = write_volume(tmp_path / "brain.zarr", noise(volume.shape_zyx, seed=1))
    elif change.get("points") == "moved":
        other["points"] = Points(points.zyx * 0.99, points.columns, points.meta)
    elif change.get("points") == "relabelled":
        labels = {**points.columns, "label": 1 - points.columns["label"]}
        other["points"] = Points(points.zyx, labels, points.meta)
    options = {key: value for key, value in change.items() if key in ("pool", "precision")}
    before = files(tmp_path)
    with pytest.raises(CanvasError, match=f"was made from other inputs: .*{named}"):
        embed_to_store(**other, out=out, **options)
    after = files(tmp_path)
    assert {name: after[name] for name in before} == before


def test_damage_to_unfinished_work_is_found_and_computed_again(
    encoder, volume, points, tmp_path, small_blocks, monkeypatch, caplog
):
    whole, out = tmp_path / "whole.emb.zarr", tmp_path / "x.emb.zarr"
    embed_to_store(encoder, volume, points, whole)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stop):
            embed_to_store(encoder, volume, points, out)
    begun = tmp_path / "x.emb.zarr.unfinished"
    kept = tmp_path / "kept"
    shutil.copytree(begun, kept)
    reader = source.PointCrops.of(encoder.config, volume, resample=False, ignore_voxel_size=False)
    row = int(reader.order(points.zyx)[40])  # in the second block
    for damage in ("flip", "truncate", "remove"):
        shutil.rmtree(begun, ignore_errors=True)
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(kept, begun)
        rows = begun / "rows.f32"
        if damage == "flip":
            data = bytearray(rows.read_bytes())
            data[row * 48 * 4 + 5] ^= 16
            rows.write_bytes(data)
        elif damage == "truncate":
            rows.write_bytes(rows.read_bytes()[:-7])
        else:
            rows.unlink()
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="canvas_fm"):
            embed_to_store(encoder, volume, points, out)
        lost = 1 if damage == "flip" else 3
        assert f"{lost} of 3 finished blocks were damaged" in caplog.text
        assert files(out) == files(whole)


def test_work_with_a_damaged_mark_or_of_an_earlier_version_is_done_again(
    encoder, volume, points, tmp_path, small_blocks, monkeypatch, caplog
):
    whole, out, kept = tmp_path / "whole.emb.zarr", tmp_path / "x.emb.zarr", tmp_path / "kept"
    embed_to_store(encoder, volume, points, whole)
    begun = tmp_path / "x.emb.zarr.unfinished"
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stop):
            embed_to_store(encoder, volume, points, out)
    shutil.copytree(begun, kept)
    good = (begun / "mark.json").read_bytes()
    rng = np.random.default_rng(0)

    def flipped():
        data = bytearray(good)
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        return bytes(data)

    seen = count_crops(monkeypatch)
    for mark in (flipped(), flipped(), flipped(), good[: len(good) // 2], b"", b"[]", None):
        shutil.rmtree(begun, ignore_errors=True)
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(kept, begun)
        (begun / "mark.json").unlink()
        (begun / ("progress.json" if mark is None else "mark.json")).write_bytes(mark or b"{}")
        caplog.clear()
        seen.clear()
        with caplog.at_level(logging.WARNING, logger="canvas_fm"):
            embed_to_store(encoder, volume, points, out)
        assert sum(seen) == len(points)
        assert "everything is computed again" in caplog.text
        assert files(out) == files(whole)


def test_two_processes_cannot_write_one_store(encoder, volume, points, tmp_path):
    out = tmp_path / "x.emb.zarr"
    with (
        unfinished.ResumableEmbeddings(out, {}, np.arange(3), (4,)),
        pytest.raises(CanvasError, match="another process is writing"),
    ):
        embed_to_store(encoder, volume, points, out)


def test_a_disk_too_small_is_said_before_the_work(encoder, volume, points, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(StorageFull, match=r"needs 0.1 MB while it is made, the disk has 0.0 MB left"):
        embed_to_store(encoder, volume, points, tmp_path / "x.emb.zarr")


def test_a_disk_that_fills_on_the_way_is_said_and_the_work_goes_on_after(
    encoder, volume, points, tmp_path, small_blocks, monkeypatch
):
    import errno
    import os

    whole, out = tmp_path / "whole.emb.zarr", tmp_path / "x.emb.zarr"
    embed_to_store(encoder, volume, points, whole)
    true, seen = os.fsync, []

    def fsync(handle):
        seen.append(handle)
        if len(seen) == 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        true(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(StorageFull, match="free some space and run the same command again"):
            embed_to_store(encoder, volume, points, out)
    embed_to_store(encoder, volume, points, out)
    assert files(out) == files(whole)


def test_a_bad_chunk_is_an_error_or_zeros_that_the_store_remembers(encoder, tmp_path, points):
    volume = write_volume(tmp_path / "brain.zarr", noise((30, 50, 70)), shard_zyx=(8, 16, 16))
    victim = next(path for path in sorted((tmp_path / "brain.zarr").rglob("c/1/1/1")))
    data = bytearray(victim.read_bytes())
    data[20] ^= 1
    victim.write_bytes(data)
    out = tmp_path / "x.emb.zarr"
    with pytest.raises(DamagedStore, match="c/1/1/1"):
        embed_to_store(encoder, volume, points, out)
    skipping = Volume.open(tmp_path / "brain.zarr", on_bad_chunk="skip")
    stored = embed_to_store(encoder, skipping, points, out)
    assert len(stored.attributes["bad_chunks"]) == 1
    assert "c/1/1/1" in stored.attributes["bad_chunks"][0]
    assert_same(stored.vectors, by_hand(encoder, skipping, points.zyx), 1e-5)


def test_a_chunk_is_decoded_a_few_times_however_the_points_are_ordered(
    encoder, volume, tmp_path, small_blocks, monkeypatch
):
    """With a cache for 16 of the 80 chunks; 1,000 points in no order, each touching about 8 chunks."""
    seen: list[tuple[int, int, int]] = []

    class Counting(CropReader):
        def __init__(self, *args, **options):
            super().__init__(*args, **options, backend="zarr", cache_bytes=16 * 8 * 16 * 16 * 2)
            true = self._decoder.chunks

            def chunks(indices):
                seen.extend(indices)
                return true(indices)

            self._decoder.chunks = chunks

    monkeypatch.setattr(source, "CropReader", Counting)
    embed_to_store(encoder, volume, random_points(volume.shape_zyx, 1000), tmp_path / "x.emb.zarr")
    assert len(set(seen)) == 4 * 4 * 5
    assert len(seen) < 5 * len(set(seen))
