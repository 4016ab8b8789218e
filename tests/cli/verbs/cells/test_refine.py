"""`refine fit` and `refine apply` from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from canvas_fm.data.points.points import Points
from canvas_fm.models.detector.convmixer import ConvMixerConfig, HeatMapNet
from canvas_fm.models.load_model import load, save_detector
from tests.support.spots import write_spots

VOXEL_UM = (4.0, 1.8, 1.8)
SHAPE = (16, 96, 96)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Volumes a, b and c of bright cells and dimmer spots, their candidates, the cells alone, a detector."""
    folder = tmp_path_factory.mktemp("refine")
    for seed, name in enumerate("abc"):
        random = np.random.default_rng(seed)
        voxels = random.integers(100, 200, SHAPE)
        zyx = np.stack(np.meshgrid([4, 11], range(6, 92, 12), range(6, 92, 12), indexing="ij"), -1).reshape(
            -1, 3
        )
        zyx = random.permutation(zyx)[:60]
        label = np.arange(60) % 2
        write_spots(folder / f"{name}.zarr", voxels, zyx, label, VOXEL_UM, 48)
        region = np.where(zyx[:, 1] < 48, "left", "right")
        Points(zyx, {"label": label, "region": region}).write(folder / f"{name}.csv")
        Points(zyx[label == 1]).write(folder / f"{name}_cells.csv")
    torch.manual_seed(1)
    net = HeatMapNet(ConvMixerConfig(dim=4, depth=1, kernel_zyx=(3, 3, 3)))
    save_detector(folder / "detector", net, voxel_um=VOXEL_UM, threshold=0.5, min_distance_um=6)
    return folder


def fit_words(folder: Path, model: Path, out: Path, volumes: str = "ab") -> list[object]:
    words: list[object] = ["refine", "fit", "--encoder", model, "--pool", "centre", "--device", "cpu"]
    words += ["--volumes", *(folder / f"{name}.zarr" for name in volumes)]
    words += ["--candidates", *(folder / f"{name}.csv" for name in volumes), "--out", out]
    return words


@pytest.fixture(scope="module")
def refiner(folder, model, tmp_path_factory) -> Path:
    from canvas_fm.cli import main

    out = tmp_path_factory.mktemp("refiners") / "refiner"
    assert main([str(word) for word in [*fit_words(folder, model, out), "--labels", "label"]]) == 0
    return out


def test_fit_and_apply(folder, model, result, tmp_path):
    out, cells = tmp_path / "refiner", tmp_path / "cells.csv"
    words = [*fit_words(folder, model, out), "--detector", folder / "detector", "--variant", "concat"]
    report = result(*words, "--ratio", 0.4, "--labels", "label")
    assert report["columns_used"] == 32 + round(0.4 * 24)
    assert report["cut"] == "mae"
    assert report["models"]["mae"]["sha256"] == load(model).sha256
    assert (out / "report.json").is_file()
    words = ["refine", "apply", out, folder / "c.zarr", folder / "c.csv", "--out", cells, "--encoder", model]
    said = result(*words, "--detector", folder / "detector", "--count-by", "region", "--device", "cpu")
    given, judged = Points.read(folder / "c.csv"), Points.read(cells)
    assert np.array_equal(judged.zyx, given.zyx)
    assert list(judged.columns) == ["label", "region", "p_cell"]
    kept = judged.columns["p_cell"] >= said["threshold"]
    assert (kept == (given.columns["label"] == 1)).mean() > 0.9
    assert said["cells"] == kept.sum()
    assert said["expected_cells"] == pytest.approx(judged.columns["p_cell"].sum(), rel=1e-5)
    assert [one["region"] for one in said["regions"]] == ["left", "right"]
    assert sum(one["value"] for one in said["regions"]) == pytest.approx(said["expected_cells"])
    assert said["interval_90"][0] <= said["expected_cells"] <= said["interval_90"][1]


