"""Self-distillation: what the teacher says and how it follows, the second loss, and that none of it ships."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import canvas_fm
from canvas_fm.training.mae.optimizer_step import MaeStep, new_model
from canvas_fm.training.mae.pretrain import pretrain
from canvas_fm.training.mae.self_distillation import Student, Teacher
from canvas_fm.training.recipe.recipe import DistilRecipe, Recipe
from canvas_fm.training.run.distributed import Ranks
from canvas_fm.training.run.folder.checkpoint import load_checkpoint

from .test_optimizer_step import batch  # isort: skip

Tiny = Callable[..., Recipe]
PLAIN = ["augment.noise=0", "augment.flip=0", "augment.rotate=false"]
ON = ["model.encoder.depth=2", "distil.layers=1"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def alone(recipe: Recipe) -> MaeStep:
    return MaeStep(recipe, Ranks(0, 1, torch.device("cpu")))


def weights(module: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def student_of(stepper: MaeStep) -> Student:
    assert isinstance(stepper.module, Student)
    return stepper.module


def teacher_of(stepper: MaeStep) -> Teacher:
    assert stepper.teacher is not None
    return stepper.teacher


def test_the_students_head_is_the_seeds_and_begins_as_every_other_matrix(tiny: Tiny) -> None:
    mae, state = new_model(tiny()), torch.random.get_rng_state()
    first, again, other = (Student(mae, seed).head for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)
    assert not first.bias.any()
    bound = (6 / sum(first.weight.shape)) ** 0.5  # Xavier-uniform
    assert 0.9 * bound < first.weight.abs().max() <= bound


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(("normalise", "axis"), [("layer", 2), ("crop", 1)])
def test_the_target_is_the_mean_of_the_last_blocks_each_normalised(
    tiny: Tiny, layers: int, normalise: Literal["layer", "crop"], axis: int
) -> None:
    """Against hooks on every block and numpy."""
    encoder = new_model(tiny("model.encoder.depth=3")).encoder
    teacher = Teacher(DistilRecipe(layers=layers, normalise=normalise), encoder)
    left: list[np.ndarray] = []
    for block in teacher.encoder.blocks:
        block.register_forward_hook(lambda _module, _given, made: left.append(made[:, 1:].numpy()))
    crops = torch.rand(2, 1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        teacher.encoder.tokens(crops)
    blocks = left[-layers:]
    normalised = [
        (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + 1e-5) for x in blocks
    ]
    np.testing.assert_allclose(teacher.targets(crops), np.mean(normalised, axis=0), atol=1e-5)


def test_the_teacher_is_the_mean_of_all_students_until_its_momentum_is_reached(tiny: Tiny) -> None:
    stepper = alone(tiny(*ON, "distil.momentum=0.7", "training.learning_rate=0.01"))
    students, teachers = [], []
    for step in range(4):
        stepper(batch(), step)
        students.append(weights(stepper.mae.encoder))
        teachers.append(weights(teacher_of(stepper).encoder))
    for place in range(len(students[0])):
        one, two, three, four = (student[place] for student in students)
        mean = (one + two + three) / 3
        wanted = [one, (one + two) / 2, mean, 0.7 * mean + 0.3 * four]
        for teacher, want in zip(teachers, wanted, strict=True):
            torch.testing.assert_close(teacher[place], want, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(students[3][0], teachers[3][0])


def test_no_gradient_reaches_the_teacher(tiny: Tiny) -> None:
    stepper = alone(tiny(*ON))
    theirs = {id(p) for p in teacher_of(stepper).encoder.parameters()}
    trained = {id(p) for group in stepper.optimizer.param_groups for p in group["params"]}
    assert len(trained) == len(list(stepper.module.parameters()))
    assert not theirs & trained
    before = weights(teacher_of(stepper).encoder)
    stepper._update = lambda step: torch.zeros(())  # type: ignore[method-assign]
    teacher_of(stepper).follow = lambda encoder, step: None  # type: ignore[method-assign]
    stepper(batch(), 0)
    assert all(p.grad is not None for p in student_of(stepper).parameters())
    assert all(p.grad is None for p in teacher_of(stepper).encoder.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, weights(teacher_of(stepper).encoder), strict=True))


def test_the_second_loss_is_a_loop_over_masked_patches(tiny: Tiny) -> None:
    """Smooth L1, the mean over a patch's features and over what is hidden; the first loss is as without."""
    twin = alone(tiny(*PLAIN, *ON))
    crops, visible = twin._draw(*batch())
    with torch.no_grad():
        found = twin.mae(crops, visible=visible)
        said, target = student_of(twin).head(found.tokens), teacher_of(twin).targets(crops)
    distances = []
    for b, t in np.argwhere(found.masked.numpy()):
        off = np.abs((said[b, t] - target[b, t]).numpy())
        distances.append(np.where(off < 1, off**2 / 2, off - 0.5).mean())
    losses, _ = alone(tiny(*PLAIN, *ON))(batch(), 0)
    assert losses[1].item() == pytest.approx(np.mean(distances), rel=1e-5)
    without, _ = alone(tiny(*PLAIN, "model.encoder.depth=2"))(batch(), 0)
    assert losses[0].item() == without.item()


