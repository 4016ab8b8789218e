"""PSNR, SSIM and the trivial predictors against loops and against MONAI."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from canvas_fm.evaluation.metrics.reconstruction import (
    Batch,
    Tally,
    four_rows,
    masked_voxels,
    psnr,
    ssim_map,
    trivial_predictions,
)

PATCH = (2, 4, 4)
SHAPE = (8, 16, 16)


def crops_and_mask(n: int = 3, hidden: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    crops = random.random((n, *SHAPE)).astype(np.float32)
    masked = np.stack([random.permutation(64) < hidden for _ in range(n)])
    return crops, masked


def scored(crops: np.ndarray, prediction: np.ndarray, masked: np.ndarray) -> dict[str, float]:
    return Batch(crops, masked, PATCH).tally(prediction).scores()


def patch_slices(token: int) -> tuple[slice, slice, slice]:
    """Where a token's voxels are; tokens count x fastest."""
    z, y, x = token // 16, token // 4 % 4, token % 4
    return slice(2 * z, 2 * z + 2), slice(4 * y, 4 * y + 4), slice(4 * x, 4 * x + 4)


def test_the_mask_of_patches_becomes_one_of_voxels() -> None:
    _, masked = crops_and_mask()
    voxels = masked_voxels(masked, SHAPE, PATCH)
    for crop, token in itertools.product(range(3), range(64)):
        assert (voxels[(crop, *patch_slices(token))] == masked[crop, token]).all()


def test_psnr_of_the_three_definitions_by_loops() -> None:
    crops, masked = crops_and_mask()
    prediction = crops + np.random.default_rng(1).normal(0, 0.1, crops.shape).astype(np.float32)
    scores = scored(crops, prediction, masked)
    hidden, whole, count = 0.0, 0.0, 0
    for crop, token in itertools.product(range(3), range(64)):
        place = (crop, *patch_slices(token))
        error = float(((prediction[place].astype(float) - crops[place]) ** 2).sum())
        whole += error
        if masked[crop, token]:
            hidden, count = hidden + error, count + crops[place].size
    assert scores["psnr_masked"] == pytest.approx(-10 * math.log10(hidden / count), abs=1e-9)
    assert scores["psnr_composite"] == pytest.approx(-10 * math.log10(hidden / crops.size), abs=1e-9)
    assert scores["psnr_raw"] == pytest.approx(-10 * math.log10(whole / crops.size), abs=1e-9)


def test_psnr_matches_monai() -> None:
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("monai.metrics")
    crops, masked = crops_and_mask(n=1)
    prediction = np.clip(crops + 0.1, 0, 1)
    peer = metrics.PSNRMetric(max_val=1.0)(torch.from_numpy(prediction)[None], torch.from_numpy(crops)[None])
    assert scored(crops, prediction, masked)["psnr_raw"] == pytest.approx(float(peer), abs=1e-4)


def test_psnr_of_nothing_wrong_is_infinite() -> None:
    assert psnr(0.0, 5) == math.inf
    assert psnr(5.0, 5) == 0


def test_ssim_matches_monai_where_the_window_lies_inside() -> None:
    torch = pytest.importorskip("torch")
    regression = pytest.importorskip("monai.metrics.regression")
    crops, _ = crops_and_mask()
    prediction = crops * 0.7 + 0.1
    peer, _ = regression.compute_ssim_and_cs(
        torch.from_numpy(prediction)[:, None].double(),
        torch.from_numpy(crops)[:, None].double(),
        spatial_dims=3,
        kernel_size=(7, 7, 7),
        kernel_sigma=(1.0, 1.0, 1.0),
        data_range=1.0,
        kernel_type="uniform",
    )
    # MONAI filters in float32.
    found = ssim_map(prediction, crops)[:, 3:-3, 3:-3, 3:-3]
    np.testing.assert_allclose(found, peer[:, 0].numpy(), atol=2e-5)


def test_ssim_at_the_border_sees_the_crop_reflected() -> None:
    crops, _ = crops_and_mask(n=1)
    prediction = (crops * 0.7 + 0.1).astype(np.float32)
    found = ssim_map(prediction, crops)[0]
    padded = [np.pad(a[0].astype(float), 3, mode="symmetric") for a in (prediction, crops)]
    for z, y, x in [(0, 0, 0), (7, 0, 15), (3, 15, 2), (4, 8, 8)]:
        a, b = (p[z : z + 7, y : y + 7, x : x + 7] for p in padded)
        covariance = ((a - a.mean()) * (b - b.mean())).mean()
        expected = ((2 * a.mean() * b.mean() + 1e-4) * (2 * covariance + 9e-4)) / (
            (a.mean() ** 2 + b.mean() ** 2 + 1e-4) * (a.var() + b.var() + 9e-4)
        )
        assert found[z, y, x] == pytest.approx(expected, abs=1e-9)


def test_masked_ssim_is_the_composites_map_averaged_over_masked_voxels() -> None:
    crops, masked = crops_and_mask()
    prediction = np.full_like(crops, 0.3)
    scores = scored(crops, prediction, masked)
    voxels = masked_voxels(masked, SHAPE, PATCH)
    composite = np.where(voxels, prediction, crops)
    likeness = ssim_map(composite, crops)
    assert scores["ssim_masked"] == pytest.approx(likeness[voxels].mean(), abs=1e-12)
    assert scores["ssim_composite"] == pytest.approx(likeness.mean(), abs=1e-12)
    assert scores["ssim_raw"] == pytest.approx(ssim_map(prediction, crops).mean(), abs=1e-12)


