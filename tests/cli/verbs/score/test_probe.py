"""`probe` and `report` as they are typed."""

from __future__ import annotations

import json
import shutil
from typing import get_args

import numpy as np
import pytest

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.viewing.report.methods import METHODS
from canvas_fm.viewing.report.report_flags import Method


@pytest.fixture(scope="module")
def brains(tmp_path_factory, model):
    """Two volumes with wide cells among narrow spots: `raw.zarr`, candidates and true cells of each."""
    from canvas_fm.inference.embed.embed import embed_to_store
    from canvas_fm.models.load_model import load

    folder = tmp_path_factory.mktemp("labelled")
    for number, name in enumerate(("left", "right")):
        random = np.random.default_rng(number)
        voxels = random.integers(100, 200, (20, 64, 64))
        grid = np.stack(np.meshgrid((5, 14), range(6, 60, 8), range(6, 60, 8), indexing="ij"), -1)
        zyx = random.permutation(grid.reshape(-1, 3))[:60]
        label = np.where(np.arange(60) == 7, -1, np.arange(60) % 2)
        for (z, y, x), cell in zip(zyx, label, strict=True):
            wide = 3 if cell == 1 else 0
            voxels[z - 1 : z + 2, y - wide : y + wide + 1, x - wide : x + wide + 1] += 1500
        place = folder / name
        with Volume.create(place / "raw.zarr", voxels.shape, voxel_um=(4.0, 1.8, 1.8)) as writer:
            writer.write((0, 0, 0), voxels.astype(np.uint16))
        score = random.random(60) + 0.3 * label
        points = Points(zyx.astype(float), {"label": label, "score": score})
        points.write(place / "candidates.csv")
        Points(zyx[label == 1].astype(float)).write(place / "truth.csv")
        volume = Volume.open(place / "raw.zarr")
        encoder = load(model, kind="encoder")
        embed_to_store(encoder, volume, points, folder / f"{name}.emb.zarr", pool="centre", show=False)
    return folder


def fit(brains, out) -> list[object]:
    stores = [brains / f"{name}.emb.zarr" for name in ("left", "right")]
    return ["probe", "fit", *stores, "--labels", "label", "--out", out, "--curve", 20, "--seeds", 2]


def test_fit_and_apply(brains, tmp_path, result, run):
    found = result(*fit(brains, tmp_path / "probe"))
    assert (found["rows"], found["skipped"], found["groups"]) == (118, 2, 2)
    assert found["methods"]["logistic"]["auc"]["value"] > 0.8
    printed = result(
        "probe", "apply", tmp_path / "probe", brains / "left.emb.zarr", "--out", tmp_path / "p.csv"
    )
    assert printed["rows"] == sum(printed["predicted"].values()) == 60
    points = Points.read(tmp_path / "p.csv")
    assert list(points.columns) == ["label", "score", "p_cell", "predicted"]
    assert points.meta["probe"] == found["sha256"]
    code, out, err = run(*fit(brains, tmp_path / "again"), "--seeds", 1)
    assert code == 0, err
    assert "of 2 groups" in out
    assert "balanced accuracy 0." in out or "balanced accuracy 1." in out


def test_what_probe_refuses(brains, tmp_path, refusal, result):
    left = brains / "left.emb.zarr"
    words = ["probe", "fit", left, "--labels", "label", "--out", tmp_path / "probe", "--curve", 20]
    assert "--force-random-split" in refusal(*words)
    forced = result(*words, "--force-random-split", "--seeds", 1)
    assert "forced" in forced["split"]["warning"]
    assert "is there already; give another --out, or --overwrite" in refusal(*words, "--force-random-split")
    elsewhere = ["probe", "fit", left, "--labels", "kind", "--out", tmp_path / "other"]
    assert "has no column 'kind'" in refusal(*elsewhere)
    assert "is no model folder" in refusal("probe", "apply", tmp_path, left, "--out", tmp_path / "p.csv")


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """Reports without figures, where a test is about their numbers."""
    monkeypatch.setattr("canvas_fm.viewing.report.write._draw", lambda *_: [])


def report(brains, out, *more: object) -> list[object]:
    files = [
        [brains / one / name for one in ("left", "right")]
        for name in ("raw.zarr", "candidates.csv", "truth.csv")
    ]
    words: list[object] = ["report", "--out", out, "--tolerance-um", 8]
    for flag, paths in zip(("--volumes", "--candidates", "--truth"), files, strict=True):
        words += [flag, *paths]
    return [*words, *more]


def test_a_report_of_an_encoder_beside_baselines(brains, model, tmp_path, result):
    words = [
        "--labels",
        "label",
        "--encoder",
        model,
        "--pool",
        "centre",
        "--methods",
        "score",
        "pca",
        "encoder",
    ]
    words += ["random", "--seeds", 1, "--curve", 20, "--features", tmp_path / "kept"]
    found = result(*report(brains, tmp_path / "report", *words))
    assert list(found["methods"]) == ["candidate score", "PCA-64", "random encoder", "mae"]
    assert found["methods"]["mae"]["pooled"]["auc"]["mean"] > 0.8
    whole = {name: speed["whole"] for name, speed in found["speed"].items()}
    assert whole == dict.fromkeys(found["methods"], True) | {"candidate score": False}
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "report.json",
        "report.md",
        "report.html",
        "figures",
        "candidates",
        "fits",
    }
    assert json.loads((tmp_path / "report" / "report.json").read_text()) == found
    assert "sha256" in found["about"]["mae, left held out"]
    assert list((tmp_path / "kept").iterdir())


