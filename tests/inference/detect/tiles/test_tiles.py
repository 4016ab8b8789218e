"""Tiles of a detection: which are computed, how large, by whom."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from canvas_fm.errors import CanvasError
from canvas_fm.inference.detect.detect import detect, detector_job, log_job
from canvas_fm.inference.detect.tiles.tiled_detection import plan, run
from canvas_fm.inference.detect.tiles.tiles import as_region, check_tile, cut, fit_tile, whole
from tests.inference.detect.nets import SHAPE, blobs, untiled, write
from tests.support.dask_cluster import cluster_of_threads


@pytest.mark.slow
def test_workers_of_this_machine_give_the_same_rows(detector, volume):
    job = detector_job(detector, volume, tile_zyx=(11, 32, 32), device="cpu")
    alone, together = run(job), run(job, workers=2)
    assert np.array_equal(alone.zyx, together.zyx)
    assert alone.columns["score"] == pytest.approx(together.columns["score"], abs=1e-6)


def test_a_scheduler_gives_the_same_rows(detector, volume):
    job = detector_job(detector, volume, tile_zyx=(11, 32, 32), device="cpu")
    with cluster_of_threads(2) as cluster:
        together = run(job, scheduler=cluster.scheduler_address)
    alone = run(job)
    assert np.array_equal(alone.zyx, together.zyx)
    assert alone.columns["score"] == pytest.approx(together.columns["score"], abs=1e-6)


def test_tiles_that_hold_nothing_are_not_computed(detector, tmp_path):
    voxels = blobs((16, 64, 96))
    voxels[:, :, 32:] = voxels.min()
    volume = write(tmp_path / "half.zarr", voxels)
    job = detector_job(detector, volume, tile_zyx=(16, 16, 16), threshold=0.6)
    expected, _ = untiled(detector, volume, threshold=0.6)
    calls = []
    heat = job.heat

    class Counted:
        halo_zyx, align_zyx, channels = heat.halo_zyx, heat.align_zyx, 1

        def __call__(self, given):
            calls.append(given.any())
            return heat(given)

    job.heat = Counted()
    points = run(job)
    assert np.array_equal(points.zyx, expected)
    # One call asks what nothing gives; where that is cold, no other empty tile is computed.
    assert calls.count(False) == 1
    assert sum(calls) < len(job.tiles)


def test_tiles_far_smaller_than_their_halo_are_refused_with_what_they_would_read():
    extent, region = whole((40, 90, 80)), as_region((3, 5, 7, 38, 85, 61), (40, 90, 80))
    tile, reach = (2, 4, 3), (5, 9, 9)
    boxes = [box.grown(reach, extent) for box in cut(region, tile)]
    times = round(sum(box.voxels for box in boxes) / region.voxels)
    match = (
        f"tiles of 2 4 3 voxels .* are {len(boxes):,}, which read each voxel {times:,} times, .* 5 9 9 more"
    )
    with pytest.raises(CanvasError, match=match):
        check_tile(region, tile, reach, extent)
    check_tile(region, (5, 9, 9), reach, extent)
    check_tile(whole((1, 1, 1)), (1, 1, 1), reach, whole((1, 1, 1)))
    with pytest.raises(CanvasError, match="are 1,000,000,000, which read each voxel 27 times"):
        check_tile(whole((1000, 1000, 1000)), (1, 1, 1), (1, 1, 1), whole((1000, 1000, 1000)))


def test_a_detection_in_such_tiles_does_not_begin(detector, tmp_path):
    volume = write(tmp_path / "some.zarr", blobs((24, 96, 96)))
    with pytest.raises(CanvasError, match="leave --tile out, or give several times that"):
        detector_job(detector, volume, tile_zyx=(1, 1, 1))
    with pytest.raises(CanvasError, match="leave --tile out, or give several times that"):
        log_job(volume, tile_zyx=(1, 1, 1))


def test_a_tile_reads_the_fewest_voxels_twice_in_bounded_memory():
    assert fit_tile((200, 400, 400), (9, 32, 32), (1, 4, 4), 40_000_000) == (200, 400, 400)
    extent, reach = (1000, 4000, 3000), (9, 32, 32)
    tile = fit_tile(extent, reach, (1, 4, 4), 24_000_000)

    def cost(tile):
        return np.prod(
            [1 + 2 * r * (-(-n // t) - 1) / n for n, t, r in zip(extent, tile, reach, strict=True)]
        )

    assert np.prod([t + 2 * r for t, r in zip(tile, reach, strict=True)]) <= 24_000_000
    assert cost(tile) < min(cost((64, 384, 384)), cost((100, 384, 384)), cost((32, 600, 600)))
    assert all(t % a == 0 for t, a in zip(tile, (1, 4, 4), strict=True))
    assert fit_tile(extent, reach, (1, 4, 4), 1) == (32, 32, 32)


def test_a_plan_counts_tiles_bytes_and_minutes(detector, volume):
    cost = plan(detector_job(detector, volume, tile_zyx=(11, 32, 40)))
    assert cost["tiles"] == 2 * 2 * 2
    assert cost["voxels"] == np.prod(SHAPE)
    assert cost["bytes_read"] > 2 * cost["voxels"]
    assert cost["minutes"] >= 0


def test_a_job_can_be_sent_to_another_process(detector, volume):
    job = pickle.loads(pickle.dumps(detector_job(detector, volume)))
    assert np.array_equal(run(job).zyx, detect(detector, volume).zyx)


def test_tiles_fill_the_region_once():
    region = as_region((3, 5, 0, 40, 33, 61), (50, 60, 70))
    seen = np.zeros((50, 60, 70), int)
    for box in cut(region, (16, 16, 16)):
        seen[box.inside(whole((50, 60, 70)))] += 1
    assert (seen[region.inside(whole((50, 60, 70)))] == 1).all()
    assert seen.sum() == region.voxels
