"""An embeddings store gives back what went in, and says so when it cannot."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from canvas_fm.data.points.points import Points
from canvas_fm.data.store.checked_store import MANIFEST
from canvas_fm.errors import CanvasError, DamagedStore
from canvas_fm.inference.embed.store import embedding_store as module
from canvas_fm.inference.embed.store.embedding_store import Embeddings, write_store


def test_a_store_gives_back_what_went_in(store):
    path, vectors, points = store
    found = Embeddings.open(path)
    assert len(found) == 60
    assert found.shape == (60, 12)
    np.testing.assert_array_equal(found.vectors, vectors)
    np.testing.assert_array_equal(found.zyx, points.zyx)
    np.testing.assert_array_equal(found.ids, np.arange(60))
    assert list(found.columns) == list(points.columns)
    for name, values in points.columns.items():
        np.testing.assert_array_equal(found.columns[name], values)
        assert found.columns[name].dtype.kind == values.dtype.kind
    assert found.points.meta == points.meta
    assert (found.pool, found.volume, found.marker, found.precision) == ("mean", "brain", "NeuN", "fp32")
    assert found.voxel_um == (4.0, 1.8, 1.8)
    assert tuple(found.window) == (3.0, 300.0)
    assert found.encoder_sha256 == "ab" * 32
    assert found.verify() > 8


def test_rows_come_in_the_order_asked_for_across_chunks(tmp_path, store, monkeypatch):
    _, vectors, points = store
    monkeypatch.setattr(module, "_CHUNK_BYTES", 7 * 12 * 4)  # chunks of 7 rows
    monkeypatch.setattr(module, "_CHUNK_ROWS", 13)
    write_store(tmp_path / "small.emb.zarr", vectors, points, dict(Embeddings.open(store[0]).attributes))
    found = Embeddings.open(tmp_path / "small.emb.zarr")
    assert (tmp_path / "small.emb.zarr/embeddings/c/8/0").exists()
    np.testing.assert_array_equal(found.vectors, vectors)
    np.testing.assert_array_equal(found.zyx, points.zyx)
    np.testing.assert_array_equal(found.columns["region"], points.columns["region"])
    rows = [59, 0, 13, 14, 0, 58, 7]
    np.testing.assert_array_equal(found.read(rows), vectors[rows])
    np.testing.assert_array_equal(found.read(slice(50, 3, -7)), vectors[50:3:-7])
    mask = points.columns["seen"]
    np.testing.assert_array_equal(found.read(mask), vectors[mask])
    assert found.read([]).shape == (0, 12)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([0, 60], "rows go from 0 to 60; .* has 60 rows"),
        ([-1], "rows go from -1"),
        (np.array([0.5]), "rows are float64"),
        (np.ones(3, bool), "rows are bool"),
        (np.array([[0]]), r"of shape \(1, 1\)"),
    ],
)
def test_rows_that_are_not_there_are_refused(store, rows, sentence):
    with pytest.raises(CanvasError, match=sentence):
        Embeddings.open(store[0]).read(rows)


def test_ids_are_the_points_own_where_they_have_some(tmp_path, store):
    _, vectors, points = store
    ids = np.array([f"cell-{i}" for i in range(60)])
    named = Points(zyx=points.zyx, columns={"id": ids, "a/b.c": np.arange(60), ".": np.arange(60.0), "": ids})
    write_store(tmp_path / "named.emb.zarr", vectors, named, dict(Embeddings.open(store[0]).attributes))
    found = Embeddings.open(tmp_path / "named.emb.zarr")
    np.testing.assert_array_equal(found.ids, ids)
    assert list(found.columns) == ["id", "a/b.c", ".", ""]
    for name, values in named.columns.items():
        np.testing.assert_array_equal(found.columns[name], values)
    assert found.verify()


def test_equal_input_gives_equal_bytes(tmp_path, store):
    path, vectors, points = store
    attributes = {**Embeddings.open(path).attributes}
    write_store(tmp_path / "again.emb.zarr", vectors, points, attributes)
    for file in path.rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "again.emb.zarr" / file.relative_to(path)).read_bytes()


def test_zeros_are_written_like_everything_else(tmp_path, store):
    """Zarr would leave chunks of zeros out, and a missing chunk could not be told from them."""
    _, _, points = store
    zeros = Points(zyx=points.zyx * 0, columns={"label": np.zeros(60, int), "name": np.array([""] * 60)})
    path = tmp_path / "zeros.emb.zarr"
    write_store(path, np.zeros((60, 12), np.float32), zeros, dict(Embeddings.open(store[0]).attributes))
    everything(path)
    assert not Embeddings.open(path).vectors.any()


def test_other_readers_of_zarr_can_read_it(store):
    path, vectors, points = store
    group = zarr.open_group(path, mode="r")
    np.testing.assert_array_equal(group["embeddings"][:], vectors)
    np.testing.assert_array_equal(group["columns/label"][:], points.columns["label"])


def test_what_is_no_finished_store_is_refused(tmp_path, store):
    with pytest.raises(CanvasError, match="does not exist"):
        Embeddings.open(tmp_path / "none.emb.zarr")
    (tmp_path / "begun.emb.zarr.unfinished").mkdir()
    with pytest.raises(CanvasError, match=r"begun.emb.zarr is unfinished: .*run the same embedding again"):
        Embeddings.open(tmp_path / "begun.emb.zarr")
    (tmp_path / "begun.emb.zarr").mkdir()
    with pytest.raises(CanvasError, match="is unfinished"):
        Embeddings.open(tmp_path / "begun.emb.zarr")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CanvasError, match="is no embeddings store"):
        Embeddings.open(tmp_path / "file")
    with pytest.raises(CanvasError, match="is no embeddings store"):
        Embeddings.open(tmp_path)


def test_a_volume_is_no_embeddings_store(tmp_path, position_volume):
    path, _ = position_volume((8, 16, 16))
    with pytest.raises(CanvasError, match="not embeddings"):
        Embeddings.open(path)


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def truncate(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def remove(path: Path, rng: random.Random) -> None:
    path.unlink()


def append(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes() + bytes([rng.randrange(256)]))


def swap(path: Path, rng: random.Random) -> None:
    """Another file's bytes under this name."""
    root = next(folder for folder in path.parents if folder.name == "hurt.emb.zarr")
    others = [other for other in root.rglob("*") if other.is_file()]
    others = [other for other in others if other.read_bytes() != path.read_bytes()]
    path.write_bytes(rng.choice(others).read_bytes())


