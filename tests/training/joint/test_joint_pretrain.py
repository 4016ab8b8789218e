"""Joint pretraining from end to end: it learns, resumes to the same bits, ships, and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError
from canvas_fm.models.folder.training_volumes import training_volumes
from canvas_fm.models.load_model import load
from canvas_fm.training.joint.descriptors import crops_of
from canvas_fm.training.joint.joint_task import places_of
from canvas_fm.training.joint.optimizer_step import JointStep
from canvas_fm.training.mae.pretrain import pretrain
from canvas_fm.training.mae.training_crops import VolumeSource
from canvas_fm.training.recipe.joint_recipe import JointRecipe
from canvas_fm.training.recipe.read_recipe import read_recipe_of
from canvas_fm.training.run.distributed import Ranks
from canvas_fm.viewing.info.models import describe_run

TINY: dict[str, Any] = {
    "objective": "joint",
    "model": {
        "encoder": {"crop_zyx": [8, 16, 16], "patch_zyx": [2, 4, 4], "dim": 24, "depth": 1, "heads": 2,
                    "intensity": "contrast"},
        "projector": {"hidden": 16, "dim": 8},
        "visible": 12,
    },
    "data": {"crops": 48},
    "training": {
        "steps": 6, "batch": 8, "learning_rate": 3e-3, "precision": "fp32", "ema": 0.5,
        "log_every": 2, "checkpoint_every": 3,
    },
    "evaluation": {"crops": 12, "batch": 6},
}  # fmt: skip


def tiny(*overrides: str) -> JointRecipe:
    return read_recipe_of(JointRecipe, TINY, overrides)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load(folder, kind="encoder").net.state_dict()


def test_a_run_leaves_an_encoder_and_rows_of_the_held_out_volume(cubes: list[Path], tmp_path: Path) -> None:
    run = pretrain(tiny(), cubes, out=tmp_path / "run", held_out=["b"], show=False)
    encoder = load(run.encoder, kind="encoder")
    assert encoder.config.pool == "centre"
    assert encoder.config.decoder is None
    assert [v["name"] for v in encoder.config.provenance["trained_on"]] == ["a"]
    (row,) = [row for row in run.metrics() if row["kind"] == "eval"]
    assert row["volume"] == "b"
    assert 0 <= row["found_again"] <= 1
    assert row["effective_rank"] > 1
    assert describe_run(run.path)["evaluation"][0]["volume"] == "b"
    assert run.recipe() == tiny("data.held_out=[b]")


def test_a_run_that_was_stopped_resumes_to_the_same_bits(
    cubes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pretrain(tiny(), cubes, out=tmp_path / "whole", show=False)
    step = JointStep.__call__

    def dying(self: JointStep, batch: tuple, number: int) -> Any:
        if number == 4:
            raise KeyboardInterrupt
        return step(self, batch, number)

    monkeypatch.setattr(JointStep, "__call__", dying)
    with pytest.raises(KeyboardInterrupt):
        pretrain(tiny(), cubes, out=tmp_path / "parts", show=False)
    monkeypatch.setattr(JointStep, "__call__", step)
    parts = pretrain(tiny(), cubes, out=tmp_path / "parts", resume=True, show=False)
    losses = [[row["loss"] for row in run.metrics() if row["kind"] == "train"] for run in (whole, parts)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights(whole.encoder).values(), weights(parts.encoder).values(), strict=True)
    )


@pytest.mark.parametrize(("kind", "share"), [("contrastive", 0.85), ("vicreg", 0.95)])
def test_it_learns_to_find_the_other_view(kind: str, share: float) -> None:
    """A few fixed places in easy views, many steps: the loss falls well below where it began."""
    easy = ["views.shift_zyx=[0, 0, 0]", *(f"views.{key}=0" for key in ("free", "noise", "stripes", "ramp"))]
    recipe = tiny(f"loss.kind={kind}", "training.steps=60", "training.ema=null", *easy)
    stepper = JointStep(recipe, Ranks(0, 1, torch.device("cpu")))
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 3000, (8, 14, 34, 34), generator=generator).float()
    raw = torch.nn.functional.avg_pool3d(raw[:, None], 5, 1, 2)[:, 0] * 2 - 1500
    windows = torch.tensor([[0.0, 1 / 3000]]).repeat(8, 1)
    losses = [float(stepper((raw, windows), step)[0]) for step in range(60)]
    assert sum(losses[-5:]) < share * sum(losses[:5])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.visible=4", "at least the 8 patches of the centre"),
        ("model.visible=65", "at most all 64"),
        ("training.micro_batch=4", "compares all views"),
        ("training.batch=1", "needs another"),
        ("views.gain=0.5", "views.gain"),
        ("loss.kind=simclr", "loss.kind"),
        ("loss.temperature=0", "loss.temperature"),
        ("objective=mae", "objective"),
        ("loss.reconstruction=-1", "loss.reconstruction"),
        ("model.decoder.targets=patch", "predicts voxels"),
        ("data.volumes_a_batch=3", "batch is 8 and data.volumes_a_batch 3; .* give a batch of 6, 9"),
        ("data.volumes_a_batch=8", "two or more"),
        ("loss.negatives=volume", "give data.volumes_a_batch too"),
        ("model.descriptors.radii_um=[3]", "model.descriptors.radii_um"),
        ("model.encoder.descriptors={voxel_um: [6, 2, 2]}", "leave encoder.descriptors out"),
    ],
)
def test_settings_that_cannot_be_are_refused(override: str, message: str) -> None:
    with pytest.raises(CanvasError, match=message):
        tiny(override)


def test_vicreg_has_no_negatives_of_one_volume() -> None:
    with pytest.raises(CanvasError, match="compares no places"):
        tiny("loss.kind=vicreg", "loss.negatives=volume", "data.volumes_a_batch=2")


def test_negatives_of_a_volume_train_on_the_places_of_few_volumes(
    cubes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each batch holds four places of each of two volumes, and the step is told which is of which."""
    seen, step = [], JointStep.__call__

    def noting(self: JointStep, batch: tuple, number: int) -> Any:
        windows, home = batch[1], batch[2]
        own = [windows[home == v].unique(dim=0) for v in home.unique()]
        seen.append((home.bincount().tolist(), [len(each) for each in own]))
        return step(self, batch, number)

    monkeypatch.setattr(JointStep, "__call__", noting)
    settings = ["loss.negatives=volume", "data.volumes_a_batch=2", "loss.reconstruction=0.5"]
    run = pretrain(tiny(*settings), cubes, out=tmp_path / "run", show=False)
    assert seen == [([4, 4], [1, 1])] * 6
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in run.metrics() if row["kind"] == "train")


