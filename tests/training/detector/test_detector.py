"""Training a detector: its crops and labels, its calibration, what it learns, what it refuses."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.volume.window import WindowRule
from canvas_fm.errors import CanvasError
from canvas_fm.inference.detect.detect import detect
from canvas_fm.models.checkpoint import load
from canvas_fm.training.detector import targets
from canvas_fm.training.detector import threshold as calibration
from canvas_fm.training.detector.step import Brightness, DetectorStep
from canvas_fm.training.detector.targets import (
    BACKGROUND,
    CELL,
    UNLABELLED,
    Labelled,
    TargetPainter,
    draw_labelled,
    hard_places,
    shares,
)
from canvas_fm.training.detector.train import train_detector
from canvas_fm.training.mae.crop_set import VolumeSource
from canvas_fm.training.recipe.detector_recipe import DetectorRecipe
from canvas_fm.training.recipe.recipe import read_recipe, read_recipe_of
from canvas_fm.training.run.distributed import Ranks

from ..pair import together, two_ranks  # isort: skip

VOXEL_UM = (4.0, 2.0, 2.0)
SHAPE = (24, 48, 48)
TINY: dict[str, Any] = {
    "kind": "detector",
    "model": {"dim": 8, "depth": 1, "kernel_zyx": [3, 3, 3]},
    "target": {"radius_um": 5.0},
    "data": {"crops": 24, "crop_zyx": [8, 16, 16]},
    "training": {
        "steps": 6, "batch": 4, "learning_rate": 1e-2, "log_every": 2, "checkpoint_every": 2,
        "precision": "fp32",
    },
    "detection": {"min_distance_um": 6.0, "smooth_um": 1.0, "tolerance_um": 6.0},
    "evaluation": {"figures": False},
}  # fmt: skip


def tiny(**changes: Any) -> DetectorRecipe:
    return read_recipe_of(
        DetectorRecipe, TINY, [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    )


def write_cube(
    folder: Path, name: str, seed: int, *, brightness: float = 1.0, marker: str = "cFos"
) -> tuple[Path, Path]:
    """Bright balls, which are cells, and dimmer and narrower spots, which are none."""
    random = np.random.default_rng(seed)
    path = folder / name / "raw.zarr"
    path.parent.mkdir(parents=True)
    places = np.stack([random.integers(2, n - 2, 40) for n in SHAPE], axis=1)
    apart = [
        row for row, p in enumerate(places) if row == 0 or np.abs(places[:row] - p).max(axis=1).min() > 6
    ]
    places = places[apart]
    cells, spots = places[: len(places) // 2], places[len(places) // 2 :]
    voxels = np.zeros(SHAPE)
    voxels[tuple(cells.T)], other = 6e4, np.zeros(SHAPE)
    other[tuple(spots.T)] = 4e3
    image = gaussian_filter(voxels, (1, 2, 2)) + gaussian_filter(other, (0.4, 0.7, 0.7))
    image = brightness * (image + random.normal(100, 10, SHAPE).clip(0))
    with Volume.create(path, SHAPE, voxel_um=VOXEL_UM, chunk_zyx=(8, 16, 16), marker=marker) as writer:
        writer.write((0, 0, 0), image.astype(np.uint16))
    Points(cells.astype(float)).write(path.parent / "centroids.csv")
    return path, path.parent / "centroids.csv"


@pytest.fixture(scope="module")
def labelled_cubes(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("cubes")
    return [write_cube(folder, "a", 0), write_cube(folder, "b", 1, brightness=3.0)]


def train(cubes, out: Path, recipe: DetectorRecipe | None = None, **options: Any):
    volumes, points = zip(*cubes, strict=True)
    return train_detector(recipe or tiny(), volumes, points, out=out, device="cpu", show=False, **options)


def labels_of(cube: tuple[Path, Path], boxes: Any = None, resample_to: Any = None) -> Labelled:
    volume = Volume.open(cube[0])
    boxes = np.array([[0, 0, 0, *SHAPE]] if boxes is None else boxes)
    return Labelled(VolumeSource("a", volume, resample_to), Points.read(cube[1]).zyx, boxes)


# --- labels


def test_labels_are_the_ellipsoids_of_a_loop_over_voxels(labelled_cubes):
    boxes = [[0, 0, 0, 20, 48, 40], [20, 10, 0, 24, 48, 48]]
    labelled = labels_of(labelled_cubes[0], boxes)
    painter = TargetPainter(labelled, SHAPE, 5.0)
    painted = painter.paint(np.zeros(3, np.int64))
    places = np.stack(np.indices(SHAPE).reshape(3, -1), axis=1)
    away = np.linalg.norm((places[:, None] - labelled.points_zyx[None]) * VOXEL_UM, axis=2).min(axis=1)
    inside = np.zeros(SHAPE, bool)
    for z0, y0, x0, z1, y1, x1 in boxes:
        inside[z0:z1, y0:y1, x0:x1] = True
    expected = np.where(inside, np.where(away.reshape(SHAPE) <= 5.0, CELL, BACKGROUND), UNLABELLED)
    assert np.array_equal(painted, expected)
    assert set(np.unique(painted)) == {UNLABELLED, BACKGROUND, CELL}


def test_a_crops_labels_are_its_part_of_the_whole(labelled_cubes):
    labelled = labels_of(labelled_cubes[0], [[2, 3, 5, 20, 40, 44]])
    whole = TargetPainter(labelled, SHAPE, 5.0).paint(np.zeros(3, np.int64))
    painter = TargetPainter(labelled, (8, 16, 16), 5.0)
    for start in ([0, 0, 0], [16, 32, 32], [7, 11, 30]):
        z, y, x = start
        assert np.array_equal(painter.paint(np.array(start)), whole[z : z + 8, y : y + 16, x : x + 16])


def test_labels_of_resampled_crops_lie_on_the_cells_of_the_image(labelled_cubes):
    """At twice the voxel size every cell's centre is still labelled, and bright."""
    coarse = (8.0, 4.0, 4.0)
    labelled = labels_of(labelled_cubes[0], resample_to=coarse)
    crop = (8, 16, 16)
    reader = labelled.source.reader(crop, 2**20)
    start = np.array([[2, 6, 6]])
    image = reader.read(start)[0]
    painted = TargetPainter(labelled, crop, 7.0).paint(start[0])
    assert (painted == CELL).sum() > 20
    assert image[painted == CELL].mean() > 3 * image[painted == BACKGROUND].mean()


