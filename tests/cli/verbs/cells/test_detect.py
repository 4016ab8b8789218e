"""`detect` and `train-detector` from the command line."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from canvas_fm.cli import main
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.inference.detect.detect import detector_job, log_job
from canvas_fm.inference.detect.tiles.tiled_detection import plan
from canvas_fm.inference.detect.tiles.tiled_detection import run as run_job
from canvas_fm.models.detector.convmixer import ConvMixerConfig, HeatMapNet
from canvas_fm.models.load_model import load, save_detector
from tests.support.dask_cluster import cluster_of_threads

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
    try:
        code = main([str(part) for part in argv])
    except SystemExit as problem:  # what is checked before anything is loaded
        code = problem.code
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


def test_minutes_are_shared_by_workers_and_not_those_of_an_empty_middle(folder, tmp_path, monkeypatch):
    shape = (16, 40, 200)
    with Volume.create(tmp_path / "v.zarr", shape, voxel_um=(4.0, 2.0, 2.0)) as writer:
        writer.write((0, 0, 0), Volume.open(folder / "brain.zarr").read((0, 0, 0), SHAPE))
    job = log_job(Volume.open(tmp_path / "v.zarr"), sigma_um=4.0, tile_zyx=(16, 40, 40))
    clock = iter(range(1000))
    monkeypatch.setattr(
        "canvas_fm.inference.detect.tiles.tiled_detection.time.perf_counter", lambda: 60.0 * next(clock)
    )
    one = plan(job)
    assert one["tried_tile"] == 0
    assert one["cells_in_it"] > 0
    assert one["minutes"] > 4
    assert plan(job, workers=4)["minutes"] == pytest.approx(one["minutes"] / 4, abs=0.01)


def test_what_is_written_is_what_evaluate_scores_at_the_models_threshold(folder, tmp_path, capsys):
    rest = [folder / "brain.zarr", "--threshold", 0.001, "--out", tmp_path / "low.csv"]
    assert say(capsys, "detect", folder / "detector", *rest)[0] == 0
    low = Points.read(tmp_path / "low.csv")
    threshold = float(np.median(low.columns["score"]))
    settings = {"voxel_um": (4.0, 2.0, 2.0), "threshold": threshold, "min_distance_um": 6}
    save_detector(tmp_path / "detector", load(folder / "detector").net, **settings)
    rest = [folder / "brain.zarr", "--out", tmp_path / "cells.csv"]
    assert say(capsys, "detect", tmp_path / "detector", *rest)[0] == 0
    cells = Points.read(tmp_path / "cells.csv")
    assert len(low) > len(cells) == (low.columns["score"] >= threshold).sum()
    rest = [folder / "truth.csv", "--tolerance-um", 5, "--json"]
    written = json.loads(say(capsys, "evaluate", tmp_path / "cells.csv", *rest)[1])
    cut = json.loads(say(capsys, "evaluate", tmp_path / "low.csv", *rest, "--threshold", threshold)[1])
    assert [written[name] for name in ("tp", "fp", "fn")] == [cut[name] for name in ("tp", "fp", "fn")]
    assert written["tp"] + written["fp"] == len(cells)


def test_progress_tells_the_cells_so_far_and_goes_on_from_them(folder, tmp_path, monkeypatch):
    job = detector_job(load(folder / "detector"), Volume.open(folder / "brain.zarr"), tile_zyx=(8, 20, 20))
    shown: list = []

    @contextmanager
    def bar(label, total, *, unit, done, show):
        shown.append((total, done))

        def advance(steps, note):
            shown.append(note)
            if len(shown) == 4:
                raise KeyboardInterrupt

        yield advance

    monkeypatch.setattr("canvas_fm.inference.detect.tiles.tiled_detection.bar", bar)
    counts = np.cumsum([len(job.tile(number).maxima) for number in range(8)])
    assert counts[2] > 0
    with pytest.raises(KeyboardInterrupt):
        run_job(job, tmp_path / "cells.csv")
    assert shown == [(8, 0), *(f"{count} cells" for count in counts[:3])]
    shown[:] = [None] * 4  # no more interruptions
    run_job(job, tmp_path / "cells.csv")
    assert shown[4:] == [(8, 2), *(f"{count} cells" for count in counts[2:])]


def test_a_damaged_chunk_is_told_whichever_run_read_it(folder, tmp_path, capsys):
    copy = tmp_path / "brain.zarr"
    shutil.copytree(folder / "brain.zarr", copy)
    chunk = max((path for path in copy.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 16
    chunk.write_bytes(content)
    command = ["detect", folder / "detector", copy, "--out", tmp_path / "cells.csv", "--json"]
    code, _, err = say(capsys, *command)
    assert code == 1
    assert "--on-bad-chunk skip" in err or "chunk" in err
    for _ in range(2):  # the second time the points are there already and no voxel is read
        code, out, err = say(capsys, *command, "--on-bad-chunk", "skip")
        assert code == 0
        assert len(json.loads(out)["bad_chunks"][str(copy)]) == 1
        assert "1 damaged chunk was read as zeros" in err


def test_a_missing_extra_is_told_before_the_work(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    out = tmp_path / "cells.parquet"
    code, _, err = say(capsys, "detect", folder / "detector", folder / "brain.zarr", "--out", out)
    assert code == 1
    assert "pip install 'canvas-fm[parquet]'" in err
    assert not list(tmp_path.iterdir())


def test_a_dask_cluster_gives_the_same_rows(folder, tmp_path, capsys):
    command = ["detect", folder / "detector", folder / "brain.zarr", "--tile", 8, 20, 20, "--device", "cpu"]
    with cluster_of_threads(2) as cluster:
        address = cluster.scheduler_address
        assert say(capsys, *command, "--out", tmp_path / "b.csv", "--scheduler", address)[0] == 0
        assert cluster.scheduler.transition_counter > 8
    assert say(capsys, *command, "--out", tmp_path / "a.csv")[0] == 0
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["brain.zarr", "--out", "c.csv"], "needs a MODEL before the VOLUME"),
        (["detector", "brain.zarr"], "needs --out"),
        (["detector", "brain.zarr", "--out", "c.csv", "--method", "log"], "takes no MODEL"),
        (
            ["detector", "brain.zarr", "--out", "c.csv", "--box", "0", "0", "0", "9", "9", "99"],
            "does not lie",
        ),
        (["detector", "brain.zarr", "--out", "c.csv", "--sigma-um", "3"], "is for --method log"),
        (["brain.zarr", "--out", "c.csv", "--method", "log", "--resample"], "takes no --resample"),
        (["detector", "brain.zarr", "--out", "c.csv", "--scheduler", "here"], "'here' is no address"),
        (["detector", "brain.zarr", "--out", "c.csv", "--scheduler", "http://h:1"], "expected one as tcp://"),
        (["detector", "brain.zarr", "--out", "c.csv", "--threshold", "1.5"], "threshold is 1.5"),
        (["detector", "brain.zarr", "--out", "c.txt"], "written as .csv or .parquet"),
        (["detector", "brain.zarr", "--out", "no/c.csv"], "there is no folder no"),
        (["detektor", "brain.zarr", "--out", "c.csv"], "no model at 'detektor', and none is shipped"),
        (["detector", "brain.zarr", "--out", "c.csv", "--background", "brain.zarr"], "is the volume itself"),
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
    code, out, err = say(capsys, *command)
    assert code == 0, err
    said = json.loads(out)
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


@pytest.mark.parametrize("flag", ["--points", "--roi", "--masks", "--background"])
def test_lists_of_different_length_are_a_line(folder, tmp_path, capsys, flag):
    brain, truth = folder / "brain.zarr", folder / "truth.csv"
    lists = {"--points": [truth, truth], flag: [truth] if flag in ("--points", "--roi") else [brain]}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("kind: detector\ntraining: {steps: 2, batch: 4}\n")
    command = ["train-detector", recipe, "--volumes", brain, brain, "--out", tmp_path / "run"]
    for name, values in lists.items():
        command += [name, *values]
    code, _, err = say(capsys, *command)
    assert code == 1
    what = {"--roi": "within"}.get(flag, flag[2:])
    assert f"2 volumes and 1 of {what} were given; give one a volume, in their order" in err
    assert not (tmp_path / "run").exists()
