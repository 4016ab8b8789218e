"""An index against plain numpy: the nearest rows, conditions, examples, novelty, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import canvas_fm as cf
from canvas_fm.errors import CanvasError, ModelMismatch
from canvas_fm.inference.search import inverted_lists as search_lists

from ..conftest import DIM, clumps, nearest, whole, write_cells  # isort: skip


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_a_small_index_is_exact(stores, tmp_path, metric: str) -> None:
    index = cf.Index.build(stores, tmp_path / "x.index", metric=metric)
    assert (len(index), index.dim, index.structure, index.metric) == (500, DIM, "flat", metric)
    queries = clumps(30, 7)
    hits = index.search(queries, k=7)
    for query, rows, distances in zip(queries, hits.rows, hits.distances, strict=True):
        expected, far = nearest(query, whole(stores), 7, metric)
        np.testing.assert_array_equal(rows, expected)
        np.testing.assert_allclose(distances, far, atol=2e-6)


@pytest.mark.parametrize(("most", "kind"), [(10**9, "ivf-sq8"), (200, "ivf-rabitq")])
@pytest.mark.usefixtures("large")
def test_lists_find_what_a_scan_finds(stores, tmp_path, monkeypatch, most: int, kind: str) -> None:
    monkeypatch.setattr(search_lists, "SQ8_MOST", most)
    index = cf.Index.build(stores, tmp_path / "x.index")
    assert index.structure == kind
    assert len(index.about["lists"]["files"]) == 2  # 500 rows in files of 256
    assert index.recall["value"] >= 0.99
    assert index.recall["queries"] == 100
    queries = clumps(50, 8)
    found = index.search(queries, k=10)
    expected = [nearest(query, whole(stores), 10, "cosine")[0] for query in queries]
    hits = [len(set(mine) & set(theirs)) for mine, theirs in zip(found.rows.tolist(), expected, strict=True)]
    assert np.mean(hits) >= 9.5
    # Distances come from the stored vectors (float16), whatever the codes are.
    far = nearest(queries[0], whole(stores), 500, "cosine")
    np.testing.assert_allclose(found.distances[0], far[1][np.argsort(far[0])[found.rows[0]]], atol=2e-3)


@pytest.mark.usefixtures("large")
def test_conditions_hold_in_lists_too(stores, tmp_path) -> None:
    index = cf.Index.build(stores, tmp_path / "x.index")
    hits = index.search(clumps(20, 9), k=30, where=["marker=TH", "score>=0.7"])
    columns = stores[1].columns
    allowed = 300 + np.flatnonzero(columns["score"] >= 0.7)
    assert set(hits.rows.ravel().tolist()) <= set(allowed.tolist())
    expected = [nearest(query, whole(stores)[allowed], 30, "cosine")[0] for query in clumps(20, 9)]
    agree = [
        len(set(a.tolist()) & set(allowed[b].tolist())) for a, b in zip(hits.rows, expected, strict=True)
    ]
    assert np.mean(agree) >= 29


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("marker=NeuN", lambda t: t["marker"] == "NeuN"),
        ("brain!=a", lambda t: t["brain"] != "a"),
        ("region=CTX,HPF µ", lambda t: np.isin(t["region"], ["CTX", "HPF µ"])),
        ("region!=CTX", lambda t: t["region"] != "CTX"),
        ("score>0.5", lambda t: t["score"] > 0.5),
        ("score<=0.25", lambda t: t["score"] <= 0.25),
        ("label=1", lambda t: t["label"] == 1),
        ("label!=1", lambda t: t["label"] != 1),
        ("z<10", lambda t: t["z"] < 10),
    ],
)
def test_conditions_are_those_of_the_columns(index, stores, where: str, rows) -> None:
    table = {
        name: np.concatenate([each.columns[name] for each in stores]) for name in ("score", "region", "label")
    }
    table |= {"z": np.concatenate([each.zyx[:, 0] for each in stores])}
    table |= {"brain": np.repeat(["a", "b"], [300, 200]), "marker": np.repeat(["NeuN", "TH"], [300, 200])}
    hits = index.search(clumps(1, 3), k=500, where=[where])
    assert sorted(hits.rows[hits.rows >= 0].tolist()) == np.flatnonzero(rows(table)).tolist()
    assert np.isinf(hits.distances[hits.rows < 0]).all()


def test_a_value_with_a_comma_and_one_that_float32_rounds(tmp_path) -> None:
    columns = {"region": np.array(["a,b", "a", "b"]), "score": np.array([0.1, 0.2, np.nan], np.float32)}
    index = cf.Index.build(
        write_cells(tmp_path, "c", vectors=clumps(3, 0), columns=columns), tmp_path / "x.index"
    )
    query = clumps(1, 3)
    assert index.search(query, 1, where=["region==a,b"]).rows.tolist() == [[0]]
    assert index.search(query, 1, where=["score=0.1"]).rows.tolist() == [[0]]
    assert index.search(query, 3, where=["score!=0.1"]).rows.tolist() == [[1, -1, -1]]
    assert index.describe([2])[0]["score"] is None


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("markers=NeuN", "no row has a column 'markers'; known: brain, id, label, marker"),
        ("marker=neun", "no row of the index has marker=neun; marker is one of NeuN, TH"),
        ("region=CTX,,", None),
        ("score>=high", "score is a number; 'high' is none"),
        ("score=nan", "'nan' is none"),
        ("region>=CTX", "region is text, which has no order"),
        ("marker", "NAME=VALUE"),
        ("=x", "NAME=VALUE"),
        ("score>2", "no row of the index has score>2"),
    ],
)
def test_conditions_that_cannot_be_meant(index, where: str, message: str | None) -> None:
    if message is None:  # an empty word is a value too
        assert index.search(clumps(1, 0), 1, where=[where]).rows[0, 0] >= 0
        return
    with pytest.raises(CanvasError, match=message.replace("(", r"\(")):
        index.search(clumps(1, 0), where=[where])


def test_cells_by_id(index, stores) -> None:
    hits = index.search_ids(["a:17", "b:17"], k=5)
    for row, mine in zip((17, 317), hits.rows, strict=True):
        expected, _ = nearest(whole(stores)[row], whole(stores), 6, "cosine")
        assert mine.tolist() == [each for each in expected.tolist() if each != row]
    cell = index.describe([317])[0]
    assert (cell["brain"], cell["marker"], cell["id"], cell["row"]) == ("b", "TH", 17, 317)
    np.testing.assert_allclose([cell[axis] for axis in "zyx"], stores[1].zyx[17])
    assert cell["region"] == stores[1].columns["region"][17]
    with pytest.raises(CanvasError, match=r"2 cells of a, b have the id '17'; write BRAIN:ID"):
        index.rows_of([17])
    assert index.rows_of([250]).tolist() == [250]
    with pytest.raises(CanvasError, match="no cell with the id 'c:17'"):
        index.rows_of(["c:17"])
    with pytest.raises(CanvasError, match="no cell with the id 'seventeen'"):
        index.rows_of(["seventeen"])


def test_ids_that_are_words(tmp_path) -> None:
    columns = {"id": np.array(["n:1", "n:2", "n:3"])}
    index = cf.Index.build(
        write_cells(tmp_path, "c", vectors=clumps(3, 0), columns=columns), tmp_path / "x.index"
    )
    assert index.rows_of(["n:2", "c:n:3"]).tolist() == [1, 2]


def test_like_these_and_unlike_those(tmp_path) -> None:
    """Three clumps along a line: like the middle one and unlike the left one is the right of the middle."""
    rng = np.random.default_rng(0)
    where = np.repeat([0.0, 1.0, 2.0], 40)
    vectors = np.stack([np.ones(120), where + 0.1 * rng.normal(size=120)], axis=1)
    vectors = np.concatenate([vectors, 0.01 * rng.normal(size=(120, DIM - 2))], axis=1).astype(np.float32)
    index = cf.Index.build(
        write_cells(tmp_path, "c", vectors=vectors, columns={"clump": where}),
        tmp_path / "x.index",
        metric="l2",
    )
    alone = index.like(["40", "41", "42"], k=20)
    assert alone.scores is not None
    assert (alone.rows >= 43).all()
    assert (where[alone.rows[0]] == 1).all()
    assert (np.diff(alone.scores[0]) <= 0).all()
    against = index.like(["40", "41", "42"], ["0", "1"], k=20)
    assert vectors[against.rows[0], 1].mean() > vectors[alone.rows[0], 1].mean() + 0.05
    assert not set(against.rows[0].tolist()) & {40, 41, 42, 0, 1}
    few = index.like(["40"], k=20, where=["clump=0"])
    assert (where[few.rows[0]] == 0).all()
    with pytest.raises(CanvasError, match="no example was given"):
        index.like([])
    with pytest.raises(CanvasError, match="1 cell stands among examples and counter-examples"):
        index.like(["1", "2"], ["2"])


def test_novelty_is_a_share_of_the_index_s_own_cells(index, stores) -> None:
    """Of vectors drawn as the index's were, a tenth is above .9; far outside everything is 1."""
    own = index.novelty(clumps(400, 123))
    assert abs(np.median(own) - 0.5) < 0.1
    assert abs((own > 0.9).mean() - 0.1) < 0.06
    np.testing.assert_array_equal(index.novelty(-100 * np.ones((2, DIM), np.float32)), [1, 1])
    rows = np.arange(0, 500, 7)
    inside = index.novelty(index.vectors(rows), exclude=rows)
    assert abs(inside.mean() - 0.5) < 0.08


