"""An index that is added to, killed and damaged: it is the old one, the new one, or an error."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

import canvas_fm as cf
from canvas_fm.errors import CanvasError, DamagedStore
from canvas_fm.inference.search import inverted_lists as search_lists
from canvas_fm.inference.search.index import build as search_build
from canvas_fm.inference.search.index import index_store as search_store

from ...conftest import clumps, nearest, whole, write_cells  # isort: skip


@pytest.mark.usefixtures("large")
def test_adding_gives_what_building_at_once_gives(stores, tmp_path) -> None:
    more = [write_cells(tmp_path, f"more{i}", 40) for i in range(10)]
    grown = cf.Index.build(stores[0], tmp_path / "x.index")
    before = grown.about["lists"]["trained"]
    before_adding = grown
    grown = grown.add(stores[1])
    assert (len(before_adding), len(grown)) == (300, 500)  # an open index stays as it was opened
    for each in more:
        grown = grown.add(each)
    grown = grown.add(more[0])
    assert len(grown) == 900
    assert grown.about["lists"]["trained"] == before  # in place: what was trained stays
    assert len(grown.about["lists"]["files"]) <= 11  # small files were merged
    assert sum(each["rows"] for each in grown.about["lists"]["files"]) == 900
    opened = cf.Index.open(tmp_path / "x.index")
    vectors = whole([*stores, *more])
    queries = clumps(30, 5)
    agree = [
        len(set(rows.tolist()) & set(nearest(query, vectors, 10, "cosine")[0].tolist()))
        for query, rows in zip(queries, opened.search(queries).rows, strict=True)
    ]
    assert np.mean(agree) >= 9.5
    assert opened.recall["rows"] > 900 / 1.2
    named = {each["name"] for each in opened.about["lists"]["files"]} | {before["name"]}
    assert {path.name for path in opened.path.glob("*.faiss")} == named


def test_an_exact_index_grows_into_lists_and_these_are_trained_again(stores, tmp_path, monkeypatch) -> None:
    index = cf.Index.build(stores[0], tmp_path / "x.index")
    assert index.structure == "flat"
    monkeypatch.setattr(search_lists, "FLAT_MOST", 400)
    index = index.add(stores[1])
    assert index.structure == "ivf-sq8"
    assert index.parts[0].vectors.dtype == np.float32
    assert index.parts[1].vectors.dtype == np.float16
    index.about["lists"]["trained_rows"] = 10
    assert search_lists.outgrown(index.about["lists"], 500)


def test_a_kill_before_the_mark_changes_nothing_and_the_same_call_goes_on(
    stores, tmp_path, monkeypatch
) -> None:
    path = tmp_path / "x.index"

    class Killed(BaseException):
        pass

    def kill(*given: object) -> None:
        raise Killed

    written: list[str] = []
    copy = search_build.write_part

    def counted(folder: Path, *given, **options):
        done = (folder / "part.json").exists()
        entry = copy(folder, *given, **options)
        written.append(f"{folder.name} {'kept' if done else 'written'}")
        return entry

    monkeypatch.setattr(search_build, "write_part", counted)
    mark = search_build.write_manifest
    monkeypatch.setattr(search_build, "write_manifest", kill)
    with pytest.raises(Killed):
        cf.Index.build(stores[0], path)
    with pytest.raises(CanvasError, match=r"x\.index is unfinished; run the same `canvas-fm index` again"):
        cf.Index.open(path)
    monkeypatch.setattr(search_build, "write_manifest", mark)
    index = cf.Index.build(stores[0], path)
    assert written == ["part-0000 written", "part-0000 kept"]
    monkeypatch.setattr(search_build, "write_manifest", kill)
    with pytest.raises(Killed):
        index.add(stores[1])
    monkeypatch.setattr(search_build, "write_manifest", mark)
    assert len(cf.Index.open(path)) == 300
    assert index.search(clumps(3, 0)).rows.max() < 300
    # Half a part, as a kill in the middle of copying leaves it.
    (path / "part-0001" / "vectors.npy").write_bytes(b"half")
    assert cf.Index.build(stores, path).search(stores[1], 1).rows[:, 0].tolist() == list(range(300, 500))


def test_two_writers_at_once_are_refused(stores, tmp_path) -> None:
    from canvas_fm.files.locks import take_lock

    index = cf.Index.build(stores[0], tmp_path / "x.index")
    lock = take_lock(index.path, index.path)
    with pytest.raises(CanvasError, match="another process is writing"):
        index.add(stores[1])
    os.close(lock)
    assert len(index.add(stores[1])) == 500


@pytest.mark.usefixtures("large")
def test_every_flipped_byte_is_found(stores, tmp_path) -> None:
    index = cf.Index.build(stores, tmp_path / "x.index")
    count = index.verify()
    files = [
        path for path in index.path.rglob("*") if path.is_file() and path.name not in ("lock", "part.json")
    ]
    assert count == len(files) - 1  # the mark knows itself
    for path in files:
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 16]))
        with pytest.raises(DamagedStore, match=path.name.replace(".", r"\.")):
            cf.Index.open(index.path)
        path.write_bytes(data[:-1])
        with pytest.raises(DamagedStore, match=path.name.replace(".", r"\.")):
            cf.Index.open(index.path)
        path.write_bytes(data)
    assert len(cf.Index.open(index.path)) == 500


def test_large_files_are_compared_when_it_is_asked_for(stores, tmp_path, monkeypatch) -> None:
    index = cf.Index.build(stores[0], tmp_path / "x.index")
    monkeypatch.setattr(search_store, "_CHECKED_AT_OPEN", 10)
    path = index.path / "part-0000" / "vectors.npy"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedStore, match="its bytes are not those that were written"):
        cf.Index.open(index.path).verify()


def test_what_is_no_index_is_a_sentence(stores, tmp_path, index) -> None:
    with pytest.raises(CanvasError, match=r"does not exist; `canvas-fm index EMBEDDINGS --out"):
        cf.Index.open(tmp_path / "nothing.index")
    with pytest.raises(CanvasError, match="is no index"):
        cf.Index.open(stores[0].path)
    with pytest.raises(CanvasError, match="and is no index; give another name"):
        cf.Index.build(stores, stores[0].path)
    with pytest.raises(CanvasError, match="there is no folder"):
        cf.Index.build(stores, tmp_path / "no" / "x.index")
    with pytest.raises(CanvasError, match="is of metric cosine, l2 was asked for"):
        cf.Index.build(stores, index.path, metric="l2")
    with pytest.raises(CanvasError, match="one of cosine, l2"):
        cf.Index.build(stores, tmp_path / "x.index", metric="dot")
    with pytest.raises(CanvasError, match="no embeddings to index"):
        cf.Index.build([], tmp_path / "x.index")
    mixed = write_cells(tmp_path, "mixed", 5, columns={"score": np.array(list("abcde"))})
    with pytest.raises(CanvasError, match=r"the column 'score' is text in .* and number in what"):
        index.add(mixed)
    assert len(cf.Index.open(index.path)) == 500
    mark = json.loads((index.path / "index.json").read_text())
    assert (mark["encoder_sha256"], mark["metric"], mark["rows"]) == ("ab" * 32, "cosine", 500)
    assert mark["recall"]["value"] == 1