def test_a_cell_smaller_than_a_voxel_keeps_its_own_voxel(labelled_cubes):
    labelled = labels_of(labelled_cubes[0])
    painted = TargetPainter(labelled, SHAPE, 0.1).paint(np.zeros(3, np.int64))
    assert np.array_equal(
        np.argwhere(painted == CELL), labelled.points_zyx[np.lexsort(labelled.points_zyx.T[::-1])]
    )


def test_hard_places_are_bright_and_no_cells(labelled_cubes):
    labelled = labels_of(labelled_cubes[0])
    spots = hard_places(labelled, tolerance_um=6.0, rule=WindowRule(), random=np.random.default_rng(0))
    away = np.linalg.norm((spots[:, None] - labelled.points_zyx[None]) * VOXEL_UM, axis=2).min(axis=1)
    assert len(spots) > 3
    assert away.min() > 6.0


def test_crops_lie_where_the_recipe_says(labelled_cubes):
    boxes = [[0, 0, 0, 24, 48, 30]]
    labelled = labels_of(labelled_cubes[0], boxes)
    options = {"tolerance_um": 6.0, "rule": WindowRule(), "seed": 3}
    starts = draw_labelled(labelled, (8, 16, 16), 200, cells=0.5, hard=0.2, **options)
    again = draw_labelled(labelled, (8, 16, 16), 200, cells=0.5, hard=0.2, **options)
    assert np.array_equal(starts, again)
    assert (starts >= 0).all()
    assert (starts + np.array([8, 16, 16]) <= SHAPE).all()
    inner = labelled.inner_zyx
    holds = np.all((inner >= starts[:, None]) & (inner < starts[:, None] + [8, 16, 16]), axis=2).any(axis=1)
    assert holds.mean() > 0.5
    nothing = draw_labelled(labelled, (8, 16, 16), 200, cells=0.0, hard=0.0, **options)
    assert starts[:, 2].mean() < 24
    assert not np.array_equal(nothing, starts)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_shorter_than_a_crop_along_one_axis_is_refused(labelled_cubes, axis):
    crop = [8, 16, 12]
    crop[axis] = SHAPE[axis] + 2
    options = {"cells": 0.0, "hard": 0.0, "tolerance_um": 6.0, "rule": WindowRule(), "seed": 0}
    with pytest.raises(CanvasError, match="crop"):
        draw_labelled(labels_of(labelled_cubes[0]), tuple(crop), 4, **options)


