"""Training crops: right voxels, right order, the same wherever they lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.volume.window import WindowRule
from canvas_fm.training.mae.augment import widen
from canvas_fm.training.mae.training_crops import (
    CropSet,
    Resident,
    Streamed,
    VolumeSource,
    draw_crops,
    take,
)
from canvas_fm.training.run.batch_order import batch_order, volume_order

CROP = (4, 8, 6)
RULE = WindowRule()


def sources(paths: list[Path]) -> list[VolumeSource]:
    return [VolumeSource(path.parent.name, Volume.open(path)) for path in paths]


def drawn(paths: list[Path], n: int = 21) -> CropSet:
    return draw_crops(sources(paths), CROP, n, foreground=0.5, seed=3, rule=RULE)


def test_rows_hold_the_voxels_at_their_starts(
    position_volume: Callable[..., tuple[Path, np.ndarray]],
) -> None:
    path, voxels = position_volume()
    crops = draw_crops([VolumeSource("p", Volume.open(path))], CROP, 30, foreground=0, seed=0, rule=RULE)
    raw = widen(crops.read()).numpy()
    for crop, (z, y, x) in zip(raw, crops.starts_zyx[0], strict=True):
        np.testing.assert_array_equal(crop, voxels[z : z + 4, y : y + 8, x : x + 6])


def test_every_volume_gives_an_equal_share_with_its_own_window(cubes: list[Path]) -> None:
    crops = drawn(cubes)
    assert crops.counts == [11, 10]
    assert len(np.unique(crops.windows[:11], axis=0)) == len(np.unique(crops.windows[11:], axis=0)) == 1
    window = crops.sources[1].volume.window
    assert crops.windows[-1] == pytest.approx([window.low, 1 / (window.high - window.low)], rel=1e-6)


def test_the_seed_decides(cubes: list[Path]) -> None:
    first, again = drawn(cubes), drawn(cubes)
    other = draw_crops(sources(cubes), CROP, 21, foreground=0.5, seed=4, rule=RULE)
    assert first.identity() == again.identity() != other.identity()
    assert not np.array_equal(first.starts_zyx[0][:10], first.starts_zyx[1])


def test_streamed_crops_are_the_resident_ones_in_the_same_order(cubes: list[Path]) -> None:
    crops, cpu = drawn(cubes), torch.device("cpu")
    assert isinstance(take(crops, cpu, resident_gb=1), Resident)
    assert isinstance(take(crops, cpu, resident_gb=0), Streamed)
    for batches in zip(
        *(where.along(batch_order(21, 8, 0, 0, 7)) for where in (Resident(crops, cpu), Streamed(crops, cpu))),
        strict=True,
    ):
        for resident, streamed in zip(*batches, strict=True):
            assert torch.equal(resident, streamed)


def test_crops_stay_on_the_device_as_long_as_their_bytes_fit(cubes: list[Path]) -> None:
    crops, cpu = drawn(cubes), torch.device("cpu")
    assert crops.nbytes == crops.read().numpy().nbytes == 21 * 4 * 8 * 6 * 2
    assert isinstance(take(crops, cpu, resident_gb=(crops.nbytes + 1) / 1e9), Resident)
    assert isinstance(take(crops, cpu, resident_gb=(crops.nbytes - 1) / 1e9), Streamed)


def test_the_share_on_signal_is_brighter_than_what_lies_anywhere(cubes: list[Path]) -> None:
    dark, half, bright = (
        draw_crops(sources(cubes), CROP, 60, foreground=share, seed=0, rule=RULE).read().float().mean()
        for share in (0.0, 0.5, 1.0)
    )
    assert dark < 0.9 * half
    assert half < 0.9 * bright


def test_float_volumes_stay_float(position_volume: Callable[..., tuple[Path, np.ndarray]]) -> None:
    path, _ = position_volume(dtype="float32")
    crops = draw_crops([VolumeSource("p", Volume.open(path))], CROP, 4, foreground=0, seed=0, rule=RULE)
    assert crops.read().dtype == torch.float32


def test_resampled_crops_cover_the_physical_size(cubes: list[Path]) -> None:
    source = VolumeSource("a", Volume.open(cubes[0]), resample_to=(4.0, 3.6, 3.6))
    crops = draw_crops([source], (4, 6, 6), 5, foreground=0, seed=0, rule=RULE)
    raw = crops.read()
    assert raw.shape == (5, 4, 6, 6)
    assert raw.dtype == torch.float32
    starts, box = crops.starts_zyx[0], source.reader((4, 6, 6), 2**20).box_zyx
    assert (starts >= 0).all()
    assert (starts + box <= source.volume.shape_zyx).all()


def test_what_goes_wrong_while_reading_is_raised_where_the_batch_is_taken(cubes: list[Path]) -> None:
    crops = drawn(cubes)
    stream = Streamed(crops, torch.device("cpu"))
    with pytest.raises(IndexError):
        next(stream.along(iter([np.array([99])])))


def test_a_stream_that_is_left_early_ends_its_thread(cubes: list[Path]) -> None:
    import threading

    stream = Streamed(drawn(cubes), torch.device("cpu")).along(batch_order(21, 4, 0, 0, 1000))
    next(stream)
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "canvas-fm-crops"]


def test_an_epoch_is_one_pass_and_each_has_its_own_order() -> None:
    rows = np.concatenate(list(batch_order(10, 4, 0, 0, 5)))
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert list(rows[:10]) != list(rows[10:])
    assert list(rows) != list(np.concatenate(list(batch_order(10, 4, 1, 0, 5))))


def test_the_order_goes_on_from_any_step() -> None:
    whole = list(batch_order(10, 16, 5, 0, 9))
    for first in (1, 4, 8):
        np.testing.assert_array_equal(list(batch_order(10, 16, 5, first, 9)), whole[first:])


def test_a_batch_of_few_volumes_has_equally_many_rows_of_each_and_no_row_twice() -> None:
    first_rows = np.array([0, 10, 14, 30])
    whole = list(volume_order(first_rows, 8, 2, 5, 0, 30))
    for rows in whole:
        counts = np.bincount(np.searchsorted(first_rows, rows, side="right") - 1, minlength=3)
        assert sorted(counts) == [0, 4, 4]
        assert len(set(rows)) == 8
    assert set(np.concatenate(whole)) == set(range(30))
    np.testing.assert_array_equal(list(volume_order(first_rows, 8, 2, 5, 20, 30)), whole[20:])
    assert any((a != b).any() for a, b in zip(volume_order(first_rows, 8, 2, 6, 0, 9), whole, strict=False))
