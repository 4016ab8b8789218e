"""What other tools read is what the store holds."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError, MissingExtra
from canvas_fm.inference.embed.store import export as module
from canvas_fm.inference.embed.store.embedding_store import Embeddings, write_store
from canvas_fm.inference.embed.store.export import export


def test_npz(tmp_path, store):
    path, vectors, points = store
    assert export(path, tmp_path / "out.npz") == tmp_path / "out.npz"
    with np.load(tmp_path / "out.npz") as found:
        np.testing.assert_array_equal(found["embeddings"], vectors)
        np.testing.assert_array_equal(found["points_zyx"], points.zyx)
        np.testing.assert_array_equal(found["ids"], np.arange(60))
        for name, values in points.columns.items():
            np.testing.assert_array_equal(found[f"column/{name}"], values)
        about = json.loads(str(found["about"]))
    assert about["encoder_sha256"] == "ab" * 32
    assert about["pool"] == "mean"
    assert about["voxel_um"] == [4.0, 1.8, 1.8]


def test_parquet(tmp_path, store, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    path, vectors, points = store
    monkeypatch.setattr(module, "_ROWS", 7)
    export(Embeddings.open(path), tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["id", "z", "y", "x", *points.columns, "embedding"]
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), np.float32), vectors)
    for axis, name in enumerate("zyx"):
        np.testing.assert_array_equal(table[name].to_numpy(), points.zyx[:, axis])
    assert table["region"].to_pylist() == points.columns["region"].tolist()
    about = json.loads(table.schema.metadata[b"canvas_fm"])
    assert about["encoder_sha256"] == "ab" * 32


def test_anndata(tmp_path, store):
    anndata = pytest.importorskip("anndata")
    path, vectors, points = store
    export(path, tmp_path / "out.h5ad")
    found = anndata.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_array_equal(found.X, vectors)
    np.testing.assert_allclose(found.obsm["spatial"], points.zyx[:, ::-1] * [1.8, 1.8, 4.0])
    np.testing.assert_array_equal(found.obsm["zyx"], points.zyx)
    assert found.uns["spatial_axes"] == "x, y, z in micrometres"
    assert found.uns["encoder"]["sha256"] == "ab" * 32
    assert found.uns["encoder"]["pool"] == "mean"
    assert list(found.obs_names) == [str(i) for i in range(60)]
    assert set(found.obs["volume"]) == {"brain"}
    np.testing.assert_array_equal(found.obs["label"], points.columns["label"])
    assert found.obs["region"].astype(str).tolist() == points.columns["region"].tolist()


def test_anndata_keeps_ids_that_repeat_beside_unique_names(tmp_path, store):
    anndata = pytest.importorskip("anndata")
    path, vectors, points = store
    twice = Points(zyx=points.zyx, columns={"id": np.arange(60) // 2})
    write_store(tmp_path / "twice.emb.zarr", vectors, twice, dict(Embeddings.open(path).attributes))
    export(tmp_path / "twice.emb.zarr", tmp_path / "out.h5ad")
    found = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert found.obs_names.is_unique
    np.testing.assert_array_equal(found.obs["id"], np.arange(60) // 2)


@pytest.mark.parametrize(("suffix", "package"), [(".parquet", "pyarrow"), (".h5ad", "anndata")])
def test_a_missing_extra_is_named_with_its_command(tmp_path, store, monkeypatch, suffix, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"writing {suffix} files needs {package}: pip install"):
        export(store[0], tmp_path / f"out{suffix}")
    assert not (tmp_path / f"out{suffix}").exists()


def test_an_unknown_suffix_is_refused(tmp_path, store):
    with pytest.raises(CanvasError, match=r"ends in '.csv'; embeddings export to .npz, .parquet, .h5ad"):
        export(store[0], tmp_path / "out.csv")


def test_what_is_there_stays_unless_it_is_to_be_replaced(tmp_path, store):
    out = tmp_path / "out.npz"
    out.write_text("mine")
    with pytest.raises(CanvasError, match="is there already"):
        export(store[0], out)
    assert out.read_text() == "mine"
    export(store[0], out, overwrite=True)
    assert np.load(out)["embeddings"].shape == (60, 12)


def test_a_folder_that_is_not_there_is_said(tmp_path, store):
    with pytest.raises(CanvasError, match="there is no folder"):
        export(store[0], tmp_path / "no" / "out.npz")


def test_a_damaged_store_leaves_no_file(tmp_path, store):
    path, _, _ = store
    (path / "embeddings/c/0/0").unlink()
    with pytest.raises(CanvasError, match="embeddings"):
        export(path, tmp_path / "out.npz")
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
