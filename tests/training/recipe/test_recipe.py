"""Recipes: what is shipped is right, what is wrong is said in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from canvas_fm.errors import CanvasError
from canvas_fm.files.shipped import shipped
from canvas_fm.models.encoder.mae import masked_count
from canvas_fm.training.recipe.read_recipe import first_difference, read_recipe

LEAST = {"training": {"steps": 3}}


@pytest.mark.parametrize(
    "name",
    ["canvas_all_markers", "real_small", "cells_small", "cells_patch_targets", "cells_distilled", "phantom"],
)
def test_shipped_recipes_are_valid_and_resolve_to_themselves(name: str) -> None:
    recipe = read_recipe(name)
    assert read_recipe(yaml.safe_load(recipe.to_yaml())) == recipe
    assert name in shipped("recipe")


def test_the_papers_settings() -> None:
    recipe = read_recipe("canvas_all_markers")
    encoder, decoder, training = recipe.model.encoder, recipe.model.decoder, recipe.training
    assert (encoder.crop_zyx, encoder.patch_zyx) == ((16, 32, 32), (4, 8, 8))
    assert (encoder.dim, encoder.depth, encoder.heads, encoder.mlp_ratio) == (384, 6, 6, 4.0)
    assert (decoder.dim, decoder.depth, decoder.heads) == (192, 4, 3)
    assert masked_count(recipe.model.mask_ratio) == 10
    assert (training.epochs, training.batch, training.steps) == (700, 64, None)
    assert (training.learning_rate, training.min_learning_rate) == (1.5e-4, 1e-6)
    assert (training.weight_decay, training.betas, training.clip) == (0.05, (0.9, 0.95), 1.0)
    assert (recipe.loss.alpha, recipe.loss.gamma, recipe.loss.scale) == (1, 9, "batch")
    assert (recipe.augment.flip, recipe.augment.rotate, recipe.augment.noise) == (0.5, True, 0.01)
    assert recipe.data.crops == 60_000
    assert recipe.steps == 700 * 60_000 // 64


def test_real_small_is_the_papers_architecture() -> None:
    small, paper = read_recipe("real_small").model, read_recipe("canvas_all_markers").model
    assert (small.encoder, small.decoder) == (paper.encoder, paper.decoder)


def test_the_two_that_predict_something_else_differ_from_cells_small_in_that_alone() -> None:
    small = read_recipe("cells_small")
    patch = read_recipe(small, ["model.decoder.targets=patch", "loss.error=patch", "loss.gamma=0.0"])
    assert read_recipe("cells_patch_targets") == patch
    taught = ["loss.gamma=0.0", "distil={weight: 1.0, momentum: 0.99, layers: 3, normalise: crop}"]
    assert read_recipe("cells_distilled") == read_recipe(small, taught)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("training.stepps=3", "unknown key 'training.stepps'; did you mean 'training.steps'?"),
        ("model.encoder.depht=3", "did you mean 'model.encoder.depth'?"),
        ("training.mask_ratio=.5", "did you mean 'model.mask_ratio'?"),
        ("training.lr=1", "did you mean 'training.learning_rate'?"),
        ("trainig.batch=3", "unknown key 'trainig'; did you mean 'training'?"),
        ("data.window.hgh=3", "did you mean 'data.window.high'?"),
        ("tracking.wandb.projct=a", "did you mean 'tracking.wandb.project'?"),
        ("zzz=1", "unknown key 'zzz'; known there: model, loss, distil, data, augment, training"),
        ("training.steps=abc", "training.steps is 'abc'; expected a valid integer"),
        ("training.steps=true", "training.steps is True; expected a valid integer"),
        ("training.steps=0", "training.steps is 0, and no weights to start from are given"),
        ("training.steps=-1", "training.steps is -1; expected greater than or equal to 0"),
        ("training.learning_rate=.nan", "training.learning_rate is nan; expected a finite number"),
        ("data.held_out=1.5", "data.held_out is 1.5; expected a valid integer or a valid list"),
        ("data.resample_to=[4,2]", "data.resample_to is [4, 2]; expected more values than 2"),
        ("training=3", "training is 3; expected a section of settings"),
        ("loss.scale=fixed", "loss: mean_variance has to be given with scale: fixed"),
        ("model.encoder.crop_zyx=[16,32,30]", "crop (16, 32, 30) is not a whole number of patches (4, 8, 8)"),
        ("model.decoder.targets=patch", "loss.error is 'window' and model.decoder.targets 'patch'"),
        ("loss.error=patch", "so give both or neither"),
        ("distil.weight=0", "distil.weight is 0; expected greater than 0"),
        ("distil.momentum=1", "distil.momentum is 1; expected less than 1"),
        ("distil.layers=7", "distil.layers is 7, and the encoder has only 6 blocks"),
        ("distil.wieght=1", "did you mean 'distil.weight'?"),
        ("data.window.low=99.95", "window rule percentiles 99.95 99.9"),
    ],
)
def test_a_wrong_setting_is_named(override: str, sentence: str) -> None:
    with pytest.raises(CanvasError) as raised:
        read_recipe(LEAST, [override])
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("training: {steps: 3, batch: 4, steps: 5}", "the key 'steps' is given twice"),
        ("training: {steps: 3", "is not readable as YAML"),
        ("- 3", "holds no recipe"),
        ("seed: 0", "the key 'training' is missing"),
        ("training: {}", "neither steps nor epochs is given"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(CanvasError) as raised:
        read_recipe(path)
    assert "mine.yaml" in str(raised.value)
    assert sentence in str(raised.value)


def test_overrides_are_yaml_and_the_last_wins(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("training: {steps: 3, learning_rate: 1e-3}")
    recipe = read_recipe(
        path,
        ["training.batch=8", "training.batch=16", "data.held_out=[a, b]", "tracking.wandb.offline=false"],
    )
    assert (recipe.training.learning_rate, recipe.training.batch) == (1e-3, 16)
    assert recipe.data.held_out == ["a", "b"]
    assert recipe.tracking.wandb is not None
    assert not recipe.tracking.wandb.offline
    with pytest.raises(CanvasError, match="KEY=VALUE was expected"):
        read_recipe(path, ["training.batch"])


def test_steps_win_over_epochs() -> None:
    settings = {"training": {"epochs": 2, "batch": 50}, "data": {"crops": 100}}
    assert read_recipe(settings).steps == 4
    assert read_recipe(settings, ["training.steps=7"]).steps == 7


def test_the_first_difference_is_found() -> None:
    recipe = read_recipe(LEAST)
    assert first_difference(recipe, read_recipe(LEAST)) is None
    other = read_recipe(LEAST, ["training.batch=32", "seed=4"])
    assert first_difference(recipe, other) == ("training.batch", 64, 32)


def test_an_unknown_recipe_lists_the_shipped_ones() -> None:
    with pytest.raises(CanvasError, match=r"shipped: .*phantom"):
        read_recipe("fantom")


def test_runs_before_the_flag_had_its_name_are_read():
    assert read_recipe({**LEAST, "data": {"any_voxel": True}}).data.ignore_voxel_size
