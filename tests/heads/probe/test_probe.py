"""The probe: what it finds on held-out groups, its folder, and what it refuses."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError, ModelMismatch
from canvas_fm.heads.compare.label_curve import LabelCurve, counts_up_to, draw_labels
from canvas_fm.heads.probe.cross_validate import probe_fit, score_probe
from canvas_fm.heads.probe.effective_rank import effective_rank
from canvas_fm.heads.probe.knn import knn_proba
from canvas_fm.heads.probe.labelled_embeddings import class_folds, read_probe_data
from canvas_fm.heads.probe.probe import Probe, fit_probe
from canvas_fm.heads.refine.head.logistic_path import fit_path
from canvas_fm.inference.embed.store.embedding_store import Embeddings, write_store

DIM = 12
ATTRIBUTES = {
    "encoder_sha256": "ab" * 32,
    "encoder": "tiny",
    "pool": "mean",
    "precision": "fp32",
    "volume": "brain",
    "marker": "NeuN",
    "voxel_um": [4.0, 1.8, 1.8],
    "window": [3.0, 300.0],
}


def write(path: Path, x: np.ndarray, **columns) -> Path:
    attributes = ATTRIBUTES | {key: columns.pop(key) for key in list(columns) if key in ATTRIBUTES}
    points = Points(np.zeros((len(x), 3)), columns)
    write_store(path, x.astype(np.float32), points, attributes)
    return path


def rows(n: int, seed: int, classes: int = 2, apart: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings whose first columns tell the classes apart, but not quite."""
    random = np.random.default_rng(seed)
    label = np.arange(n) % classes
    x = random.normal(size=(n, DIM))
    x[np.arange(n), label] += apart
    return x, label


@pytest.fixture
def brains(tmp_path) -> list[Path]:
    """Three stores, a brain each, labels 0, 1 and a few −1."""
    stores = []
    for number in range(3):
        x, label = rows(80, number)
        label[:5] = -1
        stores.append(write(tmp_path / f"{number}.emb.zarr", x, label=label, volume=f"brain{number}"))
    return stores


def test_a_probe_is_scored_on_brains_it_never_met_and_kept_in_a_folder(brains, tmp_path):
    probe, score = probe_fit(brains, tmp_path / "probe", labels="label", counts=(20,), seeds=2)
    found = json.loads(json.dumps(score.to_json()))
    assert (found["rows"], found["skipped"], found["groups"]) == (225, 15, 3)
    assert found["split"] == {"by": "brain", "folds": 3, "warning": None}
    assert set(found["methods"]) == {"logistic", "knn 10", "knn 20", "knn 100"}
    for name, low in (("auc", 0.85), ("balanced_accuracy", 0.75), ("f1", 0.75)):
        figure = found["methods"]["logistic"][name]
        assert figure["interval"][0] < figure["value"] < figure["interval"][1]
        assert low < figure["value"] < 1
    assert found["encoder_sha256"] == probe.config.encoder_sha256 == "ab" * 32
    assert {path.name for path in (tmp_path / "probe").iterdir()} == {"config.json", "model.safetensors"}
    again = Probe.open(tmp_path / "probe")
    x = rows(30, 9)[0].astype(np.float32)
    np.testing.assert_array_equal(again.proba(x), probe.proba(x))
    assert roc_auc_score(np.arange(30) % 2, again.proba(x)[:, 1]) > 0.8


def test_held_out_figures_are_those_of_fitting_without_the_group(brains):
    """Of an independent loop: the AUC of a probe that is scored on its own training rows would be higher."""
    data = read_probe_data(brains, labels="label")
    score = score_probe(data, class_folds(data), counts=(20,), seeds=1)
    p = np.zeros(len(data))
    for name in np.unique(data.group):
        train, test = np.flatnonzero(data.group != name), np.flatnonzero(data.group == name)
        others = np.unique(data.group[train])
        splits = [
            (np.flatnonzero(data.group[train] != one), np.flatnonzero(data.group[train] == one))
            for one in others
        ]
        p[test] = fit_path(data.x[train], data.code[train], 2, splits).model.proba(data.x[test])[:, 1]
    assert score.methods["logistic"]["auc"].value == pytest.approx(roc_auc_score(data.code, p), abs=2e-3)