def test_boxes_without_cells_give_crops_unless_a_share_asks_for_cells(labelled_cubes):
    options = {"hard": 0.0, "tolerance_um": 6.0, "rule": WindowRule(), "seed": 0}
    labelled = replace(labels_of(labelled_cubes[0]), points_zyx=np.empty((0, 3)))
    assert draw_labelled(labelled, (8, 16, 16), 5, cells=0.0, **options).shape == (5, 3)
    with pytest.raises(CanvasError, match="no cells inside its labelled boxes"):
        draw_labelled(labelled, (8, 16, 16), 5, cells=0.2, **options)


def test_shares_of_the_crops_hold_cells_and_hard_spots_in_their_middle_four_fifths(
    labelled_cubes, monkeypatch
):
    """One cell, and one spot outside the labelled box, so that only its own share can hold it."""
    cell, spot, crop = np.array([[10.0, 14.0, 14.0]]), np.array([[14.0, 34.0, 34.0]]), (10, 10, 10)
    labelled = replace(labels_of(labelled_cubes[0], [[0, 0, 0, 24, 20, 20]]), points_zyx=cell)
    monkeypatch.setattr(targets, "hard_places", lambda *_, **__: spot)
    starts = draw_labelled(
        labelled, crop, 400, cells=0.5, hard=0.25, tolerance_um=6.0, rule=WindowRule(), seed=0
    )
    inside = [((place - starts >= 0) & (place - starts < crop)).all(axis=1) for place in (cell, spot)]
    assert inside[1].sum() == 100
    assert inside[0].sum() >= 200
    within = spot - starts[inside[1]]
    assert (within.min(), within.max()) == (1, 9)
    assert not np.array_equal(np.sort(inside[1]), inside[1])  # in random order


# --- steps


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 1000, (4, 1, 8, 16, 16), generator=random).to(torch.int16)
    labels = torch.randint(0, 3, (4, 8, 16, 16), generator=random).to(torch.uint8)
    return raw, torch.tensor([0.0, 1e-3]).expand(4, 1, 2), labels


def stepper(**changes: Any) -> DetectorStep:
    return DetectorStep(tiny(**changes), Ranks(0, 1, torch.device("cpu")))


STILL = {"flip": 0, "rotate": False, "noise": 0, "gain": 1, "gamma": 1, "offset": 0}


@pytest.mark.parametrize("cells", [True, False], ids=["cells", "no cells"])
def test_the_loss_is_the_focal_loss_of_labelled_voxels_over_the_cells(cells):
    """In numpy; cells count as at least a share `floor` of what is labelled."""
    raw, windows, labels = batch()
    labels[:, :, 8:] = UNLABELLED
    if not cells:
        labels[labels == CELL] = BACKGROUND
    one = stepper(augment=STILL, loss={"alpha": 0.4, "gamma": 3.0, "floor": 0.01})
    with torch.no_grad():
        p = one.module(raw.float() * 1e-3).sigmoid().double().numpy()
    is_cell, known = labels.numpy() == CELL, labels.numpy() != UNLABELLED
    each = np.where(is_cell, -0.4 * (1 - p) ** 3 * np.log(p), -0.6 * p**3 * np.log(1 - p))
    expected = each[known].sum() / max(is_cell.sum(), 0.01 * known.sum())
    assert float(one((raw, windows, labels), 0)[0]) == pytest.approx(expected, rel=1e-4)


