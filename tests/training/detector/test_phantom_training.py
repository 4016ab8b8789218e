"""Training on randomised phantoms: drawn by step and seed alone, mixed with volumes, calibrated, resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from canvas_fm.data.points.boxes import whole
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.volume.window import WindowRule
from canvas_fm.errors import CanvasError
from canvas_fm.models.detector.convmixer import HeatMapNet
from canvas_fm.models.load_model import load
from canvas_fm.training.detector import threshold
from canvas_fm.training.detector.phantoms import PhantomCrops, labelled_phantom
from canvas_fm.training.detector.targets import BACKGROUND, CELL, Labelled, shares
from canvas_fm.training.detector.train import train_detector
from canvas_fm.training.mae.training_crops import VolumeSource
from canvas_fm.training.recipe.detector_recipe import DetectorRecipe, PhantomRecipe
from canvas_fm.training.recipe.read_recipe import read_recipe_of

VOXEL_UM = (4.0, 2.0, 2.0)
RULE = WindowRule("median", 0.0, 64.0)
TINY: dict[str, Any] = {
    "kind": "detector",
    "model": {"dim": 8, "depth": 1, "kernel_zyx": [3, 3, 3], "contrast": {"surround_zyx": [3, 3, 3]}},
    "target": {"radius_um": 5.0},
    "phantoms": {
        "shape_zyx": [12, 32, 32], "voxel_um": VOXEL_UM, "crops_each": 8, "pool": 2, "calibrate": 2,
    },
    "data": {
        "crops": 24, "crop_zyx": [8, 16, 16], "hard": 0.0,
        "window": {"kind": "median", "low": 0.0, "high": 64.0},
    },
    "augment": {"noise": 0.0, "gain": 1.0, "gamma": 1.0, "offset": 0.0},
    "training": {
        "steps": 4, "batch": 4, "learning_rate": 1e-2, "log_every": 2, "checkpoint_every": 2,
        "precision": "fp32",
    },
    "detection": {"min_distance_um": 6.0, "smooth_um": 1.0, "tolerance_um": 6.0, "chosen_on": "phantoms"},
    "evaluation": {"figures": False},
}  # fmt: skip


def tiny(*overrides: str) -> DetectorRecipe:
    return read_recipe_of(DetectorRecipe, TINY, overrides)


def crops_of(recipe: PhantomRecipe, seed: int = 0, channels: int = 1) -> PhantomCrops:
    return PhantomCrops(recipe, (8, 16, 16), VOXEL_UM, RULE, 5.0, seed, 4, 0.5, channels)


def cube(folder: Path, name: str = "a") -> dict[str, Any]:
    random = np.random.default_rng(0)
    voxels = random.integers(90, 110, (12, 32, 32)).astype(np.uint16)
    cells = np.array([[5.0, 10.0, 10.0], [6.0, 24.0, 20.0]])
    for z, y, x in cells.astype(int):
        voxels[z - 1 : z + 2, y - 2 : y + 3, x - 2 : x + 3] = 900
    with Volume.create(folder / f"{name}.zarr", voxels.shape, voxel_um=VOXEL_UM, marker="cFos") as volume:
        volume.write((0, 0, 0), voxels)
    Points(cells).write(folder / f"{name}.csv")
    return {"volumes": [folder / f"{name}.zarr"], "points": [folder / f"{name}.csv"]}


def test_a_step_gets_the_same_crops_whatever_came_before():
    recipe = tiny().phantoms
    assert recipe is not None
    going = crops_of(recipe)
    straight = [going.at(step) for step in range(6)]
    resumed = crops_of(recipe).at(5)
    for one, other in zip(straight[5], resumed, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(straight[0][0], straight[5][0])
    assert not np.array_equal(straight[0][0], crops_of(recipe, seed=1).at(0)[0])


def test_crops_windows_and_labels_belong_together():
    recipe = tiny().phantoms
    assert recipe is not None
    crops, windows, labels = crops_of(recipe).at(0)
    assert crops.shape == (4, 1, 8, 16, 16)
    assert labels.shape == (4, 8, 16, 16)
    assert set(np.unique(labels)) <= {BACKGROUND, CELL}
    assert (labels == CELL).any()
    np.testing.assert_array_equal(windows[:, 0, 0], 0)
    assert (windows[:, 0, 1] > 0).all()


def test_a_net_of_two_channels_gets_the_background_beside_the_same_signal():
    recipe = tiny("phantoms.families.autofluorescence={}", "phantoms.resampled=0.5").phantoms
    assert recipe is not None
    (one, one_window, labels), (two, windows, same) = (crops_of(recipe, channels=c).at(0) for c in (1, 2))
    assert two.shape == (4, 2, 8, 16, 16)
    assert windows.shape == (4, 2, 2)
    np.testing.assert_array_equal(two[:, :1], one)
    np.testing.assert_array_equal(windows[:, :1], one_window)
    np.testing.assert_array_equal(same, labels)
    assert not np.array_equal(two[:, 1], two[:, 0])
    assert (windows[:, 1] != windows[:, 0]).any()  # each channel has its own window


def test_it_trains_a_detector_of_two_channels_on_phantoms_alone(tmp_path):
    two = ("model.channels=2", "phantoms.families.autofluorescence={}")
    run = train_detector(tiny(*two), [], [], out=tmp_path / "r", device="cpu", show=False)
    assert load(run.detector).config.architecture.channels == 2
    with pytest.raises(CanvasError, match=r"phantoms\.families\.autofluorescence"):
        tiny("model.channels=2")
    data = cube(tmp_path)
    with pytest.raises(CanvasError, match="give --background, one a volume"):
        train_detector(tiny(*two, "phantoms.share=0.5"), **data, out=tmp_path / "q", device="cpu")


@pytest.mark.parametrize("resampled", [0.0, 1.0])
def test_cells_of_a_phantom_lie_where_it_says_at_any_voxel_size(resampled):
    clear = {"amplitude": [8, 9], "amplitude_spread": [0.01, 0.02], "photons": [2000, 3000], "faint": [0, 0],
             "specks": [0, 0], "haze": [0, 0], "blur_yx_um": [0.4, 0.5], "blur_z_um": [1.2, 1.3],
             "voxel_z_um": [2.0, 3.0], "voxel_yx_um": [1.0, 1.4]}  # fmt: skip
    recipe = PhantomRecipe.model_validate(
        {"shape_zyx": [16, 48, 48], "resampled": resampled, "families": {"kinds": ["somata"], **clear}}
    )
    drawn = [labelled_phantom(recipe, seed, VOXEL_UM, (8, 16, 16)) for seed in range(5)]
    brighter = []
    for one in drawn:
        voxels = one.source.volume.read((0, 0, 0), one.source.volume.shape_zyx)
        assert voxels.shape == (16, 48, 48)
        at = tuple(np.floor(one.points_zyx + 0.5).astype(int).T)
        brighter += (voxels[at] > np.median(voxels)).tolist()
    assert np.mean(brighter) > 0.9


def test_it_trains_on_phantoms_alone_and_resumes_to_the_same(tmp_path, monkeypatch):
    whole = train_detector(tiny(), [], [], out=tmp_path / "whole", device="cpu", show=False)
    half = train_detector(tiny("training.steps=2"), [], [], out=tmp_path / "half", device="cpu", show=False)
    assert half.checkpoint.exists()
    import canvas_fm.training.run.trainer as trainer

    class Stop(Exception):
        pass

    saved = trainer.Trainer._save

    def stop(self, tracker):
        saved(self, tracker)
        raise Stop

    monkeypatch.setattr(trainer.Trainer, "_save", stop)
    with pytest.raises(Stop):
        train_detector(tiny(), [], [], out=tmp_path / "again", device="cpu", show=False)
    monkeypatch.undo()
    again = train_detector(tiny(), [], [], out=tmp_path / "again", device="cpu", show=False, resume=True)
    weights = [load(run.detector).net.state_dict() for run in (whole, again)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=0)


def test_volumes_are_mixed_in_and_what_the_start_had_seen_stays_known(tmp_path):
    data = cube(tmp_path)
    first = train_detector(tiny("phantoms.share=0.5"), **data, out=tmp_path / "one", device="cpu", show=False)
    config = load(first.detector).config
    assert [one["name"] for one in config.provenance["trained_on"]] == ["a"]
    then = train_detector(
        tiny(f"start={first.detector}"), [], [], out=tmp_path / "r", device="cpu", show=False
    )
    provenance = load(then.detector).config.provenance
    assert provenance["recipe"]["start"] == config.sha256
    assert [one["name"] for one in provenance["start_trained_on"]] == ["a"]
    assert str(tmp_path) not in json.dumps(provenance)


def test_a_share_of_the_weights_that_ship_are_those_that_the_training_started_from(tmp_path):
    first = train_detector(tiny(), [], [], out=tmp_path / "one", device="cpu", show=False)
    nets = [load(first.detector).net.state_dict()]
    for share in (0.0, 0.25):
        recipe = tiny(f"start={first.detector}", f"start_share={share}")
        run = train_detector(recipe, [], [], out=tmp_path / f"{share}", device="cpu", show=False)
        nets.append(load(run.detector).net.state_dict())
    for name, (before, trained, ships) in {key: [net[key] for net in nets] for key in nets[0]}.items():
        if before.is_floating_point():
            torch.testing.assert_close(ships, 0.25 * before + 0.75 * trained, msg=name)
    assert any(not torch.equal(nets[0][key], nets[1][key]) for key in nets[0])
    with pytest.raises(CanvasError, match="the recipe has no start"):
        tiny("start_share=0.25")


def test_without_a_step_the_average_of_several_starts_ships_at_a_threshold_of_its_own(tmp_path):
    runs = [
        train_detector(tiny(), [], [], out=tmp_path / f"s{seed}", device="cpu", show=False, seed=seed)
        for seed in range(3)
    ]
    names = ",".join(str(run.detector) for run in runs)
    change = ["training.steps=0", "detection.smooth_um=2", f"start=[{names}]"]
    run = train_detector(tiny(*change), [], [], out=tmp_path / "mean", device="cpu", show=False)
    each, mean = [load(run.detector).net.state_dict() for run in runs], load(run.detector)
    for name, value in mean.net.state_dict().items():
        if value.is_floating_point():
            expected = torch.stack([one[name] for one in each]).mean(dim=0)
            torch.testing.assert_close(value, expected, msg=name)
    assert mean.config.smooth_um == 2
    assert [load(run.detector).sha256 for run in runs] == mean.config.provenance["recipe"]["start"]
    with pytest.raises(CanvasError, match="already holds a training"):
        train_detector(tiny(*change), [], [], out=run.path, device="cpu", show=False)
    with pytest.raises(CanvasError, match="no weights to start from"):
        tiny("training.steps=0")
    with pytest.raises(CanvasError, match="an empty list"):
        tiny("start=[]")


def test_it_refuses_what_cannot_be_trained(tmp_path):
    with pytest.raises(CanvasError, match=r"phantoms\.share: 1"):
        train_detector(tiny("phantoms.share=0.5"), [], [], out=tmp_path / "r", device="cpu")
    with pytest.raises(CanvasError, match="has no phantoms"):
        tiny("phantoms=null")
    with pytest.raises(CanvasError, match=r"smaller than data\.crop_zyx"):
        train_detector(tiny("phantoms.shape_zyx=[4,32,32]"), [], [], out=tmp_path / "r", device="cpu")
    one = train_detector(tiny(), [], [], out=tmp_path / "one", device="cpu", show=False)
    with pytest.raises(CanvasError, match="start from a detector of the same"):
        train_detector(
            tiny(f"start={one.detector}", "model.dim=16"),
            [],
            [],
            out=tmp_path / "two",
            device="cpu",
            show=False,
        )


def labelled(marker: str, cells: int, seed: int = 0) -> Labelled:
    """A cube of bright blobs on even tissue, of which `cells` are labelled."""
    voxels = np.random.default_rng(seed).integers(90, 110, (12, 32, 32)).astype(np.uint16)
    places = np.random.default_rng(seed).uniform(2, (10, 30, 30), (cells, 3))
    volume = Volume.from_array(voxels, voxel_um=VOXEL_UM, marker=marker, name=f"{marker} {seed}")
    return Labelled(VolumeSource(volume.name, volume), places, whole(voxels.shape))


def test_markers_give_crops_by_their_shares_and_their_volumes_evenly():
    volumes = [labelled("cFos", 3), labelled("microglia", 3, 1), labelled("microglia", 3, 2)]
    assert shares(volumes, 90) == [45, 23, 22]
    assert shares(volumes, 90, {"microglia": 2.0}) == [30, 30, 30]
    assert min(shares(volumes, 90, {"cFos": 1e-6})) >= 1


def test_a_volume_of_a_few_cells_does_not_choose_the_threshold(monkeypatch):
    few, many = labelled("cFos", 3), labelled("cFos", 60, 1)
    looked_at = []

    def curve(recipe, one, candidates):
        looked_at.append(one.source.name)
        return np.where(threshold.THRESHOLDS >= 0.5, 1.0, 0.0)

    monkeypatch.setattr(threshold, "f1_curve", curve)
    recipe = tiny("detection.chosen_on=volumes")
    net = HeatMapNet(recipe.model).eval()
    threshold.choose_threshold(recipe, net, [few, many], [], VOXEL_UM, 0, lambda _: None)
    assert looked_at == [many.source.name]
    looked_at.clear()
    threshold.choose_threshold(recipe, net, [few], [], VOXEL_UM, 0, lambda _: None)
    assert looked_at == [few.source.name]
    looked_at.clear()
    held_out = labelled("NeuN", 60, 2)
    threshold.choose_threshold(recipe, net, [many], [held_out], VOXEL_UM, 0, lambda _: None)
    assert looked_at == [many.source.name] != [held_out.source.name]
