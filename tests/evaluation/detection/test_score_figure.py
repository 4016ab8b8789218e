"""The figure of a score: each mark where its cell is, and no more of the volume read than is shown."""

from __future__ import annotations

import matplotlib.image
import numpy as np
import pytest

from canvas_fm.evaluation.detection.figure import score_figure
from canvas_fm.evaluation.detection.score import evaluate

COLOURS = {"found": "#56d4ff", "missed": "#ffb000", "false": "#ff5fb4"}


class Recorder:
    """A volume of any size that remembers what was read of it."""

    name = "recorder"

    def __init__(self, shape_zyx):
        self.shape_zyx, self.boxes = shape_zyx, []

    def read(self, origin_zyx, size_zyx):
        self.boxes.append((origin_zyx, size_zyx))
        return np.full(size_zyx, 7, np.uint16)


def places(path, kind):
    """Centre (y, x) of a colour's pixels in each quarter of the figure's panels, as shares of the figure."""
    image = matplotlib.image.imread(path)
    wanted = np.array([int(COLOURS[kind][i : i + 2], 16) / 255 for i in (1, 3, 5)])
    marked = np.abs(image[..., :3] - wanted).max(axis=-1) < 0.02
    high, wide = marked.shape
    marked[round(0.93 * high) :] = False  # the legend
    found = []
    for rows in (slice(0, high // 2), slice(high // 2, high)):
        for columns in (slice(0, wide // 2), slice(wide // 2, wide)):
            y, x = np.nonzero(marked[rows, columns])
            if len(y):
                found.append((2 * y.mean() / high, 2 * x.mean() / wide))
    return found


def test_marks_lie_where_the_cells_are(tmp_path):
    truth, pred = np.array([[10, 20, 30], [10, 80, 90.0]]), np.array([[10, 20, 31], [10, 20, 90.0]])
    score = evaluate(pred, truth, tolerance_voxels=3)
    score_figure(score, Recorder((20, 100, 100)), tmp_path / "a.png", title="<name>")
    up_left, up_right, down_right = (
        places(tmp_path / "a.png", kind) for kind in ("found", "false", "missed")
    )
    assert len(up_left) == len(up_right) == len(down_right) == 4
    for panel in range(4):
        assert up_left[panel][0] == pytest.approx(up_right[panel][0], abs=0.02)
        assert up_right[panel][1] == pytest.approx(down_right[panel][1], abs=0.02)
        assert up_left[panel][1] < up_right[panel][1] - 0.3
        assert up_right[panel][0] < down_right[panel][0] - 0.3


def test_a_whole_brain_is_read_in_four_small_boxes_where_the_cells_are(tmp_path):
    cells = np.random.default_rng(0).normal([800, 3000, 6000], [50, 100, 100], (300, 3))
    score = evaluate(cells, cells, voxel_um=(4.0, 1.8, 1.8), tolerance_um=8)
    brain = Recorder((1700, 7000, 10000))
    score_figure(score, brain, tmp_path / "a.png")
    assert len(brain.boxes) == 4
    for start, size in brain.boxes:
        assert size == (5, 600, 600)
        assert all(0 <= a <= n - s for a, s, n in zip(start, size, brain.shape_zyx, strict=True))
        assert abs(start[1] + 300 - 3000) < 450
        assert abs(start[2] + 300 - 6000) < 450
    assert [start[0] for start, _ in brain.boxes] == sorted(start[0] for start, _ in brain.boxes)


def test_no_cells_and_a_flat_volume_still_make_a_figure(tmp_path):
    score = evaluate(np.zeros((0, 3)), np.zeros((0, 3)), tolerance_voxels=3)
    score_figure(score, Recorder((1, 8, 9)), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
