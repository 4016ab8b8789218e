"""Origins: crops lie inside, the share on signal is kept, and a large volume is not read to find it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

from canvas_fm.data.crops.crop_positions import draw_starts, grid_starts
from canvas_fm.data.crops.reader import crop_starts
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError

CROP = (16, 32, 32)


def spotted(folder: Path, shape: tuple[int, int, int] = (96, 160, 160)) -> tuple[Volume, np.ndarray]:
    """A noisy volume with a few bright spots in one corner, a thousandth of it."""
    random = np.random.default_rng(0)
    voxels = random.poisson(200, shape).astype(np.uint16)
    for z, y, x in random.integers((4, 4, 4), (44, 76, 76), (30, 3)):
        voxels[z - 1 : z + 2, y - 2 : y + 3, x - 2 : x + 3] += 900
    with Volume.create(
        folder / "spots.zarr", shape, voxel_um=(4, 1.8, 1.8), chunk_zyx=(16, 32, 32)
    ) as writer:
        writer.write((0, 0, 0), voxels)
    return Volume.open(folder / "spots.zarr"), voxels


def lit(voxels: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Which crops hold a spot; the noise stays far below 600."""
    return np.array([(voxels[z : z + 16, y : y + 32, x : x + 32] > 600).any() for z, y, x in starts])


def test_the_stated_share_holds_signal(tmp_path: Path) -> None:
    volume, voxels = spotted(tmp_path)
    starts = draw_starts(volume, CROP, 200, foreground=0.6, seed=3)
    assert starts.shape == (200, 3)
    assert (starts >= 0).all()
    assert (starts <= np.subtract(voxels.shape, CROP)).all()
    anywhere = lit(voxels, draw_starts(volume, CROP, 200, foreground=0, seed=3)).mean()
    assert 0.05 < anywhere < 0.4
    share = lit(voxels, starts)
    assert 0.6 <= share.mean() <= 0.6 + 0.4 * anywhere + 0.1
    # Mixed, so that any stretch of rows is a fair sample.
    assert 0.4 < share[:100].mean() < 0.9


def test_signal_is_not_always_central(tmp_path: Path) -> None:
    volume, voxels = spotted(tmp_path)
    starts = draw_starts(volume, CROP, 200, foreground=1, seed=0)
    places = []
    for z, y, x in starts:
        bright = np.argwhere(voxels[z : z + 16, y : y + 32, x : x + 32] > 600)
        places.append(np.abs(bright - (8, 16, 16)).min(axis=0))
    assert np.max(places, axis=0).min() >= 3


def test_the_same_seed_draws_the_same_crops(tmp_path: Path) -> None:
    volume, _ = spotted(tmp_path)
    drawn = [draw_starts(volume, CROP, 50, foreground=0.5, seed=seed) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()


def test_a_large_volume_is_not_read_as_a_whole(tmp_path: Path, monkeypatch) -> None:
    volume, _ = spotted(tmp_path)
    monkeypatch.setattr("canvas_fm.data.crops.crop_positions._SAMPLE", 20_000)
    read = []
    monkeypatch.setattr(
        volume,
        "read_chunk",
        lambda index: read.append(tuple(index)) or type(volume).read_chunk(volume, index),
    )
    draw_starts(volume, CROP, 4, foreground=1, seed=0)
    assert 0 < len(read) == len(set(read)) < 3 * 5 * 3


def test_more_crops_than_bright_voxels(tmp_path: Path) -> None:
    voxels = np.full((16, 32, 32), 7, np.uint16)
    voxels[3, 4, 5] = 1000
    with Volume.create(tmp_path / "a.zarr", voxels.shape, voxel_um=(4, 2, 2)) as writer:
        writer.write((0, 0, 0), voxels)
    starts = draw_starts(Volume.open(tmp_path / "a.zarr"), (4, 8, 8), 40, foreground=1, seed=0)
    assert ((starts <= (3, 4, 5)) & (np.add(starts, (4, 8, 8)) > (3, 4, 5))).all()
    assert len(np.unique(starts, axis=0)) > 5


def test_nan_is_named_as_nan_and_not_as_a_lack_of_signal(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).random((20, 40, 40)).astype(np.float32)
    voxels[0] = np.nan  # background of a fused or registered volume
    zarr.save_array(tmp_path / "fused.zarr", voxels)
    volume = Volume.open(tmp_path / "fused.zarr", voxel_um=(4, 2, 2))
    with pytest.raises(CanvasError, match="fused holds NaN or infinite values"):
        draw_starts(volume, CROP, 9, foreground=0.5, seed=0)


def test_a_volume_without_signal_is_refused_only_for_foreground(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "flat.zarr", (20, 40, 40), voxel_um=(4, 2, 2)) as writer:
        writer.write((0, 0, 0), np.full((20, 40, 40), 5, np.uint16))
    volume = Volume.open(tmp_path / "flat.zarr")
    assert len(draw_starts(volume, CROP, 9, foreground=0, seed=0)) == 9
    with pytest.raises(CanvasError, match="flat is equally bright everywhere"):
        draw_starts(volume, CROP, 9, foreground=0.5, seed=0)


def test_a_crop_larger_than_the_volume_is_refused(position_volume) -> None:
    volume = Volume.open(position_volume()[0])
    with pytest.raises(CanvasError, match=r"\(16, 80, 32\) is larger than brain, which is \(40, 70, 50\)"):
        draw_starts(volume, (16, 80, 32), 3, foreground=0, seed=0)
    with pytest.raises(CanvasError, match="larger than the volume"):
        grid_starts((40, 70, 50), (41, 8, 8), (8, 8, 8))
    with pytest.raises(CanvasError, match=r"share 1\.5 of foreground"):
        draw_starts(volume, CROP, 3, foreground=1.5, seed=0)


def test_a_crop_as_large_as_the_volume_has_one_place(position_volume) -> None:
    volume = Volume.open(position_volume()[0])
    assert not draw_starts(volume, (40, 70, 50), 5, foreground=0.4, seed=0).any()


def test_the_grid_covers_every_whole_crop_once() -> None:
    starts = grid_starts((40, 70, 50), (16, 32, 32), (8, 32, 9))
    expected = [(z, y, x) for z in (0, 8, 16, 24) for y in (0, 32) for x in (0, 9, 18)]
    assert list(map(tuple, starts.tolist())) == expected
    with pytest.raises(CanvasError, match="at least 1 voxel"):
        grid_starts((40, 70, 50), (16, 32, 32), (8, 0, 9))


def test_starts_around_points() -> None:
    points = np.array([[0.0, 0.49, 0.5], [10.5, -0.5, -0.51]])
    assert crop_starts(points, (16, 5, 1)).tolist() == [[-8, -2, 1], [3, -2, -1]]
