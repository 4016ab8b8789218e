"""What is shipped works by its name: a refiner finds encoder and detector by sha256, cards know all three."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from canvas_fm.cli import main
from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.cards.card import check_card, write_card
from canvas_fm.evaluation.cards.report import Figure, Report, figures_of_report
from canvas_fm.files import shipped
from canvas_fm.heads.compare.compare import compare
from canvas_fm.heads.features.extractor import Extractor
from canvas_fm.heads.labels.candidates import Candidates
from canvas_fm.heads.refine.apply.apply import refine
from canvas_fm.heads.refine.fit.fit import fit_labelled
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.models.load_model import load, save_again
from canvas_fm.training.finetune.finetune import Tuning
from canvas_fm.viewing.report.write import write_report

from ..compare.test_report import Known


@pytest.fixture(scope="module")
def package(brains, encoder, detector, tmp_path_factory) -> Path:
    """A package that ships `base` (float16), a detector, and refiners of both kinds on top of them."""
    root = tmp_path_factory.mktemp("package")
    weights = root / "weights"
    base = save_again(encoder, weights / "base")
    shutil.copytree(detector.path, weights / "detector-x")
    candidates = [Candidates.of(volume, points) for volume, points in brains[:2]]
    both = Extractor(base, load(weights / "detector-x"), pool="centre", detector_score=True, device="cpu")
    half = Refiner(C=0.01, cut="mae", ratio=0.5)
    fit_labelled(half, candidates, both, weights / "refiner-x", augment_contrast=[2], show=False)
    alone = Extractor(base, pool="centre", device="cpu")
    tuning = Tuning(1, least_steps=4, most_steps=4)
    fit_labelled(
        Refiner("mae", C=0.01), candidates, alone, weights / "refiner-tuned", tuning=tuning, show=False
    )
    (root / "cards").mkdir()
    return root


@pytest.fixture
def installed(package, monkeypatch) -> Path:
    roots = {"model": (package / "weights",), "card": (package / "cards",), "recipe": (), "older model": ()}
    monkeypatch.setattr(shipped, "_ROOTS", roots)
    return package


@pytest.mark.parametrize("name", ["refiner-x", "refiner-tuned"])
def test_a_shipped_refiner_needs_no_more_than_its_name(installed, brains, name, tmp_path, capsys):
    volume, points = brains[2]
    points.write(tmp_path / "candidates.csv")
    words = ["refine", "apply", name, volume.path, tmp_path / "candidates.csv", "--device", "cpu"]
    assert main([str(word) for word in [*words, "--out", tmp_path / "cells.csv"]]) == 0, capsys.readouterr()
    judged = Points.read(tmp_path / "cells.csv")
    refiner = Refiner.load(installed / "weights" / name)
    models = {"encoder": load(installed / "weights" / "base")}
    models |= {"detector": load(installed / "weights" / "detector-x")} if name == "refiner-x" else {}
    expected = refine(refiner, volume, points, **models, device="cpu", show=False)
    assert np.allclose(judged.columns["p_cell"], expected.columns["p_cell"], atol=1e-7)
    assert ((judged.columns["p_cell"] >= refiner.threshold_) == (points.columns["label"] == 1)).mean() > 0.95


def test_a_refiner_of_the_whole_encoder_does_not_take_its_half(installed, encoder, brains, tmp_path):
    """The sha256 is over the files as they are: float16 weights are another model."""
    candidates = [Candidates.of(volume, points) for volume, points in brains[:2]]
    extractor = Extractor(encoder, pool="centre", device="cpu")
    fit_labelled(Refiner("mae", C=0.01), candidates, extractor, tmp_path / "refiner", show=False)
    with pytest.raises(
        CanvasError, match=r"fitted with the encoder tiny \(sha256 .* not\s+among the shipped"
    ):
        refine(Refiner.load(tmp_path / "refiner"), *brains[2])


def test_info_of_each_kind(installed, capsys):
    for name, kind in (("base", "encoder"), ("detector-x", "detector"), ("refiner-tuned", "refiner")):
        assert main(["info", name, "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["kind"] == kind
    assert said["tuned"]["base"] == "base"
    assert 0 < said["left_out"]["f1"] <= 1


def report_of(name: str, figures: list[Figure], command: str) -> Report:
    config = json.loads((shipped.find("model", name) / "config.json").read_text())
    return Report(
        model=name, sha256=config["sha256"], command=command, seed=0, cpu_minutes=3.0, machine="2 cores",
        protocol="Within 6 µm.", figures=figures,
    )  # fmt: skip


def test_cards_of_an_encoder_and_of_refiners(installed, pooled, tmp_path):
    random = np.random.default_rng(0)
    good = np.clip(0.5 + 0.3 * (2 * pooled.is_cell - 1) + random.normal(0, 0.2, len(pooled)), 0, 1)
    methods = [Known("concat", good), Known("own score", random.random(len(pooled)))]
    found = compare(pooled, methods, seeds=1, counts=(), show=False)
    write_report(found, tmp_path / "report")
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    figures = figures_of_report(
        report, "concat", "fold", metrics=("f1", "auc", "calibration_error"),
        beside={"own score": "own score"}, names={"a": "cube a", "pooled": "all"},
    )  # fmt: skip
    assert [one.data for one in figures[:4]] == ["cube a", "b", "c", "all"]
    assert [one.metric for one in figures[::4]] == ["F1", "AUC", "calibration error"]
    first = found.of("concat", "a")[0]
    assert (figures[0].value, figures[0].n) == (first.f1, first.tp + first.fn)
    assert (figures[0].low, figures[0].high) == tuple(first.f1_interval)
    assert figures[4].low is None
    assert figures[4].beside == {"own score": found.of("own score", "a")[0].auc}
    psnr = [Figure(data="1230", split="fold", metric="PSNR, masked, dB", n=0, value=17.47)]
    for name, some, command in (
        ("refiner-x", figures, "canvas-fm refine fit --encoder base --out RUN"),
        ("refiner-tuned", figures, "canvas-fm refine fit --encoder base --unfreeze 1 --out RUN"),
        ("base", psnr, "canvas-fm pretrain real_small --volumes A --out RUN"),
    ):
        text = write_card(
            report_of(name, some, command), installed / "cards", about="What it is."
        ).read_text()
        assert check_card(name) == []
        facts = dict(line.strip("| ").split(" | ", 1) for line in text.splitlines() if line.count("|") == 3)
        if name == "base":
            assert facts["weights"] == "float16"
            assert "17.470" in text
        else:
            assert f"of base{', 1 block tuned' * (name == 'refiner-tuned')} (`" in facts["features"]
            assert facts["operating threshold"]
            assert facts.get("fitted at contrasts") == ("1, 2" if name == "refiner-x" else None)
            assert ("; detector logit)" in facts["features"]) == (name == "refiner-x")
            assert "detector-x" in facts["features"] or name == "refiner-tuned"
            assert facts["variant"].startswith(
                "concat, 0.5 of mae, logistic" if name == "refiner-x" else "mae"
            )
        assert ("on top of" in facts) == (name == "refiner-tuned")
    with pytest.raises(CanvasError, match="the report has no method 'mae'; it has concat, own score"):
        figures_of_report(report, "mae", "fold")
