"""A detector's training step: focal loss, brightness and turns, ranks and micro-batches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from canvas_fm.training.detector.optimizer_step import Brightness, DetectorStep
from canvas_fm.training.detector.targets import BACKGROUND, CELL, UNLABELLED
from canvas_fm.training.run.distributed import Ranks
from tests.training.detector.cubes import tiny
from tests.training.pair import together, two_ranks


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
