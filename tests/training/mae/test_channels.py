"""Pretraining on signal and background: both channels of the same crops, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from canvas_fm.cli import main
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.volume.window import WindowRule
from canvas_fm.errors import CanvasError
from canvas_fm.inference.embed.store.embedding_store import Embeddings
from canvas_fm.models.load_model import load
from canvas_fm.training.mae.augment import augment, draw, to_unit, turn, widen
from canvas_fm.training.mae.pretrain import pretrain
from canvas_fm.training.mae.training_crops import VolumeSource, draw_crops, take
from canvas_fm.training.recipe.joint_recipe import JointRecipe
from canvas_fm.training.recipe.read_recipe import read_recipe_of
from canvas_fm.training.recipe.recipe import AugmentRecipe
from tests.support.real_data import REAL_DATA

TWO = "model.encoder.channels=2"
TWO_PHOTON = REAL_DATA / "unlabelled" / "cellfinder_signal_background" / "raw.zarr"


@pytest.fixture
def run_cli():
    return lambda *words: main([str(word) for word in words]) == 0 or pytest.fail(str(words))


MORE = 40_000  # so that uint16 is above what int16 holds


def both(volume: Volume) -> Volume:
    """A background that has so much more than the signal wherever it is."""
    voxels = (np.asarray(volume).astype(np.int64) + MORE).astype(np.uint16)
    return Volume.from_array(voxels, voxel_um=volume.voxel_um)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("resident_gb", [0.0, 4.0])
def test_both_channels_are_of_the_same_places(cubes, dtype, resident_gb):
    opened = [Volume.open(path) for path in cubes]
    signals = [Volume.from_array(np.asarray(v).astype(dtype), voxel_um=v.voxel_um) for v in opened]
    sources = [VolumeSource(name, v, background=both(v)) for name, v in zip("ab", signals, strict=True)]
    crops = draw_crops(sources, (4, 8, 6), 21, foreground=0.5, seed=3, rule=WindowRule())
    order = [np.arange(5), np.array([20, 3, 11])]
    rows = list(take(crops, torch.device("cpu"), resident_gb).along(iter(order)))
    assert [raw.shape for raw, _ in rows] == [(5, 2, 4, 8, 6), (3, 2, 4, 8, 6)]
    for raw, windows in rows:
        signal, background = widen(raw).unbind(dim=1)
        torch.testing.assert_close(background, signal + MORE)
        # The window of each channel is its volume's, so that here both look alike.
        unit = to_unit(raw, windows)
        torch.testing.assert_close(unit[:, 0], unit[:, 1], atol=2e-3, rtol=0)
    everything, windows = crops.read_channels()
    assert everything.shape == (21, 2, 4, 8, 6)
    assert windows.shape == (21, 2, 2)
    assert "background" in crops.identity()[0]


def test_channels_are_turned_alike_and_have_noise_of_their_own():
    raw = torch.rand(6, 2, 4, 8, 8) * 1000
    windows = torch.tensor([0.0, 1e-3]).expand(6, 2, 2)
    drawn = draw(AugmentRecipe(noise=0.05), 6, (4, 8, 8), torch.Generator().manual_seed(0), 2)
    turned = turn(raw, drawn)
    for c in (0, 1):
        torch.testing.assert_close(turned[:, c], turn(raw[:, c], drawn))
    noise = augment(raw, windows, drawn) - to_unit(turned, windows)
    assert abs(np.corrcoef(noise[:, 0].flatten(), noise[:, 1].flatten())[0, 1]) < 0.2
    assert 0.02 < noise.std() < 0.06


def test_an_encoder_of_two_channels_is_trained_and_says_so(tmp_path, cubes, tiny):
    backgrounds = [both(Volume.open(path)) for path in cubes]
    recipe = tiny(TWO, "loss.scale=dataset", "evaluation.figures=true")
    run = pretrain(recipe, cubes, background=backgrounds, out=tmp_path / "r", held_out=["b"], device="cpu")
    encoder = load(run.encoder)
    assert encoder.config.architecture.channels == 2
    assert encoder.mae.decoder.head.out_features == 2 * 2 * 4 * 4
    (trained_on,) = encoder.config.provenance["trained_on"]
    assert trained_on["background"]["window"][0] > trained_on["window"][0] + MORE - 100
    last = run.metrics()[-1]
    assert last["psnr_masked"] > 0
    assert np.isfinite(last["loss"])
    plain = pretrain(tiny(), cubes, out=tmp_path / "one", held_out=["b"], device="cpu")
    config = json.loads((Path(plain.encoder) / "config.json").read_text())
    assert "channels" not in json.dumps(config)
    assert "background" not in json.dumps(config)


def test_it_refuses_a_background_that_is_missing_or_unused(tmp_path, cubes, tiny):
    backgrounds = [both(Volume.open(path)) for path in cubes]
    with pytest.raises(CanvasError, match="give --background, one a volume"):
        pretrain(tiny(TWO), cubes, out=tmp_path / "r", device="cpu")
    with pytest.raises(CanvasError, match=r"set model\.encoder\.channels=2"):
        pretrain(tiny(), cubes, background=backgrounds, out=tmp_path / "r", device="cpu")
    with pytest.raises(CanvasError, match="2 volumes and 1 of background"):
        pretrain(tiny(TWO), cubes, background=backgrounds[:1], out=tmp_path / "r", device="cpu")
    other = Volume.from_array(np.zeros((8, 16, 16), np.uint16), voxel_um=(4.0, 1.8, 1.8))
    with pytest.raises(CanvasError, match=r"the background .* has shape \(8, 16, 16\)"):
        pretrain(tiny(TWO), cubes[:1], background=[other], out=tmp_path / "r", device="cpu")
    with pytest.raises(CanvasError, match="joint pretraining takes one"):
        read_recipe_of(JointRecipe, {"objective": "joint", "training": {"steps": 1}}, [TWO])


@pytest.mark.skipif(not TWO_PHOTON.is_dir(), reason=f"no real data: {TWO_PHOTON} is absent")
def test_two_channels_of_one_real_store_are_trained_on_and_embedded(tmp_path, run_cli):
    """Serial two-photon, signal and background of a mouse brain: channels 0 and 1 of one store."""
    both = ["--c", "0", "--background", TWO_PHOTON, "--background-c", "1"]
    small = [
        "training.steps=3",
        "training.warmup_steps=0",
        "training.batch=4",
        "data.crops=12",
        "evaluation.crops=2",
    ]
    out = tmp_path / "run"
    run_cli("pretrain", "phantom_two_channels", "--volumes", TWO_PHOTON, *both, "--out", out, "--set", *small)
    encoder = load(out / "encoder")
    (trained_on,) = encoder.config.provenance["trained_on"]
    volumes = [Volume.open(TWO_PHOTON, c=c) for c in (0, 1)]
    windows = [list(volume.window_by(encoder.config.window_rule)) for volume in volumes]
    assert [trained_on["window"], trained_on["background"]["window"]] == windows
    assert windows[0] != windows[1]
    points = tmp_path / "points.csv"
    points.write_text("z,y,x\n13,150,300\n13,200,200\n")
    run_cli("embed", out / "encoder", TWO_PHOTON, *both, "--points", points, "--out", tmp_path / "x.emb.zarr")
    crops = [np.stack([v.window.apply(v.read((9, y - 8, x - 8), (8, 16, 16))) for v in volumes])
             for y, x in ((150, 300), (200, 200))]  # fmt: skip
    expected = encoder(torch.from_numpy(np.stack(crops))).numpy()
    found = Embeddings.open(tmp_path / "x.emb.zarr").vectors
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
