"""Embeddings of points: against one crop at a time cut by hand, in any order, batch and place."""

from __future__ import annotations

import logging
import shutil

import numpy as np
import pytest
import torch
import zarr

from canvas_fm.data.crops import CropReader
from canvas_fm.data.points import Points
from canvas_fm.data.volume import Volume
from canvas_fm.data.window import Window, WindowRule
from canvas_fm.errors import CanvasError, DamagedStore, ModelMismatch, StorageFull
from canvas_fm.inference import source, unfinished
from canvas_fm.inference.embed import embed, embed_crops, embed_to_store
from canvas_fm.inference.embeddings import Embeddings

from .conftest import CROP, VOXEL_UM, make_encoder, noise, random_points, write_volume  # isort: skip


def by_hand(encoder, volume, zyx, pool="mean") -> np.ndarray:
    """One point at a time: pad, cut, window and pool in plain numpy."""
    low, high = volume.window_by(encoder.config.window_rule)
    margin = 20
    padded = np.pad(volume.read((0, 0, 0), volume.shape_zyx).astype(np.float64), margin)
    rows = []
    for point in zyx:
        start = [int(np.floor(p + 0.5)) - s // 2 + margin for p, s in zip(point, CROP, strict=True)]
        crop = padded[tuple(slice(a, a + s) for a, s in zip(start, CROP, strict=True))]
        crop = np.clip((crop - low) / (high - low), 0, 1).astype(np.float32)
        with torch.inference_mode():
            tokens = encoder.net.tokens(torch.from_numpy(crop)[None, None])[0].numpy()
        grid = tokens[1:].reshape(4, 4, 4, -1)
        mean, centre = tokens[1:].mean(0), grid[1:3, 1:3, 1:3].mean((0, 1, 2))
        rows.append({"mean": mean, "cls": tokens[0], "centre": centre, "contrast": centre - mean}[pool])
    return np.stack(rows)


def assert_same(a: np.ndarray, b: np.ndarray, relative: float) -> None:
    assert a.shape == b.shape
    off = np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)
    assert off.max() <= relative, f"off by {off.max():.3g} of the norm, row {off.argmax()}"


@pytest.mark.parametrize("pool", ["mean", "cls", "centre", "contrast"])
def test_each_row_is_the_embedding_of_its_own_crop(encoder, volume, points, pool):
    found = embed(encoder, volume, points.zyx, pool=pool, device="cpu", batch=32)
    assert found.dtype == np.float32
    assert_same(found, by_hand(encoder, volume, points.zyx, pool), 1e-5)


def test_a_vector_for_each_patch(encoder, volume, points):
    """Their mean is the embedding, and the grid holds them where the patches lie."""
    tokens = embed(encoder, volume, points.zyx, pool="tokens", device="cpu", batch=32)
    assert tokens.shape == (len(points), 64, encoder.dim)
    assert_same(tokens.mean(1), by_hand(encoder, volume, points.zyx), 1e-5)
    grid = embed(encoder, volume, points.zyx, pool="grid", device="cpu", batch=32)
    assert grid.shape == (len(points), encoder.dim, 4, 4, 4)
    np.testing.assert_array_equal(grid[:, :, 3, 0, 2], tokens[:, 3 * 16 + 0 * 4 + 2])


def test_a_store_of_patches_goes_on_after_a_stop_and_is_refused_where_one_vector_is_needed(
    encoder, volume, points, tmp_path, monkeypatch
):
    from canvas_fm.heads.probe_data import read_probe_data
    from canvas_fm.inference.export import export
    from canvas_fm.inference.search import Index

    write, done = unfinished.Unfinished.write, []

    def stop_after_one(self, block, vectors):
        write(self, block, vectors)
        done.append(block)
        if len(done) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(unfinished.Unfinished, "write", stop_after_one)
    zyx = np.concatenate([points.zyx] * 2)[:100]
    many = Points(zyx, {"label": np.arange(100) % 2})
    out = tmp_path / "x.emb.zarr"
    with pytest.raises(KeyboardInterrupt):
        embed_to_store(encoder, volume, many, out, pool="grid", device="cpu")
    found = embed_to_store(encoder, volume, many, out, pool="grid", device="cpu")
    assert done == [0, 1]
    assert found.whole_shape == (100, encoder.dim, 4, 4, 4)
    expected = embed(encoder, volume, zyx, pool="grid", device="cpu")
    np.testing.assert_allclose(found.vectors, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.read([7, 3]), found.vectors[[7, 3]])
    export(found, tmp_path / "x.npz")
    assert np.load(tmp_path / "x.npz")["embeddings"].shape == found.whole_shape
    for use in (
        lambda: export(found, tmp_path / "x.parquet"),
        lambda: Index.build(found, tmp_path / "x.index"),
        lambda: read_probe_data([out], labels="label"),
    ):
        with pytest.raises(CanvasError, match=r"the grid of each crop, .* one vector a point is needed"):
            use()