def test_more_volumes_a_batch_than_there_are_are_refused(cubes: list[Path], tmp_path: Path) -> None:
    for overrides, message in (
        (["data.volumes_a_batch=4"], "volumes_a_batch is 4, and 2 volumes"),
        (["data.volumes_a_batch=2", "data.crops=6"], "leaves 3 places a volume, and a batch takes 4"),
    ):
        with pytest.raises(CanvasError, match=message):
            pretrain(tiny(*overrides), cubes, out=tmp_path / message[:9], show=False)


def test_a_training_that_starts_from_an_encoder_goes_on_from_its_weights(
    cubes: list[Path], tmp_path: Path
) -> None:
    """A rate of next to nothing leaves them as they were, and what they had seen is in the provenance."""
    first = pretrain(tiny(), cubes, out=tmp_path / "first", held_out=["b"], show=False)
    still = ["training.learning_rate=1e-12", "training.min_learning_rate=0", f"start={first.encoder}"]
    second = pretrain(tiny(*still, "seed=5"), cubes, out=tmp_path / "second", held_out=["a"], show=False)
    for name, values in weights(first.encoder).items():
        torch.testing.assert_close(weights(second.encoder)[name], values, rtol=0, atol=1e-6)
    provenance = load(second.encoder, kind="encoder").config.provenance
    assert provenance["recipe"]["start"] == load(first.encoder, kind="encoder").sha256
    assert training_volumes(provenance) == {"a", "b"}
    with pytest.raises(CanvasError, match=r"start .* dim=24.* dim=48"):
        pretrain(tiny(*still, "model.encoder.dim=48"), cubes, out=tmp_path / "third", show=False)