def test_noise_is_worth_nothing_on_another_brain(tmp_path):
    stores = []
    for number in range(3):
        x, label = rows(100, number, apart=0.0)
        x += 3 * number  # a brain is told at once, its cells not at all
        stores.append(write(tmp_path / f"{number}.emb.zarr", x, label=label, volume=f"brain{number}"))
    data = read_probe_data(stores, labels="label", correction="centre")
    score = score_probe(data, class_folds(data), counts=(20,), seeds=1)
    for figures in score.methods.values():
        assert abs(figures["auc"].value - 0.5) < 0.12
    assert "nothing that can be told from chance" in score.curve.sentence or score.curve.worth[0] < 0.05


def test_cell_types_as_text(tmp_path):
    stores = []
    for number in range(3):
        x, label = rows(90, number, classes=3, apart=3.0)
        names = np.array(["PV", "TH", "NeuN"])[label]
        names[:4] = ["", " ", "-1", ""]
        stores.append(write(tmp_path / f"{number}.emb.zarr", x, kind=names, brain=np.full(90, f"b{number}")))
    probe, score = probe_fit(
        stores, tmp_path / "probe", labels="kind", groups="brain", counts=(20, 50), seeds=2
    )
    assert probe.classes == ("NeuN", "PV", "TH")
    assert score.data.skipped == 12
    assert score.methods["logistic"]["balanced_accuracy"].value > 0.85
    assert score.methods["logistic"]["auc"].value > 0.95
    assert score.curve.figure == "macro F1"
    assert sorted(score.curve.values) == [20, 50, 172]
    points = probe.apply(Embeddings.open(stores[0]))
    table = np.stack([points.columns[f"p_{name}"] for name in probe.classes], axis=1)
    np.testing.assert_allclose(table.sum(axis=1), 1, atol=1e-5)
    assert (points.columns["predicted"] == np.array(probe.classes)[table.argmax(axis=1)]).all()
    assert points.meta["encoder"] == "ab" * 32


def test_apply_keeps_rows_and_columns(brains, tmp_path):
    probe, _ = probe_fit(brains, tmp_path / "probe", labels="label", counts=(20,), seeds=1)
    store = Embeddings.open(brains[1])
    points = probe.apply(store)
    assert list(points.columns) == ["label", "p_cell", "predicted"]
    np.testing.assert_array_equal(points.columns["label"], store.columns["label"])
    np.testing.assert_allclose(points.columns["p_cell"], probe.proba(store.vectors)[:, 1])


# --- what is refused


def test_another_encoder_is_refused_when_fitted_and_when_applied(brains, tmp_path):
    other = write(
        tmp_path / "other.emb.zarr", *[rows(40, 5)[0]], label=np.arange(40) % 2, encoder_sha256="cd" * 32
    )
    with pytest.raises(ModelMismatch, match=r"other.emb.zarr and .* are of different encoders"):
        read_probe_data([*brains, other], labels="label")
    probe, _ = probe_fit(brains, tmp_path / "probe", labels="label", counts=(20,), seeds=1)
    with pytest.raises(ModelMismatch, match=r"of encoder cdcdcdcdcdcd, this probe of abababababab \(tiny\)"):
        probe.apply(Embeddings.open(other))
    pooled = write(tmp_path / "pooled.emb.zarr", rows(40, 5)[0], pool="centre")
    with pytest.raises(ModelMismatch, match="is of pooling centre, this probe of mean"):
        probe.apply(Embeddings.open(pooled))


def test_one_class_only(tmp_path):
    x, _ = rows(30, 0)
    store = write(tmp_path / "x.emb.zarr", x, label=np.where(np.arange(30) < 20, 1, -1))
    with pytest.raises(CanvasError, match=r"all 20 labels in the column 'label' are '1': one class only"):
        read_probe_data([store], labels="label")
    unlabelled = write(tmp_path / "y.emb.zarr", x, label=np.full(30, -1))
    with pytest.raises(CanvasError, match="none of the 30 rows has a label"):
        read_probe_data([unlabelled], labels="label")


def test_one_brain_is_refused_unless_forced_and_then_marked(brains):
    data = read_probe_data(brains[:1], labels="label")
    with pytest.raises(CanvasError, match=r"of one group \(brain0\).*neighbours.*--force-random-split"):
        class_folds(data)
    forced = class_folds(data, force_random=True)
    assert forced.by == "random"
    assert "forced" in score_probe(data, forced, counts=(20,), seeds=1).to_json()["split"]["warning"]


