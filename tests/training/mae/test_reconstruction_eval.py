"""The loss of an evaluation is that of the training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from canvas_fm.training.mae.augment import to_unit
from canvas_fm.training.mae.optimizer_step import MaeStep, new_model
from canvas_fm.training.mae.pretrain import pretrain
from canvas_fm.training.mae.reconstruction_eval import FixedCrops, evaluate, training_crops
from canvas_fm.training.mae.training_crops import draw_crops
from canvas_fm.training.recipe.recipe import Recipe
from canvas_fm.training.run.distributed import Ranks
from canvas_fm.training.run.held_out_split import name_volumes

from ..pair import together, two_ranks  # isort: skip

Tiny = Callable[..., Recipe]
ALONE = Ranks(0, 1, torch.device("cpu"))
PLAIN = ["augment.noise=0", "augment.flip=0", "augment.rotate=false", "evaluation.crops=8"]
CONTRAST = ["model.encoder.intensity=contrast", "loss.error=contrast"]
PATCH = ["model.decoder.targets=patch", "loss.error=patch"]
FIXED = ["loss.scale=fixed", "loss.mean_variance=0.004"]
SETTINGS = {
    "window": [],
    "window-uniform": ["loss.gamma=0"],
    "window-dataset": ["loss.scale=dataset"],
    "window-fixed": FIXED,
    "window-of-contrast": CONTRAST[:1],
    "contrast": CONTRAST,
    "contrast-uniform": [*CONTRAST, "loss.gamma=0"],
    "patch": PATCH,
    "patch-dataset": [*PATCH, "loss.scale=dataset", "loss.alpha=2", "loss.gamma=3"],
    "patch-fixed": [*PATCH, *FIXED],
}


def fixed_crops(recipe: Recipe, cubes: list[Path]) -> FixedCrops:
    return training_crops(recipe, name_volumes(cubes), False)[0]


def stepper_on(fixed: FixedCrops, recipe: Recipe, ranks: Ranks) -> Callable[[], float]:
    """The first step of a new model on the crops and masks of an evaluation: its loss."""
    stepper = new_stepper(recipe, ranks)
    visible, windows = fixed.visible[stepper.rows], torch.from_numpy(fixed.crops.windows)[stepper.rows]
    stepper._draw = lambda raw, windows: (to_unit(raw, windows), visible)  # type: ignore[method-assign]
    return lambda: float(stepper((fixed.raw[stepper.rows], windows), 0)[0])


def new_stepper(recipe: Recipe, ranks: Ranks = ALONE) -> MaeStep:
    return MaeStep(recipe, ranks, 0.002 if recipe.loss.scale == "dataset" else None)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_training_and_evaluation_give_the_same_crops_the_same_loss(
    cubes: list[Path], tiny: Tiny, settings: list[str]
) -> None:
    """In one piece, in uneven micro-batches, on two ranks: σ̄² is that of the whole optimizer batch."""
    recipe = tiny(*PLAIN, *settings)
    fixed, stepper = fixed_crops(recipe, cubes), new_stepper(recipe)
    evaluated = evaluate(recipe, stepper.result, fixed, 0, stepper.fixed_variance)["loss"]
    parts = tiny(*PLAIN, *settings, "training.micro_batch=3")
    alone = [stepper_on(fixed, each, ALONE)() for each in (recipe, parts)]
    paired = together([stepper_on(fixed, parts, rank) for rank in two_ranks()])
    assert [*alone, *paired] == pytest.approx([evaluated] * 4, rel=1e-5)


@pytest.mark.parametrize("settings", [[], CONTRAST, PATCH], ids=["window", "contrast", "patch"])
def test_the_scale_of_an_evaluation_is_the_mean_variance_of_its_patches(
    cubes: list[Path], tiny: Tiny, settings: list[str]
) -> None:
    """In numpy, patch by patch; for an error in contrast in deviations of what is visible of the crop."""
    fixed = fixed_crops(tiny(*PLAIN, *settings), cubes)
    variances = []
    for stored, (low, scale), visible in zip(fixed.raw, fixed.crops.windows, fixed.visible, strict=True):
        crop = ((stored.numpy().view(np.uint16).astype(float) - low) * scale).clip(0, 1)
        patches = [
            crop[z : z + 2, y : y + 4, x : x + 4]
            for z in range(0, 8, 2) for y in range(0, 16, 4) for x in range(0, 16, 4)
        ]  # fmt: skip
        seen = np.array([patches[token] for token in visible])
        unit = np.sqrt(seen.var() + 0.005**2) if settings == CONTRAST else 1.0
        variances += [patch.var() / unit**2 for patch in patches]
    assert fixed.mean_variance == pytest.approx(np.mean(variances), rel=1e-4)


def test_the_loss_figure_of_a_run_draws_one_unit(tmp_path: Path, cubes: list[Path], tiny: Tiny) -> None:
    """Without learning, training and evaluation on as many crops of the same volumes lose alike."""
    recipe = tiny(*CONTRAST, "training.learning_rate=1e-12", "training.log_every=8", "evaluation.crops=24")
    rows = pretrain(recipe, cubes, out=tmp_path / "run", device="cpu", show=False).metrics()
    train, evaluated = (next(r["loss"] for r in rows if r["kind"] == kind) for kind in ("train", "eval"))
    assert 0.5 < train / evaluated < 2


def test_a_data_set_s_scale_is_that_of_its_evaluations_too(
    tmp_path: Path, cubes: list[Path], tiny: Tiny
) -> None:
    """The mean variance of all its crops' patches in numpy; a run at that fixed scale has the same losses."""
    recipe = tiny("loss.scale=dataset", "training.steps=1", "training.learning_rate=1e-30")
    crops = draw_crops(
        name_volumes(cubes), (8, 16, 16), 24, foreground=0.5, seed=0, rule=recipe.data.window.rule
    )
    low, scale = crops.windows.T[:, :, None, None, None].astype(float)
    voxels = ((crops.read().numpy().view(np.uint16) - low) * scale).clip(0, 1)
    patches = voxels.reshape(24, 4, 2, 4, 4, 4, 4).transpose(0, 1, 3, 5, 2, 4, 6).reshape(-1, 32)
    mean_variance = float(patches.var(axis=1).mean())
    fixed = tiny(
        "loss.scale=fixed", f"loss.mean_variance={mean_variance}", "training.steps=1",
        "training.learning_rate=1e-30",
    )  # fmt: skip
    losses = []
    for each, name in ((recipe, "dataset"), (fixed, "fixed")):
        run = pretrain(each, cubes, out=tmp_path / name, device="cpu", show=False)
        losses.append([row["loss"] for row in run.metrics()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    evaluated = evaluate(recipe, new_model(recipe), fixed_crops(recipe, cubes), 1, mean_variance)
    assert losses[0][1] == pytest.approx(evaluated["loss"], rel=1e-5)
