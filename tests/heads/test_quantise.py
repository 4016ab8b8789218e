"""int8: what the check counts, what it keeps beside the encoder, and that nothing else lets int8 in."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from canvas_fm.errors import BadInput, CanvasError, MissingExtra
from canvas_fm.heads import quantise as module
from canvas_fm.heads.labels.candidates import Candidates
from canvas_fm.heads.quantise import agreement, quantise
from canvas_fm.inference.backends import int8_check as int8
from canvas_fm.inference.backends.int8_check import Int8Check, PoolCheck
from canvas_fm.inference.embed.embed import embed, embed_crops
from canvas_fm.models.encoder.vit import POOLS
from canvas_fm.models.load_model import load

from .conftest import make_encoder  # isort: skip

CROP = (4, 8, 8)


@pytest.fixture(scope="module")
def labelled(brains) -> list[Candidates]:
    return [Candidates.of(volume, points) for volume, points in brains]


def made(folder, labelled, **options) -> Int8Check:
    pytest.importorskip("nncf")
    settings = {"crops": 32, "show": False, **options}
    return quantise(load(folder), labelled, [labelled[0].volume], **settings)


def admit(folder, **found) -> None:
    """Write the figures of a check as if they had been found so."""
    path = folder / "int8" / "check.json"
    check = json.loads(path.read_bytes())
    for pool in check["pools"].values():
        pool.update(
            {"agreement": 0.99, "f1_fp32": 0.9, "f1_int8": 0.9, "f1_carried": 0.9, "f1_all": 0.5} | found
        )
    path.write_text(json.dumps(check))


@pytest.fixture(scope="module")
def checked(tmp_path_factory, labelled):
    """An encoder's folder after the check, and what the check found."""
    folder = tmp_path_factory.mktemp("int8") / "tiny"
    make_encoder(folder)
    limit = pytest.MonkeyPatch()
    limit.setattr(int8, "AGREEMENT", 0.0)  # random weights: the graph is kept whatever it does
    limit.setattr(int8, "F1_MOVE", 2.0)
    check = made(folder, labelled)
    limit.undo()
    return folder, check


@pytest.fixture
def folder(checked, tmp_path):
    """A copy of that folder with figures that pass."""
    shutil.copytree(checked[0], tmp_path / "tiny")
    admit(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_agreement_is_the_share_of_neighbours_that_stay():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(60, 5)), rng.normal(size=(60, 5))

    def near(x, row):
        cosine = x @ x[row] / np.linalg.norm(x, axis=1) / np.linalg.norm(x[row])
        return {*[other for other in np.argsort(-cosine).tolist() if other != row][:7]}

    wanted = np.mean([len(near(a, row) & near(b, row)) / 7 for row in range(60)])
    assert agreement(a, b, 7) == pytest.approx(wanted)
    assert agreement(a, 3 * a, 7) == 1
    with pytest.raises(BadInput, match="7 rows have no 7 neighbours"):
        agreement(a[:7], b[:7], 7)


def test_the_check_says_what_it_compared(checked, labelled):
    folder, check = checked
    assert check.encoder_sha256 == load(folder).sha256
    assert set(check.pools) == set(POOLS)
    assert check.candidates == sum(len(one) for one in labelled)
    for found in check.pools.values():
        assert 0.5 < found.agreement < 1  # another arithmetic, of the same weights
        assert found.f1_fp32 > 0.8  # bright cells among dim ones
    assert json.loads((folder / "int8" / "check.json").read_bytes())["files"].keys() == {
        "encoder.xml",
        "encoder.bin",
    }


def test_admitted_int8_is_near_fp32_and_no_copy_of_it(folder, labelled):
    encoder, volume, zyx = load(folder), labelled[1].volume, labelled[1].zyx[:30]
    wanted = embed(encoder, volume, zyx)
    found = embed(encoder, volume, zyx, backend="openvino", precision="int8")
    far = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    assert 1e-5 < far.max() < 0.2
    many = np.repeat(volume.window.apply(volume.read((4, 8, 8), CROP))[None], 3, axis=0)
    same = embed_crops(encoder, many, backend="openvino", precision="int8")
    np.testing.assert_allclose(same[1:], same[:2], atol=1e-6)


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        ({"agreement": 0.949}, "of the 10 nearest neighbours 0.949 stay (0.95 are needed)"),
        ({"f1_int8": 0.8949}, "F1 of refinement moves by 0.0051 (below 0.005 is needed)"),
        ({"f1_all": 0.9}, "F1 of 0.900 is no better than keeping every candidate (0.900)"),
        ({"f1_carried": 0.906}, "F1 of refinement moves by 0.0060 (below 0.005 is needed)"),
    ],
)
def test_a_check_that_failed_admits_nothing(folder, found, sentence):
    admit(folder, **found)
    crops = np.zeros((1, *CROP), np.float32)
    with pytest.raises(CanvasError) as problem:
        embed_crops(load(folder), crops, backend="openvino", precision="int8")
    assert str(problem.value).startswith("int8 is not admitted for tiny, pool mean: ")
    assert sentence in str(problem.value)


