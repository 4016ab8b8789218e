"""The figures: what is drawn where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.image import imread

from canvas_fm.evaluation.page.figures import loss_figure, reconstruction_figure

PATCH = (4, 8, 8)


def draw(tmp_path: Path, masked: np.ndarray, prediction: float) -> np.ndarray:
    crop = np.full((16, 32, 32), 0.5, np.float32)
    crop[0, 0, 0] = 1.0
    path = tmp_path / "figure.png"
    reconstruction_figure(
        crop, masked, np.full_like(crop, prediction), path, patch_zyx=PATCH, title="cube, step 3"
    )
    return imread(path)[..., :3]


def yellow(image: np.ndarray) -> np.ndarray:
    return (image[..., 0] > 0.7) & (image[..., 1] > 0.7) & (image[..., 2] < 0.4)


def test_borders_are_drawn_around_masked_patches_only(tmp_path: Path) -> None:
    nothing = draw(tmp_path, np.zeros(64, bool), 0.2)
    assert not yellow(nothing).any()
    one = np.zeros(64, bool)
    one[0] = True  # the first patch: slices 0 to 3, upper left
    image = draw(tmp_path, one, 0.2)
    rows, columns = np.nonzero(yellow(image))
    assert len(rows)
    height, width = image.shape[:2]
    assert rows.min() > 0.2 * height  # not in the row of the original
    assert rows.max() < 0.55 * height  # but in the next
    assert columns.max() < width * 0.35  # four of sixteen slices, right of the labels


def test_the_merged_row_replaces_masked_patches_only(tmp_path: Path) -> None:
    unchanged = draw(tmp_path, np.zeros(64, bool), 0.0)
    replaced = draw(tmp_path, np.ones(64, bool), 0.0)
    last = slice(int(unchanged.shape[0] * 0.85), int(unchanged.shape[0] * 0.9))
    middle = slice(unchanged.shape[1] // 2, None)
    assert np.median(unchanged[last, middle]) > 0.3
    assert np.median(replaced[last, middle]) < 0.05


def test_the_loss_figure_takes_the_rows_of_a_run(tmp_path: Path) -> None:
    scores = {"psnr_masked": 20.0}
    rows = [{"kind": "train", "step": step, "loss": 1 / step} for step in (10, 20, 30)]
    rows += [
        {"kind": "eval", "step": step, "volume": "a", "crops": kind, "loss": 0.1, "psnr_masked": 20.0}
        | {"crop_mean": scores, "neighbours_mean": scores}
        for step in (10, 20)
        for kind in ("random", "foreground")
    ]
    loss_figure(rows, tmp_path / "loss.png")
    assert imread(tmp_path / "loss.png").std() > 0.05
    loss_figure(rows[:1], tmp_path / "first.png")
    assert (tmp_path / "first.png").exists()
    before = imread(tmp_path / "loss.png")
    for more in ({"given": "mean and deviation"}, {"distillation": 0.3}):
        loss_figure([row | more for row in rows], tmp_path / "more.png")
        after = imread(tmp_path / "more.png")
        assert before.shape == after.shape
        assert (before != after).any()