def test_the_encoders_own_pool_is_the_default(encoder, volume, points, tmp_path):
    other = make_encoder(tmp_path / "cls", pool="cls")
    some = points.zyx[:10]
    np.testing.assert_array_equal(embed(other, volume, some), embed(other, volume, some, pool="cls"))
    np.testing.assert_array_equal(embed(encoder, volume, some), embed(encoder, volume, some, pool="mean"))


def test_a_batch_gives_the_same_alone_shuffled_or_split(encoder, volume, points):
    whole = embed(encoder, volume, points.zyx, batch=150)
    order = np.random.default_rng(0).permutation(150)
    assert_same(embed(encoder, volume, points.zyx[order], batch=150), whole[order], 1e-6)
    for batch in (7, 64):
        assert_same(embed(encoder, volume, points.zyx, batch=batch), whole, 1e-5)
    alone = np.concatenate([embed(encoder, volume, point[None]) for point in points.zyx[:10]])
    assert_same(alone, whole[:10], 1e-5)


def test_crops_points_and_store_give_the_same(encoder, volume, points, tmp_path):
    raw = CropReader(volume, CROP).read_points(points.zyx)
    windowed = volume.window.apply(raw)
    crops = embed_crops(encoder, windowed, batch=64)
    np.testing.assert_array_equal(embed_crops(encoder, raw, window=volume.window, batch=64), crops)
    np.testing.assert_array_equal(embed_crops(encoder, windowed[:, None], batch=64), crops)
    assert_same(embed(encoder, volume, points.zyx, batch=64), crops, 1e-6)
    stored = embed_to_store(encoder, volume, points, tmp_path / "x.emb.zarr", batch=64)
    assert_same(stored.vectors, crops, 1e-6)


def test_a_model_may_name_another_window_rule(volume, points, tmp_path):
    other = make_encoder(tmp_path / "median", window_rule=WindowRule("median", 0.0, 2.0))
    found = embed(other, volume, points.zyx[:20])
    assert_same(found, by_hand(other, volume, points.zyx[:20]), 1e-5)


def test_bf16_is_near_and_not_the_same(encoder, volume, points):
    exact = embed(encoder, volume, points.zyx, device="cpu")
    rough = embed(encoder, volume, points.zyx, device="cpu", precision="bf16")
    assert_same(rough, exact, 0.05)
    assert np.abs(rough - exact).max() > 0


def test_a_volume_with_other_voxels_is_refused_resampled_or_taken_as_it_is(encoder, tmp_path, points):
    coarse = write_volume(tmp_path / "coarse.zarr", noise((30, 50, 70)), voxel_um=(8.0, 1.8, 1.8))
    some = points.zyx[:20]
    with pytest.raises(ModelMismatch, match="--resample"):
        embed(encoder, coarse, some)
    with pytest.raises(ModelMismatch, match="--any-voxel"):
        embed_to_store(encoder, coarse, points, tmp_path / "x.emb.zarr")
    assert not (tmp_path / "x.emb.zarr.unfinished").exists()
    assert_same(embed(encoder, coarse, some, any_voxel=True), by_hand(encoder, coarse, some), 1e-5)
    stored = embed_to_store(encoder, coarse, points, tmp_path / "x.emb.zarr", resample=True, batch=32)
    assert stored.attributes["resample_to_um"] == [4.0, 1.8, 1.8]
    assert_same(stored.vectors, embed(encoder, coarse, points.zyx, resample=True, batch=32), 1e-6)
    assert np.abs(stored.vectors[:20] - embed(encoder, coarse, some, any_voxel=True)).max() > 1e-3