def test_what_was_not_checked_is_refused(folder, monkeypatch):
    crops, asked = np.zeros((1, *CROP), np.float32), {"backend": "openvino", "precision": "int8"}
    encoder = load(folder)
    with pytest.raises(
        CanvasError, match=r"checked for mean, cls, centre, contrast of the last layer, layer 1 was"
    ):
        embed_crops(encoder, crops, layer=1, **asked)
    with pytest.raises(
        CanvasError, match=r"checked for mean, cls, centre, contrast of the last layer, pool grid was"
    ):
        embed_crops(encoder, crops, pool="grid", **asked)
    monkeypatch.setattr(int8, "native_int8", lambda: False)
    state = json.loads((folder / "int8" / int8.CHECK).read_text(encoding="utf-8"))
    (folder / "int8" / int8.CHECK).write_text(json.dumps(state | {"exact": True}), encoding="utf-8")
    encoder = load(folder)
    with pytest.raises(CanvasError, match="was checked on a processor with VNNI, this one has none"):
        embed_crops(encoder, crops, **asked)


def test_the_graph_that_was_checked_is_the_one_that_runs(folder, tmp_path):
    crops, asked = np.zeros((1, *CROP), np.float32), {"backend": "openvino", "precision": "int8"}
    weights = folder / "int8" / "encoder.bin"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CanvasError, match=r"encoder\.bin is missing or was changed since the check"):
        embed_crops(load(folder), crops, **asked)
    other = make_encoder(tmp_path / "other", seed=3)
    shutil.copytree(folder / "int8", tmp_path / "other" / "int8")
    with pytest.raises(CanvasError, match="int8 was not checked for other"):
        embed_crops(other, crops, **asked)
    (folder / "int8" / "check.json").write_text("{")
    with pytest.raises(CanvasError, match=r"check\.json cannot be read"):
        embed_crops(load(folder), crops, **asked)


def test_an_encoder_that_fails_keeps_the_figures_and_no_graph(tmp_path, labelled, monkeypatch):
    make_encoder(tmp_path / "tiny")
    monkeypatch.setattr(int8, "AGREEMENT", 1.01)
    made(tmp_path / "tiny", labelled, most=40)
    assert [path.name for path in (tmp_path / "tiny" / "int8").iterdir()] == ["check.json"]


@pytest.mark.slow
def test_where_the_encoders_folder_is_read_only_the_cache_holds_it(tmp_path, labelled, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_encoder(tmp_path / "tiny")
    usual = int8._writable
    monkeypatch.setattr(int8, "_writable", lambda folder: folder != tmp_path / "tiny" and usual(folder))
    check = made(tmp_path / "tiny", labelled, most=40)
    encoder = load(tmp_path / "tiny")
    kept = tmp_path / "cache" / "canvas-fm" / "int8" / encoder.sha256
    assert (kept / "check.json").is_file()
    assert int8.find_check(encoder).pools == check.pools


def test_labels_that_cannot_tell_are_refused_before_any_work(tmp_path, labelled, monkeypatch):
    pytest.importorskip("nncf")
    encoder = make_encoder(tmp_path / "tiny")
    monkeypatch.setattr(module, "converted", lambda encoder: pytest.fail("work began"))
    with pytest.raises(BadInput, match="all rows are of one brain"):
        quantise(encoder, labelled[:1], [labelled[0].volume])
    with pytest.raises(BadInput, match="needs crops of training volumes"):
        quantise(encoder, labelled, [])


def test_without_the_extra_it_is_named(tmp_path, labelled, monkeypatch):
    pytest.importorskip("openvino")
    import sys

    encoder = make_encoder(tmp_path / "tiny")
    monkeypatch.setitem(sys.modules, "nncf", None)
    monkeypatch.setattr(module, "converted", lambda encoder: pytest.fail("work began"))
    with pytest.raises(MissingExtra, match=r"int8 needs nncf: pip install 'canvas-fm\[cpu\]'"):
        quantise(encoder, labelled, [labelled[0].volume], crops=8, show=False)


def test_f1_moves_by_the_larger_of_both_ways():
    found = PoolCheck(agreement=0.95, f1_fp32=0.9, f1_int8=0.904, f1_carried=0.898, f1_all=0.6)
    assert found.f1_move == pytest.approx(0.004)
    assert found.passed
