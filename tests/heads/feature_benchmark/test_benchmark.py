"""Worths of features: what tells scores well, what does not scores chance, and differences pair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from canvas_fm.cli import main
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.heads.feature_benchmark.features import Crops, disturbances, encoder_features
from canvas_fm.heads.feature_benchmark.finetuned import FineTuned, TuningRates
from canvas_fm.heads.feature_benchmark.per_cell_scores import (
    PerCellScores,
    _auc_credit,
    few_labels,
    few_labels_by,
    found_again,
    neighbours,
)
from canvas_fm.models.encoder.random_encoder import random_encoder
from canvas_fm.models.encoder.vit import EncoderConfig, ViTEncoder
from canvas_fm.models.load_model import ModelConfig, save_encoder

BRAIN = np.repeat(["a", "b", "c"], 60)
CLS = np.tile(np.repeat(["cell", "none"], 30), 3)


def features(telling: float, seed: int = 0) -> np.ndarray:
    """Noise, each brain at another level and scale, and one column that tells the classes apart."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((180, 8))
    x[:, 0] += telling * (CLS == "cell")
    return x * np.repeat([1.0, 5.0, 0.2], 60)[:, None] + np.repeat([0.0, 30.0, -4.0], 60)[:, None]


def test_an_auc_of_credits_is_that_of_sklearn_and_its_bootstrap_has_its_spread() -> None:
    random = np.random.default_rng(0)
    positive = random.random(400) < 0.4
    score = random.standard_normal(400) + positive
    credits = PerCellScores(_auc_credit(score, positive)[None], np.zeros(400), positive)
    assert credits.score == pytest.approx(roc_auc_score(positive, score))
    found = credits.interval()
    rows = [random.integers(0, 400, 400) for _ in range(300)]
    low, high = np.percentile([roc_auc_score(positive[r], score[r]) for r in rows], [2.5, 97.5])
    assert found.high - found.low == pytest.approx(high - low, rel=0.25)


def test_few_labels_of_other_brains_tell_what_features_hold_at_any_level() -> None:
    good = few_labels(features(4.0), CLS, BRAIN, ["a", "b", "c"], labels=20, draws=5)
    bad = few_labels(features(0.0), CLS, BRAIN, ["a", "b", "c"], labels=20, draws=5)
    assert good.credit.shape == (5, 180)
    assert good.score > 0.9
    assert 0.35 < bad.score < 0.65
    ahead = good.minus(bad).interval()
    assert ahead.value == pytest.approx(good.score - bad.score)
    assert ahead.low > 0
    assert good.minus(good).interval()[:3] == (0, 0, 0)


def test_the_scored_brains_labels_are_never_looked_at() -> None:
    turned = np.where(BRAIN == "a", np.where(CLS == "cell", "none", "cell"), CLS)
    scores = [few_labels(features(4.0), cls, BRAIN, ["a"], labels=20, draws=3).score for cls in (CLS, turned)]
    assert sum(scores) == pytest.approx(1)


def test_neighbours_are_of_other_brains_and_brightness_alone_does_not_tell() -> None:
    random = np.random.default_rng(1)
    bright = np.where(CLS == "cell", 2.0, 1.0) + 0.5 * random.random(180)
    shared = np.tile(
        random.standard_normal((60, 8)), (3, 1)
    )  # each brain's cell i is like the others' cell i
    alike = neighbours(shared, CLS, BRAIN, ["a"], np.ones(180), k=1)
    assert alike.score == pytest.approx(1)
    by_brightness = neighbours(bright[:, None].repeat(2, 1) * [1, -1], CLS, BRAIN, ["a"], bright, k=5)
    assert len(by_brightness.credit[0]) < 60


def test_a_cell_is_found_again_under_little_noise_and_not_under_much() -> None:
    x = features(0.0)
    noise = np.random.default_rng(2).standard_normal(x.shape) * x.std(axis=0)
    assert found_again(x, x, BRAIN).score == 1
    assert found_again(x, x + 100 * noise, BRAIN).score < 0.2


def test_a_shift_moves_the_cell_by_two_voxels_and_the_others_leave_it() -> None:
    wide = np.zeros((1, 9, 35, 35), np.float32)
    wide[0, 4, 17, 17] = 1
    for name, change in disturbances().items():
        crop = change(Crops(wide, (6.0, 1.6, 1.6))).cut((8, 16, 16))[0]
        at = np.unravel_index(crop.argmax(), crop.shape)
        assert at == ((4, 6, 6) if name in ("shift", "all") else (4, 8, 8))


