"""A map of an index against scikit-learn, and its columns against the stores that they came from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA

import canvas_fm as cf
from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError
from canvas_fm.inference.embed.store.embedding_store import Embeddings, write_store
from canvas_fm.inference.search import projection as search_map
from canvas_fm.inference.search.projection import column, column_kinds, embedding_map, methods

from ..conftest import ATTRIBUTES  # isort: skip

DIM = 12


def store(folder: Path, name: str, n: int, columns: dict[str, np.ndarray], **changes) -> Embeddings:
    rng = np.random.default_rng(n)
    # Large beside its own spread, where a careless covariance would lose its digits.
    vectors = (100 + rng.normal(size=(n, DIM)) * np.arange(DIM, 0, -1)).astype(np.float32)
    about = ATTRIBUTES | {"volume": name, "marker": "NeuN", "inputs": {"volume": name}} | changes
    write_store(folder / f"{name}.emb.zarr", vectors, Points(rng.uniform(0, 50, (n, 3)), columns), about)
    return Embeddings.open(folder / f"{name}.emb.zarr")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Embeddings]:
    folder = tmp_path_factory.mktemp("stores")
    words = np.array(["CTX", "HPF", ""])[np.arange(90) % 3]
    return [
        store(folder, "a", 90, {"score": np.linspace(0, 1, 90).astype(np.float32), "region": words}),
        store(folder, "b", 40, {"label": np.arange(40) % 2, "region": np.array(["CTX"] * 40)}, marker=None),
    ]


@pytest.fixture(scope="module")
def index(stores, tmp_path_factory: pytest.TempPathFactory) -> cf.Index:
    return cf.Index.build(stores, tmp_path_factory.mktemp("indexes") / "cells.index", metric="l2")


def test_pca_is_that_of_scikit_learn_block_by_block(index, stores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_map, "_BLOCK", 17)
    vectors = np.concatenate([each.vectors for each in stores]).astype(np.float64)
    oracle = PCA(2, svd_solver="full").fit(vectors)
    expected = oracle.transform(vectors)
    laid = embedding_map(index)
    assert laid.rows.tolist() == list(range(130))
    assert laid.share == pytest.approx(oracle.explained_variance_ratio_, rel=1e-6)
    for axis in range(2):
        weights = oracle.components_[axis]
        sign = np.sign(weights[np.abs(weights).argmax()])  # the largest weight of an axis is positive
        np.testing.assert_allclose(laid.xy[:, axis], sign * expected[:, axis], rtol=1e-5, atol=1e-4)


def test_a_map_of_some_is_drawn_by_its_seed_and_stands_in_the_order_of_rows(index) -> None:
    some, same, other = (embedding_map(index, most=50, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(some.rows, same.rows)
    np.testing.assert_array_equal(some.xy, same.xy)
    assert len(set(some.rows.tolist())) == 50
    assert (np.diff(some.rows) > 0).all()
    assert some.rows.tolist() != other.rows.tolist()


def test_columns_are_those_of_the_points(index) -> None:
    rows = np.array([0, 1, 2, 89, 90, 91, 129])
    told = index.describe(rows)
    kinds = column_kinds(index)
    assert list(kinds)[:5] == ["row", "id", "z", "y", "x"]
    assert {
        "brain": "text",
        "marker": "text",
        "score": "number",
        "label": "number",
        "region": "text",
    }.items() <= kinds.items()
    for name, kind in kinds.items():
        found = column(index, name, rows)
        assert found.kind == kind
        values = [None if value == "" else value for value in (cell.get(name) for cell in told)]
        if kind == "text":
            assert [None if code == -1 else found.words[code] for code in found.values] == values
        else:
            expected = np.array([np.nan if value is None else value for value in values], np.float64)
            np.testing.assert_array_equal(found.values.astype(np.float64), expected)


def test_of_many_words_the_most_frequent_are_named(index) -> None:
    found = column(index, "region", np.arange(len(index)), most_words=1)
    assert found.words == ["CTX"]
    values, counts = np.unique(found.values, return_counts=True)
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == {-2: 30, -1: 30, 0: 70}


def test_an_index_of_one_cell_and_of_one_dimension_has_a_map(tmp_path: Path) -> None:
    about = ATTRIBUTES | {"volume": "one", "marker": None, "inputs": {}}
    for name, shape in (("cell", (1, DIM)), ("dimension", (5, 1))):
        write_store(
            tmp_path / f"{name}.emb.zarr", np.ones(shape, np.float32), Points(np.zeros((shape[0], 3))), about
        )
        made = cf.Index.build(tmp_path / f"{name}.emb.zarr", tmp_path / f"{name}.index", metric="l2")
        laid = embedding_map(made)
        np.testing.assert_array_equal(laid.xy, np.zeros((shape[0], 2)))


def test_what_cannot_be_meant_is_refused(index) -> None:
    with pytest.raises(CanvasError, match="the method is 'tsne'; give one of pca, umap"):
        embedding_map(index, method="tsne")
    with pytest.raises(CanvasError, match="shows at least one row"):
        embedding_map(index, most=0)
    with pytest.raises(CanvasError, match="no row has a column 'colour'; known: row, id, z, y, x"):
        column(index, "colour", np.arange(3))


def test_without_its_extra_umap_is_a_sentence(index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_map, "find_spec", lambda name: None)
    assert methods() == ("pca",)
    with pytest.raises(CanvasError, match=r"pip install 'canvas-fm\[umap\]', or take method pca"):
        embedding_map(index, method="umap")


def test_a_row_of_the_index_is_named_by_its_number(index) -> None:
    assert index.rows_of(["#0", "#129", "a:3"]).tolist() == [0, 129, 3]
    for wrong in ("#130", "#99999999999999999999"):
        with pytest.raises(CanvasError, match=r"the index has no row .*; its rows are #0 to #129"):
            index.rows_of([wrong])
    with pytest.raises(CanvasError, match="no cell with the id '#-1'"):
        index.rows_of(["#-1"])
