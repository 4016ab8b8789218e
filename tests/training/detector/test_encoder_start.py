"""A detector that starts from an encoder: what the net learns before any cell, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from canvas_fm.cli import main
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError, ModelMismatch
from canvas_fm.inference.detect.detect import detect
from canvas_fm.models.encoder.vit import ViTEncoder
from canvas_fm.models.folder.network_config import EncoderConfig
from canvas_fm.models.folder.training_volumes import training_volumes
from canvas_fm.models.load_model import Encoder, load, save_encoder
from canvas_fm.training.detector import train as training
from canvas_fm.training.detector.encoder_start import distil, token_map
from canvas_fm.training.detector.optimizer_step import new_net
from canvas_fm.training.detector.train import train_detector
from canvas_fm.training.mae.training_crops import VolumeSource
from canvas_fm.training.recipe.detector_recipe import DetectorRecipe
from canvas_fm.training.recipe.read_recipe import read_recipe_of

VOXEL_UM = (4.0, 2.0, 2.0)
SHAPE = (24, 48, 48)
TINY: dict[str, Any] = {
    "kind": "detector",
    "model": {"dim": 16, "depth": 1, "kernel_zyx": [3, 3, 3]},
    "target": {"radius_um": 5.0},
    "data": {"crops": 24, "crop_zyx": [8, 16, 16]},
    "training": {"steps": 2, "batch": 4, "learning_rate": 1e-3, "checkpoint_every": 1, "precision": "fp32"},
    "detection": {"min_distance_um": 6.0, "smooth_um": 1.0, "tolerance_um": 6.0},
    "evaluation": {"figures": False},
}  # fmt: skip
SHORT = ["init.crops=12", "init.steps=60", "init.batch=4"]


def tiny(*overrides: str) -> DetectorRecipe:
    return read_recipe_of(DetectorRecipe, TINY, overrides)


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    random = np.random.default_rng(0)
    cells = np.stack([random.integers(3, n - 3, 30) for n in SHAPE], axis=1)
    image = np.zeros(SHAPE)
    image[tuple(cells.T)] = 6e4
    image = gaussian_filter(image, (1, 2, 2)) + random.normal(100, 10, SHAPE)
    folder = tmp_path_factory.mktemp("cube") / "brain"
    with Volume.create(folder / "raw.zarr", SHAPE, voxel_um=VOXEL_UM, chunk_zyx=(8, 16, 16)) as writer:
        writer.write((0, 0, 0), image.clip(0).astype(np.uint16))
    Points(cells.astype(float)).write(folder / "cells.csv")
    return folder / "raw.zarr", folder / "cells.csv"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    torch.manual_seed(0)
    net = ViTEncoder(EncoderConfig(crop_zyx=(8, 16, 16), patch_zyx=(2, 4, 4), dim=24, depth=1, heads=2))
    folder = tmp_path_factory.mktemp("models") / "small"
    return save_encoder(folder, net, voxel_um=VOXEL_UM, provenance={"trained_on": [{"name": "elsewhere"}]})


def test_the_token_map_is_the_encoder_on_each_of_its_crops(encoder):
    crops = torch.rand(2, 1, 16, 32, 16)
    tokens = token_map(encoder.net, crops)
    assert tokens.shape == (2, 24, 8, 8, 4)
    for row, z, y in ((0, 0, 0), (1, 8, 16), (0, 8, 0)):
        expected = encoder.net(crops[row : row + 1, :, z : z + 8, y : y + 16], "grid")[0]
        part = tokens[row, :, z // 2 : z // 2 + 4, y // 4 : y // 4 + 4]
        torch.testing.assert_close(part, expected)


def test_a_short_distillation_explains_tokens_that_an_unlearned_net_does_not(cube, encoder):
    source = [VolumeSource("brain", Volume.open(cube[0]))]
    explained = []
    for steps in (1, 100):
        recipe = tiny(f"init.encoder={encoder.path}", f"init.steps={steps}", "init.crops=12")
        explained.append(distil(recipe, encoder, source, (8, 16, 16), False).explained)
    assert explained[0] < 0.1
    assert explained[1] > 0.2


def test_a_detector_starts_from_the_distilled_net_and_says_so(cube, encoder, tmp_path):
    recipe = tiny()
    run = train_detector(
        recipe, [cube[0]], [cube[1]], out=tmp_path / "r", init=encoder.path, overrides=SHORT,
        device="cpu", show=False,
    )  # fmt: skip
    start, detector = load(run.path / "start", kind="detector"), load(run.detector, kind="detector")
    fresh, begun, trained = (net.state_dict() for net in (new_net(recipe), start.net, detector.net))
    moved = {key: (begun[key] - fresh[key]).norm() for key in fresh if key.startswith("body.1.1.0.weight")}
    after = {key: (trained[key] - begun[key]).norm() for key in moved}
    assert moved
    assert all(after[key] < moved[key] / 3 for key in moved)  # two steps from there, sixty from nothing
    torch.testing.assert_close(begun["head.weight"], fresh["head.weight"])
    provenance = detector.config.provenance
    assert provenance["recipe"]["start"] == start.sha256
    assert provenance["recipe"]["init"]["encoder"] == encoder.sha256
    assert provenance["distilled_from"]["encoder"] == encoder.sha256
    assert training_volumes(provenance) == {"brain", "elsewhere"}
    assert str(tmp_path) not in str(provenance)
    assert len(detect(detector, Volume.open(cube[0]), threshold=0.001, show=False)) > 0


def test_a_resumed_run_does_not_distil_again(cube, encoder, tmp_path, monkeypatch):
    recipe = tiny(*SHORT, f"init.encoder={encoder.path}")
    run = train_detector(recipe, [cube[0]], [cube[1]], out=tmp_path / "r", device="cpu", show=False)
    before = load(run.detector).sha256
    for part in run.detector.iterdir():
        part.unlink()
    run.detector.rmdir()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("distilled again")

    monkeypatch.setattr(training, "write_start", refuse)
    again = train_detector(
        recipe, [cube[0]], [cube[1]], out=tmp_path / "r", resume=True, device="cpu", show=False
    )
    assert load(again.detector).sha256 == before


def test_the_verb_takes_an_encoder(cube, encoder, tmp_path):
    (tmp_path / "tiny.yaml").write_text(tiny().to_yaml())
    words = ["train-detector", tmp_path / "tiny.yaml", "--volumes", cube[0], "--points", cube[1]]
    words += ["--init", encoder.path, "--out", tmp_path / "r", "--device", "cpu", "--set", *SHORT]
    assert main([str(word) for word in words]) == 0
    assert load(tmp_path / "r" / "detector").config.provenance["distilled_from"]["encoder"] == encoder.sha256


def test_it_refuses_what_does_not_fit(cube, encoder, tmp_path):
    def begin(name: str, *overrides: str, **more: Any) -> None:
        options = {"init": encoder.path, "overrides": [*SHORT, *overrides]} | more
        train_detector(tiny(), [cube[0]], [cube[1]], out=tmp_path / name, device="cpu", show=False, **options)

    with pytest.raises(CanvasError, match="from a detector or an encoder"):
        begin("a", "start=detector-phantoms")
    with pytest.raises(CanvasError, match=r"no whole patches of the detector's net, \(1, 8, 8\)"):
        begin("b", "model.patch_zyx=[1,8,8]")
    with pytest.raises(ModelMismatch, match=r"read at 4 × 3 × 3 µm .* trained at 4 × 2 × 2 µm"):
        begin("c", resample_to=(4.0, 3.0, 3.0))
    with pytest.raises(ModelMismatch, match="an encoder was expected"):
        begin("d", init="detector-phantoms")
    phantoms = tiny("phantoms.share=1", "phantoms.shape_zyx=[8,32,32]", f"init.encoder={encoder.path}")
    with pytest.raises(CanvasError, match="init needs volumes"):
        train_detector(phantoms, [], [], out=tmp_path / "e", device="cpu", show=False)