@pytest.mark.parametrize("classes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_fine_tuning_begins_at_the_frozen_read_out_and_learns_its_labels(classes: int) -> None:
    random = np.random.default_rng(0)
    cls, brain = np.tile(list("abc")[:classes], 30), np.repeat(["x", "y", "z"], 10 * classes)
    wide = random.random((len(cls), 12, 22, 22)).astype(np.float32)
    crops = Crops(wide, (6.0, 1.62, 1.62))
    like = ModelConfig(
        architecture=EncoderConfig(crop_zyx=(8, 16, 16), patch_zyx=(2, 4, 4), dim=24, depth=2, heads=2),
        voxel_um=crops.voxel_um,
        weights={},
        sha256="",
    )
    encoder = random_encoder(like)
    before = {name: tensor.clone() for name, tensor in encoder.net.state_dict().items()}
    x = encoder_features(encoder, None, crops)
    split: dict[str, Any] = {"labels": 4 * classes, "draws": 2}
    cells = (encoder, None, crops, cls, brain)
    still = FineTuned(*cells, TuningRates(1, 1, learning_rate=0, head_rate=0))
    frozen = few_labels(x, cls, brain, ["x", "y"], **split)
    again = few_labels_by(still, cls, brain, ["x", "y"], **split)
    assert again.minus(frozen).credit == pytest.approx(0)
    learning = FineTuned(*cells, TuningRates(blocks=2, steps=75, learning_rate=3e-3))
    train = np.flatnonzero(brain == "z")[: 4 * classes]
    fitted = [scores_of(train, train) for scores_of in (learning, still)]
    target = np.where(cls[train][:, None] == np.unique(cls)[None], 1, -1)
    errors = [((scores - target) ** 2).mean() for scores in fitted]
    assert errors[0] < 0.2 * errors[1]
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.net.state_dict().items())


def write_brain(folder: Path, seed: int) -> tuple[Path, Path]:
    """Wide and narrow blobs in noise, labelled by their width; a few points without a label."""
    random = np.random.default_rng(seed)
    shape = (12, 80, 80)
    centres = np.stack(np.meshgrid([6], np.arange(10, 75, 12), np.arange(10, 75, 12), indexing="ij"), -1)
    centres = centres.reshape(-1, 3)
    wide = random.random(len(centres)) < 0.5
    grid = np.indices(shape)
    voxels = random.normal(100, 4, shape)
    for centre, big in zip(centres, wide, strict=True):
        away = sum((grid[axis] - centre[axis]) ** 2 for axis in range(3))
        voxels += 500 * np.exp(-away / (18 if big else 2))
    path = folder / f"brain{seed}" / "raw.zarr"
    path.parent.mkdir(parents=True)
    with Volume.create(path, shape, voxel_um=(6.0, 1.62, 1.62)) as writer:
        writer.write((0, 0, 0), voxels.clip(0).astype(np.uint16))
    label = wide.astype(int)
    label[:2] = -1
    Points(centres.astype(float), {"label": label}).write(path.parent / "cells.csv")
    return path, path.parent / "cells.csv"


def test_the_verb_compares_an_encoder_with_simple_features(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = ViTEncoder(EncoderConfig(crop_zyx=(8, 16, 16), patch_zyx=(2, 4, 4), dim=24, depth=1, heads=2))
    save_encoder(tmp_path / "tiny", net, voxel_um=(6.0, 1.62, 1.62), pool="centre")
    brains = [write_brain(tmp_path, seed) for seed in (1, 2)]
    flags = [
        *("--volumes", *(str(volume) for volume, _ in brains), "--points", *(str(csv) for _, csv in brains)),
        *("--labels", "label", "--few", "10", "--draws", "2", "--seeds", "1", "--finetune", "1"),
        *("--brains", "one", "two", "--out", str(tmp_path / "report.json")),
    ]
    assert main(["feature-benchmark", str(tmp_path / "tiny"), *flags]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    frozen, tuned = {"tiny", "untrained", "PCA-64", "shape"}, {"tiny, fine-tuned", "untrained 0, fine-tuned"}
    assert set(report["scores"]) == frozen | tuned
    for name in ("tiny", "untrained 0"):
        before, after = (report["scores"][key] for key in (name.removesuffix(" 0"), f"{name}, fine-tuned"))
        assert set(report["finetuned"][name]) == set(after) == {"few_10", "all_labels"}
        for amount, added in report["finetuned"][name].items():
            assert added["value"] == pytest.approx(after[amount]["value"] - before[amount]["value"])
    assert report["tested"] == ["one", "two"]
    assert report["scores"]["shape"]["all_labels"]["value"] > 0.9
    assert sum(report["brains"].values()) == 2 * 36 - 4
    assert set(report["ahead"]["tiny"]) == {"untrained", "PCA-64", "shape"}
    assert "tiny" in capsys.readouterr().out
    flags[flags.index("one")] = "two"
    assert main(["feature-benchmark", str(tmp_path / "tiny"), *flags, "--overwrite"]) == 1
    assert "all cells are of one brain (two)" in capsys.readouterr().err