def test_too_few_cells_tell_nothing_new(tmp_path) -> None:
    index = cf.Index.build(write_cells(tmp_path, "c", vectors=clumps(11, 0)), tmp_path / "x.index")
    with pytest.raises(CanvasError, match="11 rows, too few to tell what is new"):
        index.novelty(clumps(1, 0))
    hits = index.search(clumps(1, 1), k=20)
    assert (hits.rows[0, :11] >= 0).all()
    assert (hits.rows[0, 11:] == -1).all()


@pytest.mark.parametrize(
    ("queries", "options", "message"),
    [
        (np.zeros((2, DIM + 1), np.float32), {}, "query vectors have shape (2, 17)"),
        (np.zeros((0, DIM), np.float32), {}, "no query vector"),
        (np.zeros((1, 2, DIM), np.float32), {}, "query vectors have shape (1, 2, 16)"),
        (np.full((1, DIM), np.nan, np.float32), {}, "vector 0 holds NaN"),
        (np.zeros((1, DIM), np.float32), {}, "vector 0 is all zeros and has no direction"),
        (clumps(1, 0), {"encoder": "cd" * 32}, "of encoder cdcdcdcdcdcd"),
        (clumps(1, 0), {"k": 0}, "k is 0"),
        (clumps(1, 0), {"k": 10**7}, "k is 10000000"),
        (clumps(1, 0), {"exclude": [1, 2]}, "2 rows to leave out for 1 queries"),
    ],
)
def test_queries_that_cannot_be_meant(index, queries, options: dict, message: str) -> None:
    import re

    with pytest.raises(CanvasError, match=re.escape(message)):
        index.search(queries, **options)