def test_the_own_score_beside_the_features(folder, model, result, refusal, wrong, tmp_path):
    words = [*fit_words(folder, model, tmp_path / "refiner"), "--labels", "label"]
    for name in "abc":
        points = Points.read(folder / f"{name}.csv")
        points.columns["heat"] = np.where(points.columns["label"] == 1, 0.8, 0.3)
        points.write(tmp_path / f"{name}.csv")
        if name != "c":
            words[words.index(folder / f"{name}.csv")] = tmp_path / f"{name}.csv"
    assert "no column score, p_cell, log_score" in refusal(*words, "--candidate-score")
    assert "give that flag too" in wrong(*words, "--score-column", "heat")
    own = ["--candidate-score", "--score-column", "heat"]
    assert "give one of the two" in wrong(*words, *own, "--unfreeze", 1)
    assert "level of the candidate score" in refusal(*words, *own, "--correction", "centre")
    assert not (tmp_path / "refiner").exists()
    report = result(*words, *own)
    assert report["columns"] == {"mae": 24, "score": 1}
    assert report["columns_used"] == 25
    assert result("info", tmp_path / "refiner")["models"]["score"] == "column heat"
    apply = [
        "refine",
        "apply",
        tmp_path / "refiner",
        folder / "c.zarr",
        tmp_path / "c.csv",
        "--encoder",
        model,
    ]
    apply += ["--out", tmp_path / "cells.csv", "--device", "cpu"]
    assert result(*apply)["cells"] == 30
    apply[4] = folder / "c.csv"
    assert "candidate score, column 'heat'; these have label, region" in refusal(*apply)


def test_the_heat_and_other_contrasts(folder, model, result, refusal, wrong, tmp_path):
    words = [*fit_words(folder, model, tmp_path / "refiner"), "--labels", "label"]
    assert "give --detector too" in refusal(*words, "--detector-score")
    words += ["--detector", folder / "detector"]
    assert "--detector-score goes with the encoder as it is" in wrong(
        *words, "--detector-score", "--unfreeze", 1
    )
    assert "--augment-contrast goes with the encoder" in wrong(
        *words, "--augment-contrast", 2, "--unfreeze", 1
    )
    assert "level of the detector score" in refusal(*words, "--detector-score", "--correction", "centre")
    report = result(*words, "--detector-score", "--augment-contrast", 0.5, 2)
    assert report["columns"]["heat"] == 1
    assert report["contrasts"] == [1.0, 0.5, 2.0]
    assert report["cross_validation"]["pooled"]["candidates"] == 120
    apply = ["refine", "apply", tmp_path / "refiner", folder / "c.zarr", folder / "c.csv", "--encoder", model]
    apply += ["--detector", folder / "detector", "--out", tmp_path / "cells.csv", "--device", "cpu"]
    assert result(*apply)["cells"] == 30
    result(*words, "--detector-score", "--variant", "mae", "--C", 0.01, "--overwrite")
    told = result("info", tmp_path / "refiner")
    assert told["features"] == {"heat": 1, "mae": 24}  # what it looks at, of what there was
    assert list(told["models"]) == ["heat", "mae"]
    assert told["contrasts"] == [1.0]
    assert result(*apply[:-4], "--out", tmp_path / "more.csv", "--device", "cpu")["cells"] == 30


def test_damage_of_a_background_that_is_skipped_is_named(folder, run, tmp_path):
    net = HeatMapNet(ConvMixerConfig(dim=4, depth=1, kernel_zyx=(3, 3, 3), channels=2))
    save_detector(tmp_path / "two", net, voxel_um=VOXEL_UM, threshold=0.5, min_distance_um=6)
    behind = tmp_path / "behind.zarr"
    shutil.copytree(folder / "b.zarr", behind)
    chunk = max(behind.glob("0/c/*/*/*"), key=lambda path: path.stat().st_size)
    chunk.write_bytes(b"!" * 100)
    fit = [
        "refine",
        "fit",
        "--detector",
        tmp_path / "two",
        "--detector-score",
        "--C",
        0.01,
        "--labels",
        "label",
    ]
    fit += ["--volumes", folder / "a.zarr", folder / "b.zarr", "--background", folder / "b.zarr", behind]
    fit += ["--candidates", folder / "a.csv", folder / "b.csv", "--out", tmp_path / "refiner"]
    apply = [
        "refine",
        "apply",
        tmp_path / "refiner",
        folder / "c.zarr",
        folder / "c.csv",
        "--background",
        behind,
    ]
    apply += ["--detector", tmp_path / "two", "--out", tmp_path / "cells.csv"]
    for words in (fit, apply):
        assert run(*words, "--device", "cpu")[0] == 1
        code, out, err = run(*words, "--device", "cpu", "--on-bad-chunk", "skip", "--json")
        assert code == 0, err
        assert list(json.loads(out)["bad_chunks"]) == [str(behind)]


