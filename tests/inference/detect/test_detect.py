"""Detection by tiles beside one pass over the whole volume."""

from __future__ import annotations

import numpy as np
import pytest

from canvas_fm.errors import CanvasError
from canvas_fm.inference.detect.detect import detect, detect_log
from tests.inference.detect.nets import blobs, make_detector, untiled, write


@pytest.mark.parametrize("tile", [(5, 16, 24), (22, 8, 70), (64, 64, 64)])
def test_tiles_give_what_one_pass_over_the_whole_gives(detector, volume, tile):
    points, scores = untiled(detector, volume)
    found = detect(detector, volume, tile_zyx=tile)
    assert len(points) > 20
    assert np.array_equal(found.zyx, points)
    assert found.columns["score"] == pytest.approx(
        scores, abs=1e-5
    )  # sums of some hundred products in float32


def test_only_rows_at_or_above_the_threshold_are_found(detector, volume):
    all_rows = detect(detector, volume, threshold=0.05)
    middle = float(np.sort(all_rows.columns["score"])[len(all_rows) // 2])
    some = detect(detector, volume, threshold=middle)
    kept = all_rows.columns["score"] >= middle
    assert 0 < len(some) == kept.sum() < len(all_rows)
    assert np.array_equal(some.zyx, all_rows.zyx[kept])


def test_without_a_threshold_it_is_the_models_own(detector, volume):
    found = detect(detector, volume)
    assert found.meta["threshold"] == "0.4"
    assert found.columns["score"].min() >= 0.4
    assert len(found) == len(detect(detector, volume, threshold=0.4))


def test_a_region_holds_the_cells_of_the_whole_that_lie_in_it(detector, volume):
    region = (3, 10, 20, 17, 50, 66)
    everything = detect(detector, volume).zyx
    inside = np.all((everything >= region[:3]) & (everything < region[3:]), axis=1)
    assert inside.sum() > 5
    assert np.array_equal(detect(detector, volume, box=region, tile_zyx=(8, 16, 16)).zyx, everything[inside])


def test_positions_between_voxels_stay_within_half_a_voxel(detector, volume):
    whole_numbers, between = (
        detect(detector, volume),
        detect(detector, volume, subvoxel=True, tile_zyx=(5, 16, 24)),
    )
    shift = between.zyx - whole_numbers.zyx
    assert np.abs(shift).max() <= 0.5
    assert np.abs(shift).max() > 0.05


def test_a_second_channel_is_asked_for_and_used(tmp_path, volume):
    two = make_detector(tmp_path / "two", channels=2)
    with pytest.raises(CanvasError, match="trained with a background"):
        detect(two, volume)
    with pytest.raises(CanvasError, match="leave --background out"):
        detect(make_detector(tmp_path / "one"), volume, background=volume)
    other = write(tmp_path / "background.zarr", blobs(seed=5))
    assert not np.array_equal(
        detect(two, volume, background=volume).zyx, detect(two, volume, background=other).zyx
    )


def test_settings_that_are_none_are_refused(detector, volume):
    for options, message in (
        ({"threshold": 1.5}, "between 0 and 1"),
        ({"min_distance_um": 0}, "above 0"),
        ({"box": (0, 0, 0, 5, 5, 99)}, "does not lie in the volume"),
        ({"workers": 0}, "at least 1"),
    ):
        with pytest.raises(CanvasError, match=message):
            detect(detector, volume, **options)
    with pytest.raises(CanvasError, match=r"written as \.csv or \.parquet"):
        detect(detector, volume, out="cells.txt")


@pytest.mark.parametrize(
    ("sigma_um", "message"),
    [(0.5, r"less than half a voxel of .* \(4 × 1.8 × 1.8 µm\)"), (1000, "is smaller")],
)
def test_a_laplacian_of_no_blob_is_refused(volume, sigma_um, message):
    with pytest.raises(CanvasError, match=f"sigma is {sigma_um} µm.*{message}"):
        detect_log(volume, sigma_um=sigma_um)