def test_a_crop_larger_than_the_volume_is_refused(encoder, tmp_path):
    thin = write_volume(tmp_path / "thin.zarr", noise((7, 50, 70)))
    with pytest.raises(CanvasError, match=r"covers 8 × 16 × 16 voxels .* larger than .*has 7 × 50 × 70"):
        embed(encoder, thin, np.zeros((1, 3)))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"pool": "max"}, "pool is 'max'; give one of mean, cls, centre"),
        ({"batch": 0}, "batch is 0"),
        ({"precision": "fp8"}, "precision 'fp8' is not known"),
        ({"device": "tpu"}, "tpu"),
    ],
)
def test_options_that_do_not_exist_are_refused(encoder, volume, points, options, sentence):
    with pytest.raises(CanvasError, match=sentence):
        embed(encoder, volume, points.zyx, **options)


def test_points_outside_and_no_points_are_refused(encoder, volume, tmp_path):
    with pytest.raises(CanvasError, match="1 of 1, first at row 1"):
        embed(encoder, volume, np.array([[0.0, 0.0, 70.0]]))
    with pytest.raises(CanvasError, match="there are no points"):
        embed_to_store(encoder, volume, Points(zyx=np.empty((0, 3))), tmp_path / "x.emb.zarr")
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_that_gives_nan_is_told(volume, points, tmp_path):
    broken = make_encoder(tmp_path / "broken")
    with torch.no_grad():
        broken.net.norm.bias[3] = float("nan")
    with pytest.raises(CanvasError, match="gave NaN or infinite values for 10 of 10 crops"):
        embed(broken, volume, points.zyx[:10])


def test_nan_in_a_float_volume_is_told_with_its_place(encoder, tmp_path, monkeypatch):
    """The window looks at a sample of a large volume only, so that NaN can pass it."""
    voxels = noise((30, 50, 70)).astype(np.float32)
    voxels[20, 30, 40] = np.nan
    zarr.create_array(tmp_path / "float.zarr", data=voxels, chunks=(8, 16, 16))
    volume = Volume.open(tmp_path / "float.zarr", voxel_um=VOXEL_UM)
    monkeypatch.setattr(Volume, "window_by", lambda self, rule: Window(0.0, 4000.0))
    assert np.isfinite(embed(encoder, volume, np.array([[5.0, 5.0, 5.0]]))).all()
    with pytest.raises(CanvasError, match=r"float.zarr holds NaN .* around z, y, x = 19, 30.5, 40"):
        embed(encoder, volume, np.array([[5.0, 5.0, 5.0], [19.0, 30.5, 40.0]]))


# --- the store


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
    true, seen = unfinished.Unfinished.write, []

    def write(self, block, vectors):
        if len(seen) == blocks:
            raise Stop
        seen.append(block)
        true(self, block, vectors)

    monkeypatch.setattr(unfinished.Unfinished, "write", write)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def count_crops(monkeypatch) -> list[int]:
    from canvas_fm.inference.embed import Runner

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
    reader = source.Source.of(encoder.config, volume, resample=False, any_voxel=False)
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


def test_any_damage_to_the_marks_is_named(encoder, volume, points, tmp_path, small_blocks, monkeypatch):
    out = tmp_path / "x.emb.zarr"
    stop_after(monkeypatch, 3)
    with pytest.raises(Stop):
        embed_to_store(encoder, volume, points, out)
    marks = tmp_path / "x.emb.zarr.unfinished" / "progress.json"
    good = marks.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(20):
        data = bytearray(good)
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        marks.write_bytes(data)
        with pytest.raises(
            DamagedStore, match=r"progress.json.*delete .*x.emb.zarr.unfinished and start again"
        ):
            embed_to_store(encoder, volume, points, out)
    marks.write_bytes(good[: len(good) // 2])
    with pytest.raises(DamagedStore, match="cannot be read"):
        embed_to_store(encoder, volume, points, out)


def test_two_processes_cannot_write_one_store(encoder, volume, points, tmp_path):
    out = tmp_path / "x.emb.zarr"
    with (
        unfinished.Unfinished(out, {}, np.arange(3), (4,)),
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
