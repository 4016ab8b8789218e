"""Fine-tuning: the frozen head without blocks, what learns, what stays, and the folder that carries it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from canvas_fm.errors import BadInput, CanvasError, ModelMismatch
from canvas_fm.evaluation.metrics.classification import auc
from canvas_fm.heads.compare.methods import Method, training
from canvas_fm.heads.features.extractor import Extractor
from canvas_fm.heads.labels.candidates import Candidates, label_brains
from canvas_fm.heads.refine.apply import apply as refine_points
from canvas_fm.heads.refine.apply.apply import models_of, refine
from canvas_fm.heads.refine.fit.fit import fit_labelled, training_set
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.models.encoder.vit import ViTEncoder
from canvas_fm.models.folder.network_config import DescriptorsConfig
from canvas_fm.models.load_model import load, model_sha256, save_encoder
from canvas_fm.training.finetune.finetune import Tuning, tune
from canvas_fm.training.finetune.frozen_tokens import FrozenTokens
from canvas_fm.training.finetune.method import FinetunedEncoder

from ..conftest import make_encoder

# Steps enough for the tiny encoder to change its mind.
TUNING = Tuning(1, least_steps=12, most_steps=12, batch=16, learning_rate=3e-3)


@pytest.fixture(scope="module")
def labelled(brains) -> list[Candidates]:
    """Volumes `a` and `b`; every fifth candidate is not labelled."""
    made = []
    for volume, points in brains[:2]:
        label = points.columns["label"].copy()
        label[::5] = -1
        made.append(replace(Candidates.of(volume, points), label=label))
    return made


@pytest.fixture(scope="module")
def extractor(encoder, detector) -> Extractor:
    return Extractor(encoder=encoder, detector=detector, pool="centre", device="cpu")


@pytest.fixture(scope="module")
def folder(labelled, extractor, tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned") / "refiner"
    fit_labelled(
        Refiner("mae", C=0.01, correction="standardise"), labelled, extractor, out, tuning=TUNING, show=False
    )
    return out


def test_without_blocks_it_is_the_frozen_head(labelled, extractor):
    data = training_set(labelled, extractor, show=False)
    plain = Refiner(C=0.01).fit(data.features, data.label)
    none = Refiner(C=0.01)
    assert tune(none, data.features, data.label, labelled, extractor, Tuning(0), show=False) is None
    assert np.array_equal(none.predict_proba(data.features), plain.predict_proba(data.features))
    assert none.threshold_ == plain.threshold_
    assert none.tuned_ is None


def test_blocks_that_learn_nothing_give_the_frozen_figures(labelled, extractor):
    data = training_set(labelled, extractor, show=False)
    still = replace(TUNING, least_steps=1, most_steps=1, learning_rate=1e-12, head_rate=1e-12)
    refiner = Refiner(C=0.01, correction="centre")
    tune(refiner, data.features, data.label, labelled, extractor, still, show=False)
    found, frozen = refiner.cross_validation_, refiner.cross_validation_["frozen"]
    assert found["pooled"]["auc"] == pytest.approx(frozen["pooled"]["auc"], abs=2e-3)
    assert found["pooled"]["count"]["value"] == pytest.approx(frozen["pooled"]["count"]["value"], rel=1e-2)


def test_it_overfits_a_few_crops_and_leaves_the_encoder_alone(labelled, tmp_path):
    """Coin flips for labels, a head that sees two columns: only blocks that learn can know them by heart."""
    coins = np.random.default_rng(2).permutation([0, 1] * 6).reshape(2, 6)
    few = [replace(one, label=np.append(some, [-1] * 74)) for one, some in zip(labelled, coins, strict=True)]
    encoder = make_encoder(tmp_path / "base")
    before = {name: value.clone() for name, value in encoder.net.state_dict().items()}
    extractor = Extractor(encoder=encoder, pool="centre", device="cpu")
    data = training_set(few, extractor, show=False)
    tuning = Tuning(2, least_steps=120, most_steps=120, batch=12, learning_rate=1e-2, head_rate=1e-2)
    settings = {"ratio": 0.1, "C": 1.0, "force_random": True, "folds": 2, "calibration": "none"}
    refiner, frozen = Refiner("mae", **settings), Refiner("mae", **settings).fit(data.features, data.label)
    work = tune(refiner, data.features, data.label, few, extractor, tuning, show=False)
    known = np.flatnonzero(data.label >= 0)
    is_cell = data.label[known] == 1
    # Over seven seeds of weights and batches: at most .75 frozen, 1 with blocks that learn.
    assert auc(is_cell, frozen.logits(data.features)[known]) < 0.85
    assert auc(is_cell, work.predictions_of(refiner.logits, known)) > 0.9
    assert all(torch.equal(before[name], value) for name, value in encoder.net.state_dict().items())
    assert {name.partition(".")[0] for name in refiner.tuned_.state} == {"blocks", "norm"}


def test_crops_are_turned_by_chance_where_that_is_asked_for(labelled, extractor, encoder):
    prefix = FrozenTokens(encoder, labelled, 1, device="cpu")
    rows = np.arange(70, 90)
    seen = [prefix.turned(rows, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(seen[0], seen[1])
    assert not torch.allclose(seen[0], seen[2], atol=1e-2)
    data = training_set(labelled, extractor, show=False)
    refiner = Refiner("mae", C=0.01)
    tune(refiner, data.features, data.label, labelled, extractor, replace(TUNING, augment=True), show=False)
    assert refiner.cross_validation_["pooled"]["auc"] > 0.95


def test_the_folder_carries_its_blocks_and_judges_as_it_said(folder, labelled, brains, encoder, detector):
    config = json.loads((folder / "config.json").read_text())
    assert config["tuned"] == {"base": "tiny", "base_sha256": encoder.sha256, "first": 1, "last": 2}
    assert sorted(path.name for path in folder.iterdir()) == [
        "blocks.safetensors", "config.json", "model.safetensors", "report.json",
    ]  # fmt: skip
    report = json.loads((folder / "report.json").read_text())
    assert report["tuned"] == config["tuned"]
    assert set(report["cross_validation"]["frozen"]) == {"pooled", "brains", "regions"}
    refiner = Refiner.load(folder)
    assert refiner.provenance_["mae"].sha256 == refiner.tuned_.sha256 != encoder.sha256
    assert refiner.provenance_["mae"].name == "tiny, 1 block tuned"
    volume, points = brains[2]
    judged = refine(refiner, volume, points, encoder=encoder, device="cpu", show=False)
    assert ((judged.columns["p_cell"] >= refiner.threshold_) == (points.columns["label"] == 1)).mean() > 0.95
    assert judged.meta["refiner_encoder_sha256"] == refiner.tuned_.sha256


def test_what_was_fitted_and_what_is_loaded_say_the_same(labelled, extractor, encoder, brains, tmp_path):
    data = training_set(labelled, extractor, show=False)
    refiner = Refiner(C=0.01, cut="mae", ratio=0.5)
    work = tune(refiner, data.features, data.label, labelled, extractor, TUNING, show=False)
    by_hand = work.predictions_of(lambda some: refiner.predict_proba(some)[:, 1], np.arange(80))
    refiner.save(tmp_path / "refiner")
    volume, points = brains[0]
    models = {"encoder": encoder, "detector": extractor.detector}
    judged = refine(Refiner.load(tmp_path / "refiner"), volume, points, **models, device="cpu", show=False)
    # What enters the blocks was kept as float16.
    assert np.allclose(judged.columns["p_cell"], by_hand, atol=5e-3)
    frozen = Refiner(C=0.01, cut="mae", ratio=0.5).fit(data.features, data.label)
    assert not np.allclose(judged.columns["p_cell"], frozen.predict_proba(data.features)[:80, 1], atol=5e-3)


def test_the_base_encoder_is_found_by_its_sha256_and_another_one_is_refused(
    folder, brains, encoder, tmp_path, monkeypatch
):
    refiner = Refiner.load(folder)
    volume, points = brains[2]
    with pytest.raises(CanvasError, match=r"fitted with the encoder tiny \(sha256 .* not among the shipped"):
        refine(refiner, volume, points)
    with pytest.raises(ModelMismatch, match=r"the encoder other has sha256 .* was fitted with tiny"):
        refine(refiner, volume, points, encoder=make_encoder(tmp_path / "other", seed=7))
    monkeypatch.setattr(refine_points, "shipped", lambda kind: {"renamed": encoder.path})
    assert models_of(refiner, None, None)["encoder"].sha256 == refiner.tuned_.sha256
    frozen = Extractor(encoder=encoder, pool="centre", device="cpu").features(volume, points.zyx, show=False)
    with pytest.raises(ModelMismatch, match=r"mae features are of tiny .* with tiny, 1 block tuned"):
        refiner.predict_proba(frozen)


def test_changed_blocks_are_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "refiner")
    data = bytearray((copy / "blocks.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "blocks.safetensors").write_bytes(data)
    with pytest.raises(CanvasError, match=r"blocks.safetensors is damaged or was changed"):
        Refiner.load(copy)
    (copy / "blocks.safetensors").unlink()
    with pytest.raises(CanvasError, match=r"blocks.safetensors is missing"):
        Refiner.load(copy)


def test_blocks_of_another_base_are_refused_even_where_the_config_is_signed(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "refiner")
    config = json.loads((copy / "config.json").read_text())
    config["tuned"]["base_sha256"] = "0" * 64
    config["sha256"] = model_sha256(config)
    (copy / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    with pytest.raises(CanvasError, match="holds other blocks than this refiner was fitted with"):
        Refiner.load(copy)


def test_figures_are_those_of_blocks_that_have_not_seen_the_fold(labelled, extractor):
    """Not the frozen encoder's, and not those of the blocks that saw everything."""
    data = training_set(labelled, extractor, show=False)
    refiner = Refiner("mae", C=0.01, calibration="none")
    work = tune(refiner, data.features, data.label, labelled, extractor, TUNING, show=False)
    said = refiner.cross_validation_["pooled"]["count"]["value"]
    known = np.flatnonzero(data.label >= 0)
    seen = work.predictions_of(lambda some: refiner.predict_proba(some)[:, 1], known).sum()
    frozen = refiner.cross_validation_["frozen"]["pooled"]["count"]["value"]
    assert abs(said - frozen) > 0.05
    assert abs(said - seen) > 0.05