def test_groups_never_stand_on_both_sides(brains):
    data = read_probe_data(brains, labels="label")
    for train, test in class_folds(data):
        assert set(data.group[train]).isdisjoint(data.group[test])


def test_fewer_labels_than_folds_and_a_class_of_one_group(tmp_path):
    x, label = rows(40, 0)
    label[:] = 0
    label[:2] = 1
    brain = np.where(np.arange(40) % 4 == 0, "a", np.where(np.arange(40) % 4 == 1, "b", "c"))
    store = write(tmp_path / "x.emb.zarr", x, label=label, brain=brain)
    data = read_probe_data([store], labels="label", groups="brain")
    with pytest.raises(CanvasError, match=r"class '1' has 2 labels, fewer than the 3 folds"):
        class_folds(data)
    label[:] = 0
    label[brain == "a"] = 1
    data = read_probe_data(
        [write(tmp_path / "y.emb.zarr", x, label=label, brain=brain)], labels="label", groups="brain"
    )
    with pytest.raises(CanvasError, match=r"without a no label of the class '1' is left"):
        class_folds(data)


def test_features_that_are_not_numbers(tmp_path):
    x, label = rows(30, 0)
    x[7, 3] = np.nan
    with pytest.raises(CanvasError, match=r"x.emb.zarr: features hold NaN .* first in row 8, column 4"):
        read_probe_data([write(tmp_path / "x.emb.zarr", x, label=label)], labels="label")


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        ("kind", "has no column 'kind'; its points came with label, half"),
        ("half", "is 0.5 in row 1"),
    ],
)
def test_labels_that_are_none(tmp_path, column, sentence):
    x, label = rows(10, 0)
    store = write(tmp_path / "x.emb.zarr", x, label=label, half=label + 0.5)
    with pytest.raises(CanvasError, match=sentence):
        read_probe_data([store], labels=column)


def test_duplicates_are_counted_and_kept(brains, caplog, tmp_path):
    x, label = rows(40, 3)
    x[20:24] = x[:4]
    label[20] = 1 - label[0]
    store = write(tmp_path / "x.emb.zarr", x, label=label, volume="brain9")
    with caplog.at_level(logging.WARNING, logger="canvas_fm"):
        data = read_probe_data([*brains, store], labels="label")
    assert len(data) == 225 + 40
    assert "4 of 265 rows repeat the embedding of another row; they are kept" in data.notes
    assert "1 embedding stands there more than once with different labels" in caplog.text
    twice = read_probe_data(
        [store, write(tmp_path / "y.emb.zarr", x, label=label, volume="b")], labels="label"
    )
    assert "36 embeddings stand there more than once with different groups" in twice.notes


def test_a_changed_or_other_folder_is_refused(brains, tmp_path):
    data = read_probe_data(brains, labels="label")
    fit_probe(data, class_folds(data), tmp_path / "probe", labels="label")
    config = tmp_path / "probe" / "config.json"
    config.write_text(config.read_text().replace("tiny", "tall"))
    with pytest.raises(CanvasError, match="was changed"):
        Probe.open(tmp_path / "probe")
    config.write_text('{"kind": "encoder"}')
    with pytest.raises(ModelMismatch, match="a probe was expected"):
        Probe.open(tmp_path / "probe")


def test_embeddings_of_another_length(brains, tmp_path):
    data = read_probe_data(brains, labels="label")
    probe = fit_probe(data, class_folds(data), tmp_path / "probe", labels="label")
    with pytest.raises(CanvasError, match=r"shape \(3, 5\); this probe takes \(n, 12\)"):
        probe.proba(np.zeros((3, 5), np.float32))


# --- the parts


def test_a_kept_probe_says_what_the_fit_said(brains, tmp_path):
    data = read_probe_data(brains, labels="label")
    folds = class_folds(data)
    direct = fit_path(data.x, data.code, 2, folds).model
    kept = fit_probe(data, folds, tmp_path / "probe", labels="label")
    np.testing.assert_allclose(kept.proba(data.x), direct.proba(data.x), atol=1e-5)