def test_labels_by_the_truth_show_the_ceiling(folder, model, run, tmp_path):
    truth = tmp_path / "more.csv"
    cells = Points.read(folder / "b_cells.csv").zyx
    Points(np.concatenate([cells, [[8.0, 5 + 8 * row, 48] for row in range(10)]])).write(truth)
    code, out, err = run(
        *fit_words(folder, model, tmp_path / "refiner"), "--truth", folder / "a_cells.csv", truth,
        "--tolerance-um", 4,
    )  # fmt: skip
    assert code == 0, err
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert "best possible 1.000" in lines["a"]
    recall = 30 / 40
    assert f"best possible {2 * recall / (1 + recall):.3f}" in lines["b"]
    report = json.loads((tmp_path / "refiner" / "report.json").read_text())
    assert report["brains"]["b"]["missed"] == 10


def test_labels_of_minus_one_are_counted_and_recall_stays_unknown(folder, model, run, tmp_path):
    points = Points.read(folder / "b.csv")
    points.columns["label"] = np.where(np.arange(60) < 7, -1, points.columns["label"])
    points.write(tmp_path / "b.csv")
    words = fit_words(folder, model, tmp_path / "refiner")
    words[words.index(folder / "b.csv")] = tmp_path / "b.csv"
    code, out, _ = run(*words, "--labels", "label")
    assert code == 0
    assert "113 labelled, 57 of them cells, 7 skipped" in out
    assert "recall unknown" in out


def test_features_are_kept_for_the_next_fit(folder, model, run, tmp_path):
    words = [
        *fit_words(folder, model, tmp_path / "refiner"),
        "--labels",
        "label",
        "--features",
        tmp_path / "kept",
    ]
    assert run(*words)[0] == 0
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    assert len(kept) == 2
    assert run(*words, "--overwrite", "--whiten")[0] == 0
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()} == kept


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing says which candidates are cells"),
        (["--labels", "lab"], "no column 'lab'"),
        (["--labels", "label", "--variant", "concat"], "needs the detector features: give --detector"),
        (["--labels", "label", "--ratio", "1.5"], "ratio is 1.5"),
        (["--labels", "label", "--layer", "9"], "layer is 9"),
        (["--labels", "label", "--roi", "boxes.json"], "2 volumes and 1 of within"),
    ],
)
def test_mistakes_of_a_fit_are_a_line(folder, model, refusal, tmp_path, words, message):
    assert message in refusal(*fit_words(folder, model, tmp_path / "refiner"), *words)
    assert not (tmp_path / "refiner").exists()


def test_one_volume_alone_is_refused_and_forced_ones_are_marked(folder, model, run, refusal, tmp_path):
    words = [*fit_words(folder, model, tmp_path / "refiner", "a"), "--labels", "label"]
    assert "one brain (a)" in refusal(*words)
    code, out, _ = run(*words, "--force-random-split")
    assert code == 0
    assert "neighbours stand on both sides" in out
    assert "already" in refusal(*words)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: Points(p.zyx + np.array([0, 0, 90]), p.columns), "points outside the volume"),
        (lambda p: Points(p.zyx, p.columns, {"volume": "elsewhere"}), "of the volume 'elsewhere'"),
        (lambda p: Points(p.zyx, {"label": np.ones(60, int)}), "one class only"),
        (
            lambda p: Points(p.zyx, {"label": np.where(np.arange(60) < 2, [0, 1] * 30, -1)}),
            "fewer than 5 folds",
        ),
        (lambda p: Points(p.zyx, {"label": np.arange(60)}), "holds 2; expected 1"),
    ],
)
def test_candidates_that_do_not_fit(folder, model, refusal, tmp_path, change, message):
    words = fit_words(folder, model, tmp_path / "refiner")
    for name in "ab":
        change(Points.read(folder / f"{name}.csv")).write(tmp_path / f"{name}.csv")
        words[words.index(folder / f"{name}.csv")] = tmp_path / f"{name}.csv"
    assert message in refusal(*words, "--labels", "label")