@pytest.mark.usefixtures("undrawn")
def test_a_report_for_people_by_matching(brains, tmp_path, run):
    words = ["--methods", "score", "--seeds", 1, "--curve"]
    code, out, err = run(*report(brains, tmp_path / "report", *words))
    assert code == 0, err
    assert out.splitlines()[0].endswith("report/report.html")
    assert "F1 0." in out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--methods", "encoder"], "the method 'encoder' needs --encoder, --detector or both"),
        (["--methods", "score", "--fold", "left", "--fold", "up"], "names 'up'; there are left, right"),
        (["--methods", "score", "--labels", "kind"], "no column 'kind'"),
    ],
)
def test_what_report_refuses(brains, tmp_path, refusal, words, sentence):
    assert sentence in refusal(*report(brains, tmp_path / "report", *words))
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--ratios", 0.4], "is of two kinds of features: give encoders and detectors"),
        (["--methods", "finetune", "--unfreeze", 9], "9 blocks are to be unfrozen; tiny has 1"),
        (["--ratios", 1.5, "--detector", "detector-microglia"], "ratio is 1.5"),
    ],
)
def test_what_report_refuses_before_any_work(brains, model, tmp_path, refusal, monkeypatch, words, sentence):
    from canvas_fm.heads.features.extractor import Extractor

    monkeypatch.setattr(Extractor, "features", lambda *_, **__: pytest.fail("features were made"))
    assert sentence in refusal(*report(brains, tmp_path / "report", "--encoder", model, *words))


@pytest.mark.usefixtures("undrawn")
def test_what_is_gained_over_the_candidates_and_the_same_again(brains, tmp_path, result):
    words = report(brains, tmp_path / "report", "--methods", "score", "--candidate-threshold", 0.5, "--curve")
    found = result(*words)
    assert set(found["own_thresholds"].values()) == {0.5}
    gained = found["gains"]["pooled"]
    assert gained["over"] == "unrefined candidates"
    counts = found["unrefined"].values()
    tp, fp, fn = (sum(one[name] for one in counts) for name in ("tp", "fp", "fn"))
    assert gained["before"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "report" / "fits").iterdir()}
    again = result(*words)
    assert again["methods"] == found["methods"]
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "report" / "fits").iterdir()} == kept


def test_models_that_are_not_one_a_fold(brains, model, tmp_path, refusal):
    words = report(brains, tmp_path / "report", "--encoder", model, model, model)
    assert "3 encoders for 2 folds (left, right); give one, or one a fold" in refusal(*words)


@pytest.mark.usefixtures("undrawn")
def test_an_encoder_that_saw_what_it_judges_is_told(brains, tmp_path, result):
    import torch

    from canvas_fm.models.encoder.mae import DecoderConfig, MaskedAutoencoder
    from canvas_fm.models.encoder.vit import EncoderConfig
    from canvas_fm.models.load_model import save_encoder

    torch.manual_seed(0)
    mae = MaskedAutoencoder(EncoderConfig(dim=24, depth=1, heads=2), DecoderConfig(dim=12, depth=1, heads=2))
    folder = shutil.copytree(brains, tmp_path / "brains")
    (folder / "right" / "meta.json").write_text('{"cube": "cubes/whole"}', encoding="utf-8")
    seen = {"trained_on": [{"name": "left"}, {"name": "whole"}]}
    save_encoder(tmp_path / "seen", mae, voxel_um=(4.0, 1.8, 1.8), provenance=seen)
    words = ["--methods", "encoder", "--encoder", tmp_path / "seen", "--seeds", 1, "--curve"]
    found = result(*report(folder, tmp_path / "report", *words))
    volumes = "the volume 'left', the volume 'whole', of which 'right' is a crop"
    assert found["notes"][-1] == f"the encoder seen was trained on {volumes}, and is scored on it here"


@pytest.mark.usefixtures("undrawn")
def test_a_volume_and_its_crop_are_one_fold(brains, tmp_path, result):
    for name, copy in (("left", "left"), ("right", "right"), ("left", "cut")):
        shutil.copytree(brains / name, tmp_path / copy)
    (tmp_path / "cut" / "meta.json").write_text('{"cube": "cubes/left"}', encoding="utf-8")
    words: list[object] = ["--tolerance-um", 8, "--methods", "score", "--seeds", 1, "--curve"]
    for flag, file in (("volumes", "raw.zarr"), ("candidates", "candidates.csv"), ("truth", "truth.csv")):
        words += [f"--{flag}", *(tmp_path / name / file for name in ("left", "cut", "right"))]
    found = result("report", "--out", tmp_path / "one", *words)
    assert found["split"]["folds"] == {"left + cut": ["left", "cut"], "right": ["right"]}
    apart = ["--fold", "left", "--fold", "cut", "--fold", "right"]
    found = result("report", "--out", tmp_path / "apart", *words, *apart)
    assert any("left is held out, while cut" in note for note in found["notes"])


def test_the_methods_that_help_names_are_those_there_are():
    assert get_args(Method) == METHODS
