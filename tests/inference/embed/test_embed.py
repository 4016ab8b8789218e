"""Embeddings of points: against one crop at a time cut by hand, in any order, batch and place."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest
import torch
import zarr

import canvas_fm as cf
from canvas_fm.data.crops.reader import CropReader
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.volume.window import Window, WindowRule
from canvas_fm.errors import CanvasError, ModelMismatch
from canvas_fm.inference.embed import embed as embedding
from canvas_fm.inference.embed.embed import EmbeddingBlocks, embed, embed_crops, embed_to_store
from canvas_fm.inference.embed.store import resumable_embeddings as unfinished
from canvas_fm.inference.run_flags import EmbedOptions

from ..conftest import CROP, assert_same, by_hand, VOXEL_UM, make_encoder, noise, write_volume  # isort: skip
from tests.support.dask_cluster import cluster_of_threads


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
    from canvas_fm.heads.probe.labelled_embeddings import read_probe_data
    from canvas_fm.inference.embed.store.export import export
    from canvas_fm.inference.search.index.index import Index

    write, done = unfinished.ResumableEmbeddings.keep, []

    def stop_after_one(self, block, vectors, bad_chunks):
        write(self, block, vectors, bad_chunks)
        done.append(block)
        if len(done) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(unfinished.ResumableEmbeddings, "keep", stop_after_one)
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


def test_a_scheduler_and_pickled_blocks_give_the_same_vectors(encoder, volume, points, tmp_path, monkeypatch):
    monkeypatch.setattr(unfinished, "BLOCK", 16)
    alone = embed_to_store(encoder, volume, points, tmp_path / "a.emb.zarr", device="cpu")
    with cluster_of_threads(1) as local:
        where = {"scheduler": local.scheduler_address, "device": "cpu"}
        together = embed_to_store(encoder, volume, points, tmp_path / "b.emb.zarr", **where)
    assert_same(together.vectors, alone.vectors, 1e-6)
    assert together.attributes["inputs"] == alone.attributes["inputs"]
    job = EmbeddingBlocks(encoder, volume, points.zyx, {5: np.arange(9)}, EmbedOptions(device="cpu"))
    job.tile(5)
    vectors, bad = pickle.loads(pickle.dumps(job)).tile(5)
    assert_same(vectors, alone.vectors[:9], 1e-6)
    assert bad == ()


def test_damage_that_workers_or_an_earlier_run_skipped_is_told(
    encoder, volume, points, tmp_path, monkeypatch
):
    shutil.copytree(volume.path, tmp_path / "d.zarr")
    chunk = max((tmp_path / "d.zarr").rglob("c/*/*/*"), key=lambda path: path.stat().st_size)
    chunk.write_bytes(b"!" * 100)

    def elsewhere(job, numbers, **_):
        sent = pickle.loads(pickle.dumps(job))
        yield from ((number, sent.tile(number)) for number in numbers)

    monkeypatch.setattr(embedding, "map_tiles", elsewhere)
    for workers in (2, 2, 1):  # the second and third find the store finished
        damaged = Volume.open(tmp_path / "d.zarr", on_bad_chunk="skip")
        embed_to_store(encoder, damaged, points, tmp_path / "d.emb.zarr", device="cpu", workers=workers)
        assert len(damaged.bad_chunks) == 1


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
    with pytest.raises(ModelMismatch, match="--ignore-voxel-size"):
        embed_to_store(encoder, coarse, points, tmp_path / "x.emb.zarr")
    assert not (tmp_path / "x.emb.zarr.unfinished").exists()
    assert_same(embed(encoder, coarse, some, ignore_voxel_size=True), by_hand(encoder, coarse, some), 1e-5)
    stored = embed_to_store(encoder, coarse, points, tmp_path / "x.emb.zarr", resample=True, batch=32)
    assert stored.attributes["resample_to_um"] == [4.0, 1.8, 1.8]
    assert_same(stored.vectors, embed(encoder, coarse, points.zyx, resample=True, batch=32), 1e-6)
    assert np.abs(stored.vectors[:20] - embed(encoder, coarse, some, ignore_voxel_size=True)).max() > 1e-3


def test_a_crop_larger_than_the_volume_is_refused(encoder, tmp_path):
    thin = write_volume(tmp_path / "thin.zarr", noise((7, 50, 70)))
    with pytest.raises(CanvasError, match=r"covers 8 × 16 × 16 voxels .* larger than .*has 7 × 50 × 70"):
        embed(encoder, thin, np.zeros((1, 3)))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"pool": "max"}, "pool is 'max'; expected 'mean', 'cls', 'centre'"),
        ({"batch": 0}, "batch is 0"),
        ({"precision": "fp8"}, "precision is 'fp8'; expected 'fp32', 'bf16'"),
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
    broken = cf.save(broken, tmp_path / "saved" / "broken")
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