def test_mistakes_of_an_apply_are_a_line(folder, model, refiner, refusal, tmp_path):
    words = ["refine", "apply", refiner, folder / "c.zarr", folder / "c.csv", "--out", tmp_path / "cells.csv"]
    assert "give its folder with --encoder" in refusal(*words)
    assert "expected" in refusal(*words, "--encoder", folder / "detector")
    assert "no column 'area' to count by" in refusal(*words, "--encoder", model, "--count-by", "area")
    words[-1] = tmp_path / "cells.npz"
    assert "written as .csv or .parquet" in refusal(*words, "--encoder", model, "--device", "cpu")
    assert "a refiner was expected" in refusal(
        "refine", "apply", model, folder / "c.zarr", folder / "c.csv", "--out", tmp_path / "cells.csv"
    )


def test_an_encoder_that_is_another_one(folder, refiner, refusal, tmp_path):
    from canvas_fm.models.encoder.mae import DecoderConfig, MaskedAutoencoder
    from canvas_fm.models.encoder.vit import EncoderConfig
    from canvas_fm.models.load_model import save_encoder

    torch.manual_seed(9)
    mae = MaskedAutoencoder(EncoderConfig(dim=24, depth=1, heads=2), DecoderConfig(dim=12, depth=1, heads=2))
    save_encoder(tmp_path / "other", mae, voxel_um=VOXEL_UM)
    words = ["refine", "apply", refiner, folder / "c.zarr", folder / "c.csv", "--out", tmp_path / "cells.csv"]
    assert "this refiner was fitted with tiny" in refusal(*words, "--encoder", tmp_path / "other")


def test_the_cells_alone_are_written_and_the_count_is_of_all(
    folder, model, refiner, result, refusal, tmp_path
):
    words = ["refine", "apply", refiner, folder / "c.zarr", folder / "c.csv", "--encoder", model]
    words += ["--device", "cpu", "--out"]
    of_all = result(*words, tmp_path / "all.csv")
    of_cells = result(*words, tmp_path / "cells.csv", "--cells-only")
    every, cells = Points.read(tmp_path / "all.csv"), Points.read(tmp_path / "cells.csv")
    keep = every.columns["p_cell"] >= of_all["threshold"]
    assert 0 < keep.sum() < len(every)
    np.testing.assert_array_equal(cells.zyx, every.zyx[keep])
    assert (of_cells["cells"], of_cells["candidates"]) == (keep.sum(), len(every))
    assert of_cells["expected_cells"] == pytest.approx(of_all["expected_cells"], abs=0.1)
    assert of_cells["notes"] == (["; ".join(of_all["notes"])] if of_all["notes"] else [])
    assert result(*words, tmp_path / "cells.csv", "--cells-only") == of_cells
    assert "made from other inputs" in refusal(*words, tmp_path / "cells.csv")
    assert "leave it or --cells-only out" in refusal(
        *words, tmp_path / "d.csv", "--cells-only", "--count-by", "region"
    )


def test_without_its_sidecar_an_evaluation_says_that_every_row_counts(
    folder, result, tmp_path, model, refiner
):
    out = tmp_path / "judged.csv"
    words = ["refine", "apply", refiner, folder / "c.zarr", folder / "c.csv", "--encoder", model]
    said = result(*words, "--device", "cpu", "--out", out)
    score = ["evaluate", out, folder / "c_cells.csv", "--tolerance-voxels", 2]
    before = result(*score)
    assert before["threshold"] == pytest.approx(said["threshold"], rel=1e-5)
    (tmp_path / "judged.csv.json").unlink()
    after = result(*score)
    assert any("not the refiner's threshold" in warning for warning in after["warnings"])
