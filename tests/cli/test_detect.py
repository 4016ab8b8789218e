"""`detect` and `train-detector` from the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from canvas_fm.cli import main
from canvas_fm.data.points import Points
from canvas_fm.data.volume import Volume
from canvas_fm.models.checkpoint import load, save_detector
from canvas_fm.models.convmixer import ConvMixerConfig, HeatMapNet

SHAPE = (16, 40, 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A volume, its cells, a detector of random weights."""
    folder = tmp_path_factory.mktemp("detect")
    truth = np.array([[4, 10, 10], [4, 30, 28], [11, 12, 30], [12, 30, 8]])
    voxels = np.zeros(SHAPE)
    voxels[tuple(truth.T)] = 1e5
    voxels = gaussian_filter(voxels, (1, 2, 2)) + np.random.default_rng(0).random(SHAPE) * 20
    with Volume.create(folder / "brain.zarr", SHAPE, voxel_um=(4.0, 2.0, 2.0)) as writer:
        writer.write((0, 0, 0), voxels.astype(np.uint16))
    Points(truth.astype(float)).write(folder / "truth.csv")
    torch.manual_seed(0)
    net = HeatMapNet(ConvMixerConfig(dim=4, depth=1, kernel_zyx=(3, 3, 3)))
    save_detector(folder / "detector", net, voxel_um=(4.0, 2.0, 2.0), threshold=0.005, min_distance_um=6)
    return folder


def say(capsys, *argv):
    code = main([str(part) for part in argv])
    out, err = capsys.readouterr()
    return code, out, err


def test_detect_writes_points_and_says_so(folder, tmp_path, capsys):
    cells = tmp_path / "cells.csv"
    command = ["detect", folder / "detector", folder / "brain.zarr", "--out", cells, "--json"]
    code, out, _ = say(capsys, *command)
    said = json.loads(out)
    points = Points.read(cells)
    assert code == 0
    assert said["cells"] == len(points) > 0
    assert said["detector_sha256"] == load(folder / "detector").sha256 == points.meta["detector_sha256"]
    assert say(capsys, *command)[0] == 0
    code, _, err = say(capsys, *command, "--threshold", 0.3)
    assert code == 1
    assert "made from other inputs" in err


def test_the_baseline_needs_no_detector(folder, tmp_path, capsys):
    cells = tmp_path / "cells.parquet"
    code, _, _ = say(
        capsys, "detect", folder / "brain.zarr", "--method", "log", "--sigma-um", 4, "--out", cells
    )
    assert code == 0
    found, truth = Points.read(cells).zyx, Points.read(folder / "truth.csv").zyx
    assert np.array_equal(found, truth[np.lexsort(truth.T[::-1])])


def test_a_dry_run_counts_and_writes_nothing(folder, tmp_path, capsys):
    code, out, _ = say(
        capsys,
        "detect",
        folder / "detector",
        folder / "brain.zarr",
        "--tile",
        8,
        20,
        20,
        "--dry-run",
        "--json",
    )
    said = json.loads(out)
    assert code == 0
    assert said["tiles"] == 8
    assert said["bytes_read"] > 2 * np.prod(SHAPE)
    assert {"minutes", "voxels"} <= set(said)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["brain.zarr", "--out", "c.csv"], "needs a DETECTOR before the VOLUME"),
        (["detector", "brain.zarr"], "needs --out"),
        (["detector", "brain.zarr", "--out", "c.csv", "--method", "log"], "takes no DETECTOR"),
        (
            ["detector", "brain.zarr", "--out", "c.csv", "--region", "0", "0", "0", "9", "9", "99"],
            "does not lie",
        ),
        (["detector", "brain.zarr", "--out", "c.csv", "--sigma-um", "3"], "is for --method log"),
    ],
)
def test_mistakes_are_a_line(folder, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(folder)
    code, _, err = say(capsys, "detect", *flags)
    assert code == 1
    assert message in err
    assert err.count("\n") == 1


def test_train_detector_leaves_a_detector_that_info_describes(folder, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "kind: detector\n"
        "model: {dim: 4, depth: 1, kernel_zyx: [3, 3, 3]}\n"
        "data: {crops: 8, crop_zyx: [8, 16, 16]}\n"
        "training: {steps: 2, batch: 4}\n"
    )
    command = ["train-detector", recipe, "--volumes", folder / "brain.zarr", "--points", folder / "truth.csv"]
    command += ["--out", tmp_path / "run", "--device", "cpu", "--json"]
    code, out, _ = say(capsys, *command)
    said = json.loads(out)
    assert code == 0
    assert said["detector"] == str(tmp_path / "run" / "detector")
    code, out, _ = say(capsys, "info", said["detector"], "--json")
    described = json.loads(out)
    assert described["kind"] == "detector"
    assert described["dim"] == 4
    assert described["threshold"] == load(said["detector"]).config.threshold
    assert json.loads(say(capsys, "info", recipe, "--json")[1])["kind"] == "recipe of a detector"
    code, _, err = say(capsys, *command)
    assert code == 1
    assert "--resume" in err