def test_both_losses_have_their_names_in_the_log(tiny: Tiny) -> None:
    assert alone(tiny(*ON)).losses == ("loss", "distillation")


def test_what_weighs_next_to_nothing_changes_next_to_nothing(tiny: Tiny) -> None:
    """And what weighs more moves the encoder elsewhere."""

    def trained(*more: str) -> list[torch.Tensor]:
        stepper = alone(tiny("model.encoder.depth=2", "training.clip=null", *more))
        for step in range(3):
            stepper(batch(), step)
        return weights(stepper.mae)

    without = trained()
    hardly, fully = trained("distil.layers=1", "distil.weight=1e-12"), trained("distil.layers=1")
    moved = [float((a - b).abs().max()) for a, b in zip(without, fully, strict=True)]
    assert max(moved) > 1e-3
    for a, b in zip(without, hardly, strict=True):
        torch.testing.assert_close(a, b, atol=2e-3 * max(moved), rtol=0)
    assert not torch.allclose(without[1], fully[1], atol=1e-4)


@pytest.mark.parametrize("normalise", ["layer", pytest.param("crop", marks=pytest.mark.slow)])
def test_it_learns_what_the_teacher_says_of_one_crop(tiny: Tiny, normalise: str) -> None:
    """What differs from patch to patch, with a teacher that moves: nearer than the patches' mean is."""
    settings = ["training.steps=150", "training.learning_rate=0.01", "model.mask_ratio=0.25", "loss.gamma=0"]
    stepper = alone(tiny(*PLAIN, *ON, *settings, f"distil.normalise={normalise}"))
    windows = batch()[1]
    raw = torch.linspace(0, 3000, 8 * 16 * 16).reshape(1, 8, 16, 16).to(torch.int16).repeat(8, 1, 1, 1)
    losses = torch.stack([stepper((raw, windows), step)[0] for step in range(150)])
    crops, _ = stepper._draw(raw, windows)
    target = teacher_of(stepper).targets(crops)
    of_the_mean = F.smooth_l1_loss(target.mean(dim=1, keepdim=True).expand_as(target), target)
    assert losses[-1, 1] < 0.2 * of_the_mean


def test_bf16_stays_near_fp32(tiny: Tiny) -> None:
    exact, rough = (
        alone(tiny(*PLAIN, *ON, f"training.precision={p}"))(batch(), 0)[0] for p in ("fp32", "bf16")
    )
    torch.testing.assert_close(rough, exact, rtol=0.02, atol=0)


def test_a_run_that_stops_between_two_rows_goes_on_to_the_same_bytes(
    tmp_path: Path, cubes: list[Path], tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Teacher, head and the losses that no row tells yet are in the checkpoint, and nothing of it ships."""
    recipe = tiny(*ON, "distil.momentum=0.6", "training.ema=0.2", "training.micro_batch=3")
    whole = pretrain(recipe, cubes, out=tmp_path / "whole", held_out=["b"], device="cpu")
    step = MaeStep.__call__

    def dying(self: MaeStep, batch: tuple, number: int) -> tuple:
        if number == 6:
            raise KeyboardInterrupt
        return step(self, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(MaeStep, "__call__", dying)
        with pytest.raises(KeyboardInterrupt):
            pretrain(recipe, cubes, out=tmp_path / "run", held_out=["b"], device="cpu")
    run = pretrain(recipe, cubes, out=tmp_path / "run", held_out=["b"], device="cpu", resume=True)
    assert (run.path / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()
    assert canvas_fm.load(run.encoder).sha256 == canvas_fm.load(whole.encoder).sha256
    states = [load_checkpoint(r.checkpoint)["stepper"] for r in (run, whole)]
    for part in ("model", "averaged", "teacher"):
        for name, weight in states[0][part].items():
            assert torch.equal(weight, states[1][part][name]), (part, name)
    rows = [row for row in run.metrics() if row["kind"] == "train"]
    assert all(row["loss"] > 0 and row["distillation"] > 0 for row in rows)
    plain = pretrain(tiny("model.encoder.depth=2"), cubes[:1], out=tmp_path / "plain", device="cpu")
    mae, other = (canvas_fm.load(r.encoder).mae.state_dict() for r in (run, plain))
    assert mae.keys() == other.keys()
    for name, weight in mae.items():
        assert torch.equal(weight, states[0]["averaged"][f"mae.{name}"]), name