def test_one_index_holds_vectors_of_one_precision(tmp_path) -> None:
    plain, short = (write_cells(tmp_path, name, 20, precision=name) for name in ("fp32", "bf16"))
    with pytest.raises(ModelMismatch, match=r"bf16.* was embedded in bf16, .* in fp32: .* --precision fp32"):
        cf.Index.build([plain, short], tmp_path / "x.index")
    made = cf.Index.build(plain, tmp_path / "y.index")
    with pytest.raises(ModelMismatch, match="embed it again with --precision fp32"):
        made.add(short)
    about = tmp_path / "y.index" / "index.json"
    assert '"precision": "fp32"' in about.read_text()


def test_another_encoder_or_pooling_is_refused_everywhere(index, stores, tmp_path) -> None:
    other = write_cells(tmp_path, "other", 20, encoder_sha256="cd" * 32)
    pooled = write_cells(tmp_path, "pooled", 20, pool="cls")
    early = write_cells(tmp_path, "early", 20, layer=1)
    wide = write_cells(tmp_path, "wide", vectors=np.ones((20, DIM + 1), np.float32))
    for each in (other, pooled, early):
        with pytest.raises(ModelMismatch, match="was made from encoder abababababab, pool mean"):
            index.search(each)
    for each in (other, pooled, early, wide):
        with pytest.raises(ModelMismatch, match="one index holds vectors of one kind"):
            index.add(each)
        with pytest.raises(ModelMismatch, match="one index holds vectors of one kind"):
            cf.Index.build([stores[0], each], tmp_path / "y.index")
    assert index.search(stores[0], 1).rows[:, 0].tolist() == list(range(300))