def test_a_batch_without_labels_has_no_loss():
    raw, windows, labels = batch()
    assert float(stepper()((raw, windows, torch.zeros_like(labels)), 0)[0]) == 0


def test_the_brightness_of_a_crop_is_gain_offset_and_gamma_of_what_the_window_would_clip():
    """In numpy, one crop at a time; the ranges are the recipe's, evenly in the logarithm."""
    recipe = tiny(augment={"gain": 3.0, "gamma": 1.5, "offset": 0.1, "noise": 0.05}).augment
    drawn = Brightness(recipe, 4000, torch.Generator().manual_seed(0))
    for values, low, high in (
        (drawn.gain.log(), -math.log(3), math.log(3)),
        (drawn.gamma.log(), -math.log(1.5), math.log(1.5)),
        (drawn.offset, -0.1, 0.1),
        (drawn.noise, 0, 1),
    ):
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high >= values.max() > high - 0.01 * (high - low)
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.02 * (high - low))
    raw = torch.randint(0, 3000, (6, 2, 3, 4), generator=torch.Generator().manual_seed(1))
    windows = torch.tensor([[100.0, 1e-3]]).repeat(6, 1)
    found = drawn.apply(raw, windows, slice(7, 13))
    for row, crop in enumerate(raw.double().numpy()):
        gain, gamma, offset = (float(v[7 + row]) for v in (drawn.gain, drawn.gamma, drawn.offset))
        expected = ((crop - 100) * 1e-3 * gain + offset).clip(0, 1) ** gamma
        assert found[row].numpy() == pytest.approx(expected, abs=1e-5)


def test_noise_differs_from_crop_to_crop_and_is_the_recipe_s_at_most():
    raw, windows, labels = batch()
    one = stepper(augment=STILL | {"noise": 0.05})
    voxels, _ = one._augmented(torch.full_like(raw, 500), windows, labels)
    deviations = voxels.std(dim=(1, 2, 3, 4))
    assert deviations.max() < 0.052
    assert deviations.std() > 0.002


