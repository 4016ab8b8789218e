"""Pretraining from recipe to encoder, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import canvas_fm
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError, ModelMismatch
from canvas_fm.training.mae.pretrain import pretrain
from canvas_fm.training.recipe.recipe import Recipe
from canvas_fm.training.run.folder.run_folder import Run
from canvas_fm.training.run.held_out_split import name_volumes, split_volumes
from canvas_fm.viewing.reconstruction import reconstruct

from ..conftest import write_cube  # isort: skip

Tiny = Callable[..., Recipe]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def losses(run: Run) -> list[float]:
    return [row["loss"] for row in run.metrics() if row["kind"] == "train"]


def test_a_run_holds_what_it_should(tmp_path: Path, cubes: list[Path], tiny: Tiny) -> None:
    recipe = tiny("evaluation.every=4", "evaluation.figures=true")
    run = pretrain(recipe, cubes, out=tmp_path / "run", held_out=["b"], device="cpu")
    assert {path.name for path in run.path.iterdir()} == {
        "recipe.yaml", "metrics.jsonl", "figures", "last.pt", "encoder",
    }  # fmt: skip
    assert {path.name for path in run.figures.iterdir()} == {"b_0000004.png", "b_0000008.png", "loss.png"}
    assert run.recipe().data.held_out == ["b"]
    rows = run.metrics()
    assert [row["step"] for row in rows if row["kind"] == "train"] == [3, 6, 8]
    evaluated = [(row["step"], row["volume"], row["crops"]) for row in rows if row["kind"] == "eval"]
    assert evaluated == [(s, "b", kind) for s in (4, 8) for kind in ("random", "foreground")]
    last = rows[-1]
    assert last["held_out"]
    assert last["n"] == 6
    for predictor in (last, last["crop_mean"], last["neighbours_mean"], last["patch_mean"]):
        assert set(predictor) >= {
            f"{metric}_{kind}" for metric in ("psnr", "ssim") for kind in ("masked", "composite", "raw")
        }
    encoder = canvas_fm.load(run.encoder)
    assert encoder.config.voxel_um == (4.0, 1.8, 1.8)
    assert [volume["name"] for volume in encoder.config.provenance["trained_on"]] == ["a"]
    assert encoder.config.provenance["held_out"] == ["b"]
    assert str(tmp_path) not in (run.encoder / "config.json").read_text()


def test_the_shipped_encoder_is_the_trained_one(tmp_path: Path, cubes: list[Path], tiny: Tiny) -> None:
    run = pretrain(tiny(), cubes[:1], out=tmp_path / "run", device="cpu")
    trained = torch.load(run.checkpoint, weights_only=True)["stepper"]["model"]
    shipped = canvas_fm.load(run.encoder).mae.state_dict()
    for name, weight in shipped.items():
        assert torch.equal(weight, trained[name]), name


def test_what_a_prediction_was_given_stands_beside_its_decibels(
    tmp_path: Path, cubes: list[Path], tiny: Tiny
) -> None:
    """In the rows of its evaluations and in what `reconstruct` returns."""
    patch = ["model.decoder.targets=patch", "loss.error=patch", "evaluation.figures=true"]
    run = pretrain(tiny(*patch), cubes, out=tmp_path / "run", held_out=["b"], device="cpu")
    rows = [row for row in run.metrics() if row["kind"] == "eval"]
    given = "mean and deviation of each hidden patch"
    assert [row["given"] for row in rows] == [given] * 2
    assert all(row["loss"] > 0.5 for row in rows)  # in deviations of a patch, as in training; else .01
    encoder = canvas_fm.load(run.encoder)
    scores = reconstruct(encoder, Volume.open(cubes[1]), tmp_path / "f.png", device="cpu")
    assert scores["given"] == given
    plain = pretrain(tiny(), cubes, out=tmp_path / "plain", held_out=["b"], device="cpu")
    assert not [row for row in plain.metrics() if "given" in row]
    encoder = canvas_fm.load(plain.encoder)
    assert "given" not in reconstruct(encoder, Volume.open(cubes[1]), tmp_path / "f.png", device="cpu")


def test_with_nothing_held_out_the_training_crops_are_named_so(
    tmp_path: Path, cubes: list[Path], tiny: Tiny
) -> None:
    run = pretrain(tiny("evaluation.figures=true"), cubes, out=tmp_path / "run", device="cpu")
    (row,) = (row for row in run.metrics() if row["kind"] == "eval")
    assert (row["volume"], row["crops"], row["held_out"]) == ("training", "training", False)
    assert (run.figures / "training_0000008.png").exists()


def test_order_of_volumes_streaming_and_evaluations_do_not_matter(
    tmp_path: Path, cubes: list[Path], tiny: Tiny
) -> None:
    first = pretrain(tiny(), cubes, out=tmp_path / "1", device="cpu")
    turned = pretrain(tiny(), cubes[::-1], out=tmp_path / "2", device="cpu")
    assert losses(first) == losses(turned)
    assert canvas_fm.load(first.encoder).sha256 == canvas_fm.load(turned.encoder).sha256
    streamed = pretrain(
        tiny("data.resident_gb=0", "evaluation.every=1"), cubes, out=tmp_path / "3", device="cpu"
    )
    assert losses(first) == losses(streamed)
    other = pretrain(tiny(), cubes, out=tmp_path / "4", device="cpu", seed=1)
    assert losses(first) != losses(other)


def test_a_dataset_scale_is_measured_once(tmp_path: Path, cubes: list[Path], tiny: Tiny) -> None:
    by_batch = pretrain(tiny(), cubes, out=tmp_path / "1", device="cpu")
    by_dataset = pretrain(tiny("loss.scale=dataset"), cubes, out=tmp_path / "2", device="cpu")
    assert losses(by_batch) != losses(by_dataset)


def test_a_run_goes_on_only_with_resume(tmp_path: Path, cubes: list[Path], tiny: Tiny) -> None:
    run = pretrain(tiny(), cubes[:1], out=tmp_path / "run", device="cpu")
    with pytest.raises(CanvasError, match="already holds a training; give --resume"):
        pretrain(tiny(), cubes[:1], out=tmp_path / "run", device="cpu")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    pretrain(tiny(), cubes[:1], out=tmp_path / "run", resume=True, device="cpu")
    assert before == {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    shutil.rmtree(run.encoder)
    pretrain(tiny(), cubes[:1], out=tmp_path / "run", resume=True, device="cpu")
    assert before == {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


def test_another_recipe_or_other_data_cannot_go_on(tmp_path: Path, cubes: list[Path], tiny: Tiny) -> None:
    out = tmp_path / "run"
    pretrain(tiny(), cubes, out=out, held_out=["b"], device="cpu")
    with pytest.raises(CanvasError, match=r"started with training\.steps = 8, and now it is 9"):
        pretrain(tiny("training.steps=9"), cubes, out=out, held_out=["b"], resume=True, device="cpu")
    with pytest.raises(CanvasError, match=r"started with seed = 0, and now it is 5"):
        pretrain(tiny(), cubes, out=out, held_out=["b"], resume=True, seed=5, device="cpu")
    with pytest.raises(CanvasError, match=r"data\.held_out = \['b'\], and now it is \[\]"):
        pretrain(tiny(), cubes, out=out, resume=True, device="cpu")
    more = [*cubes, write_cube(tmp_path, "c", 7, (4.0, 1.8, 1.8))]
    with pytest.raises(CanvasError, match="volumes trained on are a, c, and were a"):
        pretrain(tiny(), more, out=out, held_out=["b"], resume=True, device="cpu")
    changed = [write_cube(tmp_path / "x", "a", 8, (4.0, 1.8, 1.8)), cubes[1]]
    with pytest.raises(CanvasError, match=r"volume a has window .*, and had "):
        pretrain(tiny(), changed, out=out, held_out=["b"], resume=True, device="cpu")


def test_a_damaged_checkpoint_is_said(tmp_path: Path, cubes: list[Path], tiny: Tiny) -> None:
    run = pretrain(tiny(), cubes[:1], out=tmp_path / "run", device="cpu")
    content = bytearray(run.checkpoint.read_bytes())
    content[len(content) // 2] ^= 4
    run.checkpoint.write_bytes(content)
    with pytest.raises(CanvasError, match=r"last\.pt is damaged"):
        pretrain(tiny(), cubes[:1], out=tmp_path / "run", resume=True, device="cpu")


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path, cubes: list[Path], tiny: Tiny) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "thesis.tex").write_text("…")
    for resume in (False, True):
        with pytest.raises(CanvasError, match="is no run of a training; give another --out"):
            pretrain(tiny(), cubes[:1], out=out, resume=resume, device="cpu")
    with pytest.raises(CanvasError, match="is no run of a training"):
        pretrain(tiny(), cubes[:1], out=out / "thesis.tex", device="cpu")


def test_two_processes_cannot_train_in_one_run(tmp_path: Path, cubes: list[Path], tiny: Tiny) -> None:
    import fcntl
    import os

    out = tmp_path / "run"
    out.mkdir()
    other = os.open(out, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(CanvasError, match="another process is training in"):
        pretrain(tiny(), cubes[:1], out=out, device="cpu")
    os.close(other)
    pretrain(tiny("training.steps=1"), cubes[:1], out=out, device="cpu")


def test_volumes_of_one_name_take_the_folder_above_too(tmp_path: Path) -> None:
    um = (4.0, 1.8, 1.8)
    paths = [write_cube(tmp_path / place, "NeuN", 0, um) for place in ("brain_2", "brain_1")]
    alone = write_cube(tmp_path, "PV", 0, um)
    assert [s.name for s in name_volumes([*paths, alone])] == ["PV", "brain_1/NeuN", "brain_2/NeuN"]
    with pytest.raises(CanvasError, match="2 volumes are called 'brain_1/NeuN'"):
        name_volumes([*paths, paths[1]])
    with pytest.raises(CanvasError, match="2 volumes are called"):
        name_volumes([alone, alone])


def test_held_out_by_name_by_number_and_mistaken(cubes: list[Path], tiny: Tiny) -> None:
    sources = name_volumes(cubes)
    for given, expected in (("[b]", ["a"]), ("0", ["a", "b"]), ("[]", ["a", "b"])):
        training, kept = split_volumes(sources, tiny(f"data.held_out={given}"))
        assert [source.name for source in training] == expected
        assert {s.name for s in training} | {s.name for s in kept} == {"a", "b"}
    splits = [split_volumes(sources, tiny("data.held_out=1", f"seed={seed}")) for seed in range(8)]
    assert {training[0].name for training, _ in splits} == {"a", "b"}
    assert all(len(kept) == 1 for _, kept in splits)
    with pytest.raises(CanvasError, match="held-out volume 'c' is not among those given: a, b"):
        split_volumes(sources, tiny("data.held_out=[c]"))
    with pytest.raises(CanvasError, match="all 2 volumes are held out"):
        split_volumes(sources, tiny("data.held_out=2"))


def test_what_shares_tissue_with_a_training_volume_is_not_held_out(
    cubes: list[Path], tmp_path: Path, tiny: Tiny
):
    crop = write_cube(tmp_path / "cut", "crop", 3, (4.0, 1.8, 1.8))
    (crop.parent / "meta.json").write_text('{"cube": "somewhere/a"}', encoding="utf-8")
    sources = name_volumes([*cubes, crop])
    for held_out in ("[a]", "[crop]"):
        with pytest.raises(CanvasError, match="voxels of the same volume 'a', is trained on"):
            split_volumes(sources, tiny(f"data.held_out={held_out}"))
    training, _ = split_volumes(sources, tiny("data.held_out=[a,crop]"))
    assert [source.name for source in training] == ["b"]


def test_voxel_sizes_that_differ_are_refused(tmp_path: Path, cubes: list[Path], tiny: Tiny) -> None:
    near = write_cube(tmp_path, "near", 3, (4.0, 1.85, 1.8))
    far = write_cube(tmp_path, "far", 3, (4.0, 3.6, 3.6))
    split_volumes(name_volumes([cubes[0], near]), tiny())
    mixed = [cubes[0], far]
    with pytest.raises(
        ModelMismatch, match=r"a has voxels of 4 × 1.8 × 1.8 .* far of 4 × 3.6 × 3.6"
    ) as raised:
        pretrain(tiny(), mixed, out=tmp_path / "run", device="cpu")
    assert "--resample Z Y X" in str(raised.value)
    assert "--ignore-voxel-size" in str(raised.value)
    as_they_are = pretrain(tiny(), mixed, out=tmp_path / "any", ignore_voxel_size=True, device="cpu")
    assert canvas_fm.load(as_they_are.encoder).config.voxel_um == (4.0, 1.8, 1.8)
    resampled = pretrain(tiny(), mixed, out=tmp_path / "re", resample_to=(4.0, 2.4, 2.4), device="cpu")
    assert canvas_fm.load(resampled.encoder).config.voxel_um == (4.0, 2.4, 2.4)
    assert losses(resampled) != losses(as_they_are)


def test_a_crop_larger_than_the_volume_is_said(tmp_path: Path, cubes: list[Path], tiny: Tiny) -> None:
    recipe = tiny("model.encoder.crop_zyx=[32,16,16]", "model.encoder.patch_zyx=[8,4,4]")
    with pytest.raises(CanvasError, match=r"crop .* is larger than a"):
        pretrain(recipe, cubes, out=tmp_path / "run", device="cpu")


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path, cubes: list[Path], tiny: Tiny) -> None:
    recipe = tiny("training.learning_rate=1e30", "training.clip=null")
    with pytest.raises(CanvasError, match=r"the loss is (nan|inf) at step \d+: give a lower"):
        pretrain(recipe, cubes[:1], out=tmp_path / "run", device="cpu")


def test_no_volume_and_too_few_crops_are_said(tmp_path: Path, cubes: list[Path], tiny: Tiny) -> None:
    with pytest.raises(CanvasError, match="no volume was given"):
        pretrain(tiny(), [], out=tmp_path / "run")
    with pytest.raises(CanvasError, match=r"data\.crops is 1 for 2 volumes"):
        pretrain(tiny("data.crops=1"), cubes, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tensorboard_beside_the_log(tmp_path: Path, cubes: list[Path], tiny: Tiny) -> None:
    pytest.importorskip("tensorboard")
    recipe = tiny("tracking.tensorboard=true")
    run = pretrain(recipe, [Volume.open(cubes[0])], out=tmp_path / "run", device="cpu")
    assert list((run.path / "tensorboard").glob("events*"))
    assert all(json.dumps(row) for row in run.metrics())