def test_a_fold_does_not_know_its_own_labels(labelled, extractor):
    """No leak: turning one brain's labels round only turns the AUC of that brain."""
    data = training_set(labelled, extractor, show=False)
    turned = np.where((data.features.groups == "b") & (data.label >= 0), 1 - data.label, data.label)
    found = []
    for label in (data.label, turned):
        refiner = Refiner("mae", C=0.01, calibration="none")
        tune(refiner, data.features, label, labelled, extractor, TUNING, show=False)
        found.append(refiner.cross_validation_["brains"]["b"]["auc"])
    assert found[0] == pytest.approx(1 - found[1], abs=1e-6)


def test_the_same_seed_gives_the_same_blocks(labelled, extractor):
    data = training_set(labelled, extractor, show=False)
    found = []
    for seed in (0, 0, 1):
        refiner = Refiner("mae", C=0.01, random_state=seed)
        tune(refiner, data.features, data.label, labelled, extractor, TUNING, show=False)
        found.append(refiner.tuned_.sha256)
    assert found[0] == found[1] != found[2]


def test_blocks_leave_an_encoders_descriptors_as_they_are(labelled, encoder, tmp_path):
    described = DescriptorsConfig(components=3, radii_um=(4, 9), voxel_um=encoder.config.voxel_um)
    net = ViTEncoder(encoder.config.architecture.model_copy(update={"descriptors": described}))
    base = save_encoder(tmp_path / "described", net, voxel_um=encoder.config.voxel_um)
    source = Extractor(encoder=base, device="cpu")
    data = training_set(labelled, source, show=False)
    work = tune(Refiner("mae", C=0.01), data.features, data.label, labelled, source, TUNING, show=False)
    rows = np.arange(6)
    tuned, frozen = work.features_of(rows).x, data.features.rows(rows).x
    assert tuned.shape == frozen.shape == (6, base.dim)
    assert np.array_equal(tuned[:, 24:], frozen[:, 24:])
    assert not np.allclose(tuned[:, :24], frozen[:, :24], atol=1e-3)