def test_two_ranks_make_the_step_of_one():
    """Their chance is drawn for the whole batch, and both divide by the cells of both."""
    raw, windows, labels = batch()
    labels[:2][labels[:2] == CELL] = BACKGROUND  # all cells are the second rank's
    alone, *pair = (
        DetectorStep(tiny(training__ema=0.5), ranks)
        for ranks in (Ranks(0, 1, torch.device("cpu")), *two_ranks())
    )
    for each in (alone, *pair):
        each.module.eval()  # batch norms take their statistics over a rank's part
    whole = alone((raw, windows, labels), 0)
    halves = together([lambda s=s: s((raw[s.rows], windows[s.rows], labels[s.rows]), 0) for s in pair])
    for half in halves:
        for found, expected in zip(half, whole, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    assert alone.result is not alone.module
    assert stepper().result is not None


def test_voxels_and_labels_are_turned_alike():
    raw, windows, _ = batch()
    labels = (raw[:, 0] > 500).to(torch.uint8) + 1
    one = stepper(augment={"flip": 0.5, "rotate": True, "noise": 0, "gain": 1, "gamma": 1, "offset": 0})
    for _ in range(4):
        voxels, turned = one._augmented(raw, windows, labels)
        assert torch.equal(voxels[:, 0] > 0.5, turned == CELL)
        assert not torch.equal(turned, labels)


def test_brightness_varies_and_stays_in_the_unit_interval():
    raw, windows, labels = batch()
    one = stepper(augment={"gain": 3.0, "gamma": 1.5, "offset": 0.1, "noise": 0.05})
    voxels, _ = one._augmented(raw, windows, labels)
    means = voxels.mean(dim=(1, 2, 3, 4))
    assert voxels.min() >= 0
    assert voxels.max() <= 1
    assert means.std() > 0.03


def test_micro_batches_without_batch_norms_share_one_loss():
    raw, windows, labels = batch()
    one, parts = stepper(), stepper(training__micro_batch=2)
    for each in (one, parts):
        each.module.eval()  # batch norms take their statistics over a micro-batch
    assert float(parts((raw, windows, labels), 0)[0]) == pytest.approx(
        float(one((raw, windows, labels), 0)[0]), rel=1e-5
    )


# --- runs


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
        ({"within": ["a.json", "b.json"]}, "1 volumes and 2 of within were given"),
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


def test_every_marker_gives_as_many_crops(tmp_path):
    cubes = {marker: write_cube(tmp_path, marker, seed=0, marker=marker) for marker in ("IBA1", "cFos")}
    iba1, cfos = labels_of(cubes["IBA1"]), labels_of(cubes["cFos"])
    assert shares([iba1, cfos, iba1, iba1], 20) == [4, 10, 3, 3]
    assert shares([iba1, iba1, iba1], 20) == [7, 7, 6]


def test_every_marker_counts_the_same_for_the_threshold(tmp_path, monkeypatch):
    """Two volumes of one marker do not outvote the one of another."""
    names = {"a": "IBA1", "b": "IBA1", "c": "cFos"}
    cubes = [write_cube(tmp_path, name, seed=0, marker=marker) for name, marker in names.items()]
    low, high = calibration.GRID < 0.3, calibration.GRID > 0.7

    def curve(recipe, labelled, candidates):
        return 1.0 * high * 0.6 if labelled.source.volume.marker == "IBA1" else 1.0 * low

    monkeypatch.setattr(calibration, "f1_curve", curve)
    run = train(cubes, tmp_path / "run", tiny(training__steps=2))
    assert load(run.detector).config.threshold < 0.3


def test_the_threshold_is_chosen_on_scores_of_detectors_that_did_not_see_the_volume(
    labelled_cubes, tmp_path, monkeypatch
):
    folds = {
        held_out: load(train(labelled_cubes, tmp_path / held_out, held_out=[held_out]).detector)
        for held_out in ("a", "b")
    }
    scored = {}
    original = calibration._candidates

    def candidates(recipe, detector, labelled, gain):
        scored[labelled.source.name] = detector.sha256
        return original(recipe, detector, labelled, gain)

    monkeypatch.setattr(calibration, "_candidates", candidates)
    run = train(labelled_cubes, tmp_path / "run", fold_detectors=list(folds.values()))
    expected = {name: detector.sha256 for name, detector in folds.items()}
    assert scored == expected
    assert load(run.detector).config.provenance["scored_by"] == expected


def test_fold_detectors_that_saw_all_or_detect_otherwise_are_refused(labelled_cubes, tmp_path):
    without_a = load(train(labelled_cubes, tmp_path / "a", held_out=["a"]).detector)
    with pytest.raises(CanvasError, match="every fold detector was trained on b; give one"):
        train(labelled_cubes, tmp_path / "run", fold_detectors=[without_a])
    smoother = tiny(detection__smooth_um=2.0)
    with pytest.raises(CanvasError, match=r"has smooth_um 1.0, the recipe 2.0"):
        train(labelled_cubes, tmp_path / "run", smoother, fold_detectors=[without_a])


def test_a_volume_called_like_a_number_is_held_out_by_name(tmp_path):
    cubes = [write_cube(tmp_path, "1008", 0), write_cube(tmp_path, "695", 1)]
    run = train(cubes, tmp_path / "run", tiny(training__steps=2), held_out=1008)
    evaluated = {row["volume"]: row["held_out"] for row in run.metrics() if row["kind"] == "eval"}
    assert evaluated == {"1008": True, "695": False}