def test_the_path_takes_the_penalty_that_held_out_rows_like():
    """Forty columns of noise beside a weak one: the weakest penalty overfits."""
    random = np.random.default_rng(0)
    code = np.arange(60) % 2
    x = random.normal(size=(60, 40))
    x[:, 0] += code
    parts = np.arange(60) // 2 % 3
    splits = [(np.flatnonzero(parts != p), np.flatnonzero(parts == p)) for p in range(3)]
    path = fit_path(x, code, 2, splits)
    assert path.model.c == min(path.loss, key=path.loss.get) < 1
    assert path.loss[1.0] > path.loss[path.model.c]
    assert not np.isnan(path.held_out).any()
    # A column that never changes neither breaks nor counts.
    flat = fit_path(np.column_stack([x, np.full(60, 7.0)]), code, 2, splits)
    np.testing.assert_allclose(flat.held_out, path.held_out, atol=1e-6)


@pytest.mark.parametrize("k", [10, 20])
def test_neighbours_by_cosine_as_scikit_learn_finds_them(k):
    x, code = rows(120, 0, classes=3)
    test = rows(50, 1, classes=3)[0]
    mine = knn_proba(x, code, test, 3, ks=(k,))[k]
    centre = x.mean(axis=0)

    def weights(distance):
        return np.exp(-(distance - distance[:, :1]) / 0.07)

    theirs = KNeighborsClassifier(k, metric="cosine", weights=weights).fit(x - centre, code)
    np.testing.assert_allclose(mine, theirs.predict_proba(test - centre), atol=1e-9)


def test_more_neighbours_than_rows_are_all_rows():
    x, code = rows(30, 0)
    found = knn_proba(x, code, x[:5], 2, ks=(30, 100))
    np.testing.assert_array_equal(found[30], found[100])


def test_effective_rank_of_known_spectra():
    random = np.random.default_rng(0)
    basis = np.linalg.qr(random.normal(size=(400, 9)) - 0)[0]
    basis = np.linalg.qr(basis - basis.mean(axis=0))[0]
    even = basis[:, :5] @ np.linalg.qr(random.normal(size=(8, 5)))[0].T
    assert effective_rank(even + 100.0) == pytest.approx(5, abs=1e-3)
    weights = np.array([0.5, 0.25, 0.25])
    uneven = basis[:, :3] * weights @ np.eye(3, 8)
    assert effective_rank(uneven) == pytest.approx(np.exp(1.5 * np.log(2)), rel=1e-3)
    assert effective_rank(np.ones((10, 4))) == 0


def test_more_labels_are_worth_what_the_curve_says():
    grows = {n: [0.1 * np.log(n) + e for e in (-0.001, 0.001)] for n in (50, 100, 500)}
    curve = LabelCurve("F1", grows)
    assert curve.worth[0] == pytest.approx(0.1 * np.log(550 / 500), abs=1e-6)
    assert curve.sentence == "with 500 labels F1 is 0.62; 50 more labels are worth about +0.010 F1" or (
        curve.sentence == "with 500 labels F1 is 0.62; 50 more labels are worth about +0.01 F1"
    )
    steep = LabelCurve("F1", {n: [0.2 * np.log(n) - 0.2] * 2 for n in (20, 50, 100)})
    assert steep.sentence.endswith("50 more labels are worth about +0.08 F1")
    flat = LabelCurve("F1", {50: [0.5, 0.6], 100: [0.55, 0.5], 200: [0.52, 0.58]})
    assert "nothing that can be told from chance" in flat.sentence
    assert "too few" in LabelCurve("F1", {30: [0.5]}).sentence


def test_labels_are_drawn_alike_and_fewer_are_among_more():
    code = (np.arange(1000) % 50 == 0).astype(int)
    few, many = draw_labels(code, 20, 0), draw_labels(code, 100, 0)
    assert (len(few), len(many)) == (20, 100)
    assert set(few) <= set(many)
    assert code[few].sum() >= 3
    assert set(few) != set(draw_labels(code, 20, 1))
    np.testing.assert_array_equal(draw_labels(code, 5000, 0), np.arange(1000))


def test_the_curve_ends_with_all_there_are():
    assert counts_up_to(5000) == [20, 50, 100, 500, 2000, 5000]
    assert counts_up_to(110) == [20, 50, 110]
    assert counts_up_to(15) == [15]