def test_parts_of_high_and_low_variance_by_loops() -> None:
    crops, masked = crops_and_mask()
    crops[:, :, : SHAPE[1] // 2] *= 0.1
    prediction = crops + np.random.default_rng(1).normal(0, 0.1, crops.shape).astype(np.float32)
    variances = [
        [float(crops[(crop, *patch_slices(token))].astype(float).var()) for token in range(64)]
        for crop in range(3)
    ]
    cut = float(np.mean(variances))
    scores = Batch(crops, masked, PATCH, cut).tally(prediction).scores()
    assert scores.items() > scored(crops, prediction, masked).items()
    composite = np.where(masked_voxels(masked, SHAPE, PATCH), prediction, crops)
    raw, merged = ssim_map(prediction, crops), ssim_map(composite, crops)
    for level, is_high in (("high", True), ("low", False)):
        hidden, whole, like, likeness, missed, voxels = 0.0, 0.0, 0.0, 0.0, 0, 0
        for crop, token in itertools.product(range(3), range(64)):
            place = (crop, *patch_slices(token))
            if (variances[crop][token] > cut) != is_high:
                continue
            error = float(((prediction[place].astype(float) - crops[place]) ** 2).sum())
            whole, voxels = whole + error, voxels + crops[place].size
            likeness += raw[place].sum()
            if masked[crop, token]:
                hidden, missed = hidden + error, missed + crops[place].size
                like += merged[place].sum()
        assert scores[f"psnr_raw_{level}"] == pytest.approx(-10 * math.log10(whole / voxels))
        assert scores[f"psnr_masked_{level}"] == pytest.approx(-10 * math.log10(hidden / missed))
        assert scores[f"psnr_composite_{level}"] == pytest.approx(-10 * math.log10(hidden / voxels))
        assert scores[f"ssim_masked_{level}"] == pytest.approx(like / missed)
        assert scores[f"ssim_raw_{level}"] == pytest.approx(likeness / voxels)


def test_a_part_without_patches_has_no_scores() -> None:
    crops, masked = crops_and_mask()
    scores = Batch(crops, masked, PATCH, 2.0).tally(crops).scores()
    assert "psnr_masked_low" in scores
    assert not any(name.endswith("_high") for name in scores)


def test_scores_pool_over_batches() -> None:
    crops, masked = crops_and_mask(n=5)
    crops[3:] *= 0.1  # so that a mean of the batches' decibels would differ
    prediction = np.full_like(crops, 0.3)
    tally = Tally()
    for part in (slice(0, 3), slice(3, 5)):
        tally += Batch(crops[part], masked[part], PATCH).tally(prediction[part])
    whole = scored(crops, prediction, masked)
    assert tally.scores() == pytest.approx(whole, rel=1e-12)


def test_trivial_predictors_by_loops() -> None:
    crops, masked = crops_and_mask(hidden=58)  # some patches have no visible neighbour
    found = trivial_predictions(crops, masked, PATCH)
    lonely = 0
    for crop, token in itertools.product(range(3), range(64)):
        place = patch_slices(token)
        visible = [t for t in range(64) if not masked[crop, t]]
        seen = np.concatenate([crops[crop][patch_slices(t)].ravel() for t in visible]).mean(dtype=float)
        near, weights = [], []
        for other in visible:
            steps = [abs(token // s % 4 - other // s % 4) for s in (16, 4, 1)]
            if other != token and max(steps) == 1:
                near.append(crops[crop][patch_slices(other)].mean(dtype=float))
                weights.append(sum(steps) ** -2.0)
        lonely += not near
        expected = {
            "crop_mean": seen,
            "neighbours_mean": np.average(near, weights=weights) if near else seen,
            "patch_mean": crops[crop][place].mean(dtype=float),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][(crop, *place)], value, atol=1e-7)
    assert lonely


def test_only_the_oracle_looks_at_what_is_masked() -> None:
    crops, masked = crops_and_mask()
    voxels = masked_voxels(masked, SHAPE, PATCH)
    changed = np.where(voxels, 1 - crops, crops)
    before, after = (trivial_predictions(c, masked, PATCH) for c in (crops, changed))
    for name in ("crop_mean", "neighbours_mean"):
        np.testing.assert_array_equal(before[name], after[name])
    assert np.abs(before["patch_mean"] - after["patch_mean"]).max() > 0.01


def test_a_perfect_prediction_scores_one() -> None:
    crops, masked = crops_and_mask()
    scores = scored(crops, crops, masked)
    assert scores["ssim_masked"] == scores["ssim_raw"] == pytest.approx(1)
    assert scores["psnr_masked"] == math.inf


def test_the_four_rows_differ_in_masked_voxels_alone() -> None:
    rng = np.random.default_rng(0)
    crops, prediction = rng.random((2, *SHAPE)), rng.random((2, *SHAPE))
    grid = [size // patch for size, patch in zip(SHAPE, PATCH, strict=True)]
    masked = rng.random((2, int(np.prod(grid)))) < 0.5
    hidden = np.kron(masked.reshape(2, *grid), np.ones((1, *PATCH))).astype(bool)
    original, seen, predicted, merged = np.moveaxis(four_rows(crops, masked, prediction, PATCH), 1, 0)
    np.testing.assert_array_equal(original, crops)
    np.testing.assert_array_equal(predicted, prediction)
    assert not seen[hidden].any()
    np.testing.assert_array_equal(seen[~hidden], crops[~hidden])
    np.testing.assert_array_equal(merged[hidden], prediction[hidden])
    np.testing.assert_array_equal(merged[~hidden], crops[~hidden])
