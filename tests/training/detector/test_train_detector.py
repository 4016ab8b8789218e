"""Training a detector: what it learns, resuming, what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError
from canvas_fm.inference.detect.detect import detect
from canvas_fm.models.load_model import load
from canvas_fm.training.detector.optimizer_step import DetectorStep
from canvas_fm.training.detector.train import train_detector
from canvas_fm.training.recipe.detector_recipe import DetectorRecipe
from canvas_fm.training.recipe.read_recipe import read_recipe, read_recipe_of
from tests.training.detector.cubes import SHAPE, TINY, VOXEL_UM, tiny, train, write_cube


def test_a_detector_learns_balls_from_spots_at_every_brightness(labelled_cubes, tmp_path):
    run = train(
        labelled_cubes,
        tmp_path / "run",
        tiny(training__steps=60, data__crops=120, training__batch=6),
        held_out=["b"],
    )
    rows = {row["volume"]: row for row in run.metrics() if row["kind"] == "eval"}
    assert rows["b"]["held_out"]
    assert rows["a"]["f1"] > 0.85
    assert rows["b"]["f1"] > 0.85
    detector = load(run.detector)
    assert detector.config.threshold == rows["b"]["threshold"]
    points = detect(detector, Volume.open(labelled_cubes[1][0]))
    assert len(points) == rows["b"]["tp"] + rows["b"]["fp"]


def test_what_curation_marks_as_no_cell_is_not_trained_on(labelled_cubes, tmp_path):
    """cellfinder's type 1 and a label of 0: the same training as on the cells alone."""
    volume, cells = labelled_cubes[0]
    true = Points.read(cells).zyx
    random = np.random.default_rng(0)
    others = np.stack([random.integers(2, n - 2, 9) for n in SHAPE], axis=1).astype(float)
    kinds = {"type": (2, 1), "label": (1, 0)}
    losses = []
    for name in ("alone", *kinds):
        zyx = true if name == "alone" else np.concatenate([true, others])
        column = {} if name == "alone" else {name: np.repeat(kinds[name], (len(true), len(others)))}
        run = train_detector(tiny(), [volume], [Points(zyx, column)], out=tmp_path / name, device="cpu")
        losses.append([row["loss"] for row in run.metrics() if row["kind"] == "train"])
    assert losses[1] == losses[0]
    assert losses[2] == losses[0]


def test_a_stopped_run_goes_on_to_the_same_detector(labelled_cubes, tmp_path, monkeypatch):
    whole = train(labelled_cubes, tmp_path / "whole")
    calls = []
    step = DetectorStep.__call__

    def stopping(self, *given):
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append(1)
        return step(self, *given)

    monkeypatch.setattr(DetectorStep, "__call__", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(labelled_cubes, tmp_path / "parts")
    monkeypatch.setattr(DetectorStep, "__call__", step)
    with pytest.raises(CanvasError, match="--resume"):
        train(labelled_cubes, tmp_path / "parts")
    parts = train(labelled_cubes, tmp_path / "parts", resume=True)
    assert load(parts.detector).sha256 == load(whole.detector).sha256
    assert (parts.path / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()


def test_figures_masks_boxes_and_a_second_channel(labelled_cubes, tmp_path):
    cube = labelled_cubes[0]
    mask = tmp_path / "mask.zarr"
    voxels = (gaussian_filter(Volume.open(cube[0]).read((0, 0, 0), SHAPE).astype(float), 1) > 500).astype(
        np.uint8
    )
    with Volume.create(mask, SHAPE, voxel_um=VOXEL_UM, dtype="uint8") as writer:
        writer.write((0, 0, 0), voxels)
    (tmp_path / "boxes.json").write_text(json.dumps([[0, 0, 0, 24, 48, 30]]))
    recipe = tiny(model__channels=2, target__kind="masks", evaluation__figures="true")
    run = train(
        [cube],
        tmp_path / "run",
        recipe,
        masks=[mask],
        within=[tmp_path / "boxes.json"],
        background=[labelled_cubes[1][0]],
    )
    assert (run.figures / "a_0000006.png").stat().st_size > 5000
    row = next(row for row in run.metrics() if row["kind"] == "eval")
    zyx = Points.read(cube[1]).zyx
    assert row["cells"] == (zyx[:, 2] < 30).sum()
    assert load(run.detector).config.architecture.channels == 2


def test_what_does_not_fit_is_refused(labelled_cubes, tmp_path):
    (volume, points), (other, _) = labelled_cubes
    out = tmp_path / "run"
    for options, message in (
        ({"within": ["a.json", "b.json"]}, "1 volume and 2 of within were given"),
        ({"masks": [volume]}, "--masks was given, which the recipe does not use: set target.kind=masks"),
        ({"within": [[[0, 0, 0, 99, 9, 9]]]}, "beyond the volume"),
        ({"background": [other]}, "set model.channels=2"),
    ):
        with pytest.raises(CanvasError, match=message):
            train_detector(tiny(), [volume], [points], out=out, **options)
    with pytest.raises(CanvasError, match="2 volumes and 1 of points"):
        train_detector(tiny(), [volume, other], [points], out=out)
    with pytest.raises(CanvasError, match="no masks were given"):
        train_detector(tiny(target__kind="masks"), [volume], [points], out=out)
    with pytest.raises(CanvasError, match="no tolerance for marker 'cFos'"):
        train_detector(tiny(detection__tolerance_um="{TH: 8.0}"), [volume], [points], out=out)
    with pytest.raises(CanvasError, match="no cells inside"):
        train_detector(tiny(), [volume], [Points(np.empty((0, 3)))], out=out)
    assert not (out / "metrics.jsonl").exists()


def test_the_recipes_of_the_two_trainings_are_told_apart(tmp_path):
    with pytest.raises(CanvasError, match="recipe for `canvas-fm train-detector`, not for `pretrain`"):
        read_recipe(TINY)
    with pytest.raises(CanvasError, match="recipe for `canvas-fm pretrain`, not for `train-detector`"):
        read_recipe_of(DetectorRecipe, {"training": {"steps": 3}})
    with pytest.raises(CanvasError, match=r"unknown key 'data.hards'; did you mean 'data.hard'"):
        tiny(data__hards=0.1)
    with pytest.raises(CanvasError, match="more than the whole"):
        tiny(data__cells=0.8)
    with pytest.raises(CanvasError, match="not whole patches"):
        tiny(data__crop_zyx="[8, 18, 16]")


def test_a_volume_called_like_a_number_is_held_out_by_name(tmp_path):
    cubes = [write_cube(tmp_path, "1008", 0), write_cube(tmp_path, "695", 1)]
    run = train(cubes, tmp_path / "run", tiny(training__steps=2), held_out=1008)
    evaluated = {row["volume"]: row["held_out"] for row in run.metrics() if row["kind"] == "eval"}
    assert evaluated == {"1008": True, "695": False}
