"""`index` and `search` through the command line: what is printed, what is written, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from canvas_fm.data.points.points import Points
from canvas_fm.inference.embed.store.embedding_store import Embeddings, write_store

ABOUT = {
    "encoder_sha256": "ab" * 32,
    "encoder": "tiny",
    "pool": "mean",
    "precision": "fp32",
    "voxel_um": [4.0, 1.8, 1.8],
    "window": [3.0, 300.0],
}


def store(folder: Path, name: str, marker: str, sha256: str = "ab" * 32, inputs: str = "") -> Path:
    rng = np.random.default_rng(ord(name[0]))
    points = Points(
        rng.uniform(0, 50, (40, 3)), {"score": rng.random(40), "region": np.array(["CTX", "HPF"] * 20)}
    )
    about = ABOUT | {
        "volume": name,
        "marker": marker,
        "inputs": {"volume": name + inputs},
        "encoder_sha256": sha256,
    }
    path = folder / f"{name}.emb.zarr"
    write_store(path, rng.normal(size=(40, 8)).astype(np.float32), points, about)
    return path


@pytest.fixture
def stores(tmp_path: Path) -> list[Path]:
    return [store(tmp_path, "a", "NeuN"), store(tmp_path, "b", "TH")]


@pytest.fixture
def index(tmp_path: Path, stores, result) -> Path:
    path = tmp_path / "cells.index"
    said = result("index", *stores, "--out", path)
    assert (said["rows"], said["dim"], said["structure"], said["recall@10"], said["brains"]) == (
        80,
        8,
        "flat",
        1,
        2,
    )
    return path


def test_the_same_command_again_adds_what_is_new(index: Path, stores, tmp_path, result) -> None:
    assert result("index", *stores, "--out", index)["rows"] == 80
    assert result("index", store(tmp_path, "c", "PV"), "--out", index)["rows"] == 120


def test_two_stores_of_brains_of_one_name_are_warned_of(tmp_path, stores, result, caplog) -> None:
    assert result("index", *stores, "--out", tmp_path / "two.index")["brains"] == 2
    assert "search takes them for one" not in caplog.text
    (tmp_path / "other").mkdir()
    other = store(tmp_path / "other", "a", "PV", inputs="elsewhere")
    result("index", *stores, other, "--out", tmp_path / "cells.index")
    assert "2 stores are of a brain called a, and search takes them for one" in caplog.text


def test_vectors_of_every_kind_find_themselves(index: Path, stores, tmp_path, run, result) -> None:
    vectors = Embeddings.open(stores[1]).vectors
    np.save(tmp_path / "v.npy", vectors[:3])
    said = result(
        "search", index, "--vector", tmp_path / "v.npy", "-k", 2, "--encoder-sha256", "ab" * 32, "--verify"
    )
    first = [hit for hit in said["hits"] if hit["rank"] == 1]
    assert [(hit["query"], hit["brain"], hit["id"], hit["marker"]) for hit in first] == [
        (0, "b", 0, "TH"),
        (1, "b", 1, "TH"),
        (2, "b", 2, "TH"),
    ]
    assert first[0]["distance"] < 1e-5
    assert len(said["novelty"]) == 3
    whole = result("search", index, "--vector", stores[1], "-k", 1)["hits"]
    assert [hit["row"] for hit in whole] == list(range(40, 80))
    assert run("export", stores[1], tmp_path / "v.npz")[0] == 0
    assert result("search", index, "--vector", tmp_path / "v.npz", "-k", 1)["hits"] == whole


def test_ids_conditions_examples_and_a_table(index: Path, tmp_path, run, result) -> None:
    said = result("search", index, "--ids", "a:3", "b:4", "-k", 5, "--where", "marker=TH", "region=CTX")
    assert {(hit["marker"], hit["region"]) for hit in said["hits"]} == {("TH", "CTX")}
    assert len(said["hits"]) == 10
    assert not any(hit["brain"] == "b" and hit["id"] == 4 for hit in said["hits"])
    liked = result("search", index, "--like", "a:1", "a:2", "--unlike", "b:1", "-k", 4)
    assert [hit["rank"] for hit in liked["hits"]] == [1, 2, 3, 4]
    assert sorted((hit["likeness"] for hit in liked["hits"]), reverse=True) == [
        hit["likeness"] for hit in liked["hits"]
    ]
    code, out, _ = run("search", index, "--ids", "a:3", "-k", 2)
    assert code == 0
    assert out.splitlines()[0].startswith("query 0: novelty ")
    assert out.splitlines()[1].split() == [
        "rank",
        "distance",
        "id",
        "brain",
        "marker",
        "z",
        "y",
        "x",
        "score",
    ]
    assert len(out.splitlines()) == 4
    result("search", index, "--ids", "a:3", "-k", 2, "--out", tmp_path / "hits.csv")
    points = Points.read(tmp_path / "hits.csv")
    assert len(points) == 2
    assert points.columns["rank"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--vector", "none.npy"], "none.npy does not exist"),
        (["--vector", "text.npy"], "holds no vectors: give a .npy"),
        (["--vector", "wide.npy"], "query vectors have shape (1, 9)"),
        (["--vector", "pickle.npy"], "holds no vectors"),
        (["--vector", "words.npy"], "query vectors are no numbers"),
        (["--vector", "fine.npy", "--encoder-sha256", "cd" * 32], "of encoder cdcdcdcdcdcd"),
        (["--vector", "other.emb.zarr"], "of encoder cdcdcdcdcdcd"),
        (["--ids", "3"], "write BRAIN:ID"),
        (["--ids", "a:3", "--unlike", "a:4"], "--unlike names counter-examples of --like"),
        (["--ids", "a:3", "--where", "marker=PV"], "marker is one of NeuN, TH"),
        (["--ids", "a:3", "--out", "hits.dat.gz"], "hits.dat.gz"),
    ],
)
def test_what_cannot_be_searched(index: Path, tmp_path, monkeypatch, refusal, words, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.npy").write_text("no array")
    np.save("wide.npy", np.ones((1, 9)))
    np.save("fine.npy", np.ones((1, 8)))
    np.save("words.npy", np.array([["a"] * 8]))
    np.save("pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    if "other.emb.zarr" in words:
        store(tmp_path, "other", "TH", "cd" * 32)
    assert message in refusal("search", index, *words)


def test_indexes_that_cannot_be_made(stores, tmp_path, refusal) -> None:
    other = store(tmp_path, "other", "TH", "cd" * 32)
    said = refusal("index", *stores, other, "--out", tmp_path / "x.index")
    assert "one index holds vectors of one kind" in said
    assert "does not exist" in refusal("index", tmp_path / "no.emb.zarr", "--out", tmp_path / "x.index")
    assert "does not exist; `canvas-fm index" in refusal("search", tmp_path / "x.index", "--ids", "1")


def test_a_damaged_index_is_named(index: Path, refusal) -> None:
    path = index / "part-0000" / "vectors.npy"
    data = bytearray(path.read_bytes())
    data[200] ^= 4
    path.write_bytes(data)
    assert "vectors.npy" in refusal("search", index, "--ids", "a:1")
    mark = json.loads((index / "index.json").read_text())
    (index / "index.json").write_text(json.dumps(mark | {"rows": 81}, indent=1) + "\n")
    assert "does not match its own checksum" in refusal("search", index, "--ids", "a:1")