def everything(path: Path) -> None:
    found = Embeddings.open(path)
    assert len(found.vectors) == len(found.zyx) == len(found.ids)
    assert all(len(values) == len(found) for values in found.columns.values())


@pytest.mark.parametrize("damage", [flip, truncate, remove, append, swap])
def test_no_damage_to_any_file_is_silent(tmp_path, store, monkeypatch, damage):
    """20 damages of each kind, 100 in all, spread over every file of the store."""
    _, vectors, points = store
    monkeypatch.setattr(module, "_CHUNK_BYTES", 20 * 12 * 4)
    whole, hurt = tmp_path / "whole.emb.zarr", tmp_path / "hurt.emb.zarr"
    write_store(whole, vectors, points, dict(Embeddings.open(store[0]).attributes))
    everything(whole)
    rng = random.Random(0)
    files = [file for file in sorted(whole.rglob("*")) if file.is_file()]
    assert len(files) >= 17
    for file in [*files, *rng.choices(files, k=max(0, 20 - len(files)))]:
        shutil.copytree(whole, hurt)
        target = hurt / file.relative_to(whole)
        damage(target, rng)
        with pytest.raises(DamagedStore) as told:
            everything(hurt)
        if file.name != MANIFEST:
            assert file.name in str(told.value)
        shutil.rmtree(hurt)


def test_damage_after_the_first_look_is_seen(store):
    path, _, _ = store
    found = Embeddings.open(path)
    found.read([0])
    flip(path / "embeddings/c/0/0", random.Random(1))
    with pytest.raises(DamagedStore, match="embeddings"):
        found.read([0])