def test_tokens_are_worked_out_once(labelled, encoder, monkeypatch):
    prefix = FrozenTokens(encoder, labelled, 1, device="cpu", batch=7)
    rows = np.array([100, 3, 150, 3])
    tokens = prefix(rows)
    monkeypatch.setattr(type(encoder.net), "before", lambda *_: pytest.fail("worked out again"))
    assert torch.equal(prefix(rows), tokens)
    assert torch.equal(tokens[1], tokens[3])
    monkeypatch.undo()
    source = Extractor(encoder=encoder, pool="centre", device="cpu")
    crop = source.features(labelled[1].volume, labelled[1].zyx[20:21], show=False).x
    assert np.allclose(encoder.net.onward(tokens[:1], 1, "centre").numpy(), crop, atol=2e-3)


@pytest.mark.parametrize(
    ("refiner", "blocks", "message"),
    [
        (Refiner("detector"), 1, "variant detector looks at no encoder whose blocks"),
        (
            Refiner("mae"),
            3,
            "3 blocks are to be unfrozen; tiny has 2 up to the layer that is read",
        ),
        (Refiner("mae"), -1, "-1 blocks are to be unfrozen; give 0"),
    ],
)
def test_what_cannot_be_tuned_is_said_before_any_work(
    labelled, extractor, refiner, blocks, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(Extractor, "features", lambda *_, **__: pytest.fail("features were made"))
    with pytest.raises(BadInput, match=message):
        fit_labelled(refiner, labelled, extractor, tmp_path / "refiner", tuning=Tuning(blocks))
    assert not (tmp_path / "refiner").exists()


def test_blocks_above_the_layer_that_is_read_are_not_there(labelled, encoder, tmp_path):
    lower = Extractor(encoder=encoder, layer=1, device="cpu")
    with pytest.raises(BadInput, match="tiny has 1 up to the layer that is read"):
        fit_labelled(Refiner("mae"), labelled, lower, tmp_path / "refiner", tuning=Tuning(2))
    report = fit_labelled(
        Refiner("mae", C=0.01), labelled, lower, tmp_path / "refiner", tuning=TUNING, show=False
    )
    assert (report["tuned"]["first"], report["tuned"]["last"]) == (0, 1)


def test_a_frozen_fit_over_a_tuned_one_carries_no_blocks(folder, labelled, extractor, tmp_path):
    refiner = Refiner.load(folder)
    fit_labelled(refiner, labelled, extractor, tmp_path / "refiner", show=False)
    assert Refiner.load(tmp_path / "refiner").tuned_ is None
    assert sorted(path.name for path in (tmp_path / "refiner").iterdir()) == [
        "config.json", "model.safetensors", "report.json",
    ]  # fmt: skip
    assert load(extractor.encoder.path).sha256 == refiner.provenance_["mae"].sha256


@pytest.mark.parametrize("correction", ["none", "whiten"])
def test_as_a_method_it_judges_held_out_volumes_and_few_labels(pooled, encoder, correction):
    extractor = Extractor(encoder=encoder, pool="centre", device="cpu")
    features = training_set(list(pooled.parts), extractor, show=False).features

    def refiner(seed):
        return Refiner("mae", correction=correction, random_state=seed)

    method = FinetunedEncoder({"c": extractor}, {"c": features}, TUNING, refiner=refiner)
    assert isinstance(method, Method)
    pool = np.flatnonzero(pooled.group != "c")
    fit = method.fit(training(pooled, pooled.labelled(["a", "b"]), pool, "c", 0))
    rows = pooled.labelled(["c"])
    assert auc(pooled.is_cell[rows], fit.predict(rows)) > 0.7
    assert np.allclose(fit.predict(rows), fit.from_scratch(rows), atol=5e-3)
    few = np.sort(np.concatenate([pool[pooled.is_cell[pool]][:3], pool[pooled.label[pool] == 0][:9]]))
    assert np.isfinite(method.fit(training(pooled, few, pool, "c", 0)).predict(rows)).all()


def test_labels_by_matching_go_the_same_way(brains, encoder, tmp_path):
    volumes, tables = zip(*brains[:2], strict=True)
    truth = [type(p)(p.zyx[p.columns["label"] == 1]) for p in tables]
    given = label_brains(volumes, tables, truth=truth, tolerance_um=5.0)
    extractor = Extractor(encoder=encoder, device="cpu")
    report = fit_labelled(
        Refiner("mae", C=0.01), given, extractor, tmp_path / "refiner", tuning=TUNING, show=False
    )
    assert report["cross_validation"]["pooled"]["f1_ceiling"] == 1.0