def test_descriptors_are_fitted_on_the_training_volumes_and_a_training_may_start_from_them(
    cubes: list[Path], tmp_path: Path
) -> None:
    settings = "model.descriptors={components: 5, radii_um: [5, 10]}"
    run = pretrain(tiny(settings), cubes, out=tmp_path / "run", held_out=["b"], show=False)
    encoder = load(run.encoder, kind="encoder")
    assert encoder.dim == 24 + 5 + 8 + 1 + 3 + 8
    plain = pretrain(tiny(), cubes, out=tmp_path / "plain", held_out=["b"], show=False)
    for name, values in weights(plain.encoder).items():  # the training knows nothing of them
        assert torch.equal(values, weights(run.encoder)[name])
    places = places_of(tiny(), [VolumeSource("a", Volume.open(cubes[0]))], 48, seed=7)
    tokens, numbers = encoder(crops_of(places, (8, 16, 16), show=False)).split([24, 25], dim=1)
    assert (numbers.mean(dim=0).abs() < numbers.std(dim=0)).all()
    assert numbers.std(dim=0).mean().item() == pytest.approx(tokens.std(dim=0).mean().item(), rel=0.4)
    again = pretrain(tiny(settings, f"start={run.encoder}"), cubes, out=tmp_path / "again", show=False)
    assert load(again.encoder, kind="encoder").dim == encoder.dim


def test_radii_that_the_voxels_cannot_tell_apart_are_refused_before_training(
    cubes: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(CanvasError, match=r"model\.descriptors: .*radii_um .* hold more than the one before"):
        pretrain(tiny("model.descriptors={radii_um: [0.1, 0.2]}"), cubes, out=tmp_path / "run", show=False)


def test_nothing_hidden_leaves_nothing_to_predict() -> None:
    with pytest.raises(CanvasError, match="all 64 patches are visible"):
        tiny("model.visible=64", "loss.reconstruction=0.5")


def test_several_processes_are_refused() -> None:
    with pytest.raises(CanvasError, match="one process"):
        JointStep(tiny(), Ranks(0, 2, torch.device("cpu")))


def test_a_shipped_recipe_is_whole() -> None:
    recipe = read_recipe_of(JointRecipe, "cells_contrast")
    assert recipe.model.visible < recipe.model.encoder.tokens


def test_reconstruction_beside_contrast_trains_one_encoder_by_both(cubes: list[Path], tmp_path: Path) -> None:
    """The sum is what is minimised, both parts are logged, and the encoder ships without the decoder."""
    run = pretrain(tiny("loss.reconstruction=0.5"), cubes, out=tmp_path / "run", show=False)
    rows = [row for row in run.metrics() if row["kind"] == "train"]
    assert len(rows) == 3
    for row in rows:
        assert row["loss"] == pytest.approx(row["joint"] + 0.5 * row["reconstruction"], rel=1e-5)
        assert row["reconstruction"] > 0
    assert not [name for name in weights(run.encoder) if "decoder" in name]
    alone = pretrain(tiny(), cubes, out=tmp_path / "alone", show=False)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(weights(run.encoder).values(), weights(alone.encoder).values(), strict=True)
    )


def test_a_weight_of_nothing_is_the_contrast_alone(cubes: list[Path], tmp_path: Path) -> None:
    runs = [pretrain(tiny(*more), cubes, out=tmp_path / str(len(more)), show=False)
            for more in ([], ["loss.reconstruction=0.0"])]  # fmt: skip
    assert weights(runs[0].encoder).keys() == weights(runs[1].encoder).keys()
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights(runs[0].encoder).values(), weights(runs[1].encoder).values(), strict=True)
    )


def test_the_shipped_hybrid_is_the_contrast_with_a_decoder() -> None:
    contrast = read_recipe_of(JointRecipe, "cells_contrast", ["loss.reconstruction=0.5"])
    assert read_recipe_of(JointRecipe, "cells_hybrid") == contrast


def losses_of(raw: torch.Tensor, low: float, *overrides: str) -> list[float]:
    """The first loss of a tiny step on boxes, the window's low end and the same random numbers."""
    easy = ["views.offset=0", *overrides]
    step = JointStep(tiny(*easy), Ranks(0, 1, torch.device("cpu")))
    windows = torch.tensor([[low, 1 / 3000]]).repeat(len(raw), 1)
    return step((raw, windows), 0)[0].reshape(-1).tolist()


def test_the_window_and_the_temperature_reach_the_loss() -> None:
    """Boxes with an offset and a window that takes it off are boxes without either."""
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 3000, (8, 14, 34, 34), generator=generator).float()
    plain = losses_of(raw, 0.0)
    assert losses_of(raw + 500, 500.0) == pytest.approx(plain, rel=1e-4)
    assert losses_of(raw, 500.0) != pytest.approx(plain, rel=1e-4)
    assert losses_of(raw, 0.0, "loss.temperature=0.5") != pytest.approx(plain, rel=1e-2)
