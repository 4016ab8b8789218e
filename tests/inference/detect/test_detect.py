"""Detection by tiles beside one pass over the whole, and all that stops and goes on again."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, gaussian_laplace, maximum_filter

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.volume.window import WindowRule
from canvas_fm.errors import CanvasError, ModelMismatch
from canvas_fm.files.resumable import ResumableFolder
from canvas_fm.inference.detect.detect import detect, detector_job, log_job
from canvas_fm.inference.detect.detection_job import just_below, plan, run
from canvas_fm.inference.detect.detector_features import detector_features
from canvas_fm.inference.detect.laplacian import log_reach, log_response
from canvas_fm.inference.detect.local_maxima import find_maxima
from canvas_fm.inference.detect.tiles import Resampled, as_region, cut, fit_tile, whole
from canvas_fm.models.checkpoint import load, save_detector
from canvas_fm.models.convmixer import ConvMixerConfig, HeatMapNet

VOXEL_UM = (4.0, 1.8, 1.8)
SHAPE = (22, 61, 70)  # no axis is a whole number of patches or tiles


def make_detector(folder, *, channels=1, smooth_um=2.5, **options):
    """A net of random weights, its statistics those of such volumes, whose heat has many maxima."""
    torch.manual_seed(1)
    net = HeatMapNet(ConvMixerConfig(dim=6, depth=2, kernel_zyx=(3, 3, 5), channels=channels))
    seen = np.stack([blobs((16, 64, 64), seed=channel) for channel in range(channels)])[None]
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                module.momentum = 1.0
        net.train()(torch.from_numpy(seen / np.float32(seen.max())))
        net.head.weight.copy_(torch.randn(1, 6) + 0.3 * torch.randn(16, 6))
        net.head.bias.fill_(-1.0)
    settings = {"voxel_um": VOXEL_UM, "threshold": 0.4, "min_distance_um": 7.0, "smooth_um": smooth_um}
    return save_detector(folder, net.eval(), **settings | options)


def blobs(shape=SHAPE, seed=0):
    rng = np.random.default_rng(seed)
    points = (rng.random((40, 3)) * shape).astype(int)
    voxels = np.zeros(shape)
    voxels[tuple(points.T)] = rng.uniform(2e5, 6e5, 40)
    return (gaussian_filter(voxels, (1, 2, 2)) + rng.uniform(80, 120, shape)).astype(np.uint16)


def write(path, voxels, **options):
    settings = {"voxel_um": VOXEL_UM, "dtype": voxels.dtype, "chunk_zyx": (8, 16, 16), **options}
    with Volume.create(path, voxels.shape, **settings) as writer:
        writer.write((0, 0, 0), voxels)
    return Volume.open(path)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return make_detector(tmp_path_factory.mktemp("models") / "run" / "detector")


@pytest.fixture(scope="module")
def volume(tmp_path_factory, _own_cache):
    return write(tmp_path_factory.mktemp("volumes") / "brain.zarr", blobs())


def whole_heat(detector, volume):
    """The definition in one piece: the net over the whole volume, then smoothing."""
    config = detector.config
    voxels = volume.window_by(config.window_rule).apply(volume.read((0, 0, 0), volume.shape_zyx))
    padded = np.pad(voxels, [(0, 0), (0, -voxels.shape[1] % 4), (0, -voxels.shape[2] % 4)], mode="edge")
    with torch.no_grad():
        heat = torch.sigmoid(detector.net(torch.from_numpy(padded)[None, None]))[0].numpy()
    heat = heat[:, : voxels.shape[1], : voxels.shape[2]]
    sigma = [config.smooth_um / um for um in volume.voxel_um]
    return gaussian_filter(heat, sigma, mode="nearest", truncate=3)


def untiled(detector, volume, threshold=None):
    """FindMaxima of the whole volume's heat."""
    config, heat = detector.config, whole_heat(detector, volume)
    radius = [config.min_distance_um / um for um in volume.voxel_um]
    return find_maxima(heat, radius, just_below(threshold or config.threshold))


@pytest.mark.parametrize("tile", [(5, 16, 24), (22, 8, 70), (64, 64, 64)])
def test_tiles_give_what_one_pass_over_the_whole_gives(detector, volume, tile):
    points, scores = untiled(detector, volume)
    found = detect(detector, volume, tile_zyx=tile)
    assert len(points) > 20
    assert np.array_equal(found.zyx, points)
    assert found.columns["score"] == pytest.approx(scores, abs=1e-6)


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


@pytest.mark.slow
def test_workers_of_this_machine_give_the_same_rows(detector, volume):
    job = detector_job(detector, volume, tile_zyx=(11, 32, 32), device="cpu")
    alone, together = run(job), run(job, workers=2)
    assert np.array_equal(alone.zyx, together.zyx)
    assert alone.columns["score"] == pytest.approx(together.columns["score"], abs=1e-6)


def test_a_scheduler_gives_the_same_rows(detector, volume):
    distributed = pytest.importorskip("distributed")
    job = detector_job(detector, volume, tile_zyx=(11, 32, 32), device="cpu")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        together = run(job, scheduler=cluster.scheduler_address)
    alone = run(job)
    assert np.array_equal(alone.zyx, together.zyx)
    assert alone.columns["score"] == pytest.approx(together.columns["score"], abs=1e-6)


def test_positions_between_voxels_stay_within_half_a_voxel(detector, volume):
    whole_numbers, between = (
        detect(detector, volume),
        detect(detector, volume, subvoxel=True, tile_zyx=(5, 16, 24)),
    )
    shift = between.zyx - whole_numbers.zyx
    assert np.abs(shift).max() <= 0.5
    assert np.abs(shift).max() > 0.05


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


def test_a_killed_detection_goes_on_and_gives_the_same(detector, volume, tmp_path, monkeypatch):
    out = tmp_path / "cells.csv"
    job = detector_job(detector, volume, tile_zyx=(8, 32, 32))
    done = []

    def tile(number):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(number)
        return type(job).tile(job, number)

    monkeypatch.setattr(job, "tile", tile)
    with pytest.raises(KeyboardInterrupt):
        run(job, out)
    assert not out.exists()
    damaged = tmp_path / "cells.csv.unfinished" / "000002.part"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 16
    damaged.write_bytes(content)
    again = detector_job(detector, volume, tile_zyx=(8, 32, 32))
    asked = []
    monkeypatch.setattr(again, "tile", lambda number: asked.append(number) or type(again).tile(again, number))
    run(again, out)
    assert asked[0] in (2, 5)
    assert len(asked) <= len(job.tiles) - 4
    assert not damaged.parent.exists()
    read = Points.read(out)
    assert np.array_equal(read.zyx, untiled(detector, volume)[0])
    assert read.meta["detector_sha256"] == detector.sha256
    assert read.meta["volume"] == "brain"


def test_other_inputs_are_refused_and_the_same_are_taken_as_done(detector, volume, tmp_path):
    out = tmp_path / "cells.parquet"
    first = detect(detector, volume, out=out)
    before = out.stat().st_mtime_ns
    assert np.array_equal(detect(detector, volume, out=out).zyx, first.zyx)
    assert out.stat().st_mtime_ns == before
    with pytest.raises(CanvasError, match="made from other inputs"):
        detect(detector, volume, out=out, threshold=0.3)
    unfinished = tmp_path / "other.csv.unfinished"
    with ResumableFolder(tmp_path / "other.csv", {"threshold": 0.3}):
        assert unfinished.is_dir()
    with pytest.raises(CanvasError, match=r"threshold \(was 0.3, is 0.4\)"):
        detect(detector, volume, out=tmp_path / "other.csv")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_finished_file_whose_rows_were_changed_is_not_taken_as_done(detector, volume, tmp_path, suffix):
    out = tmp_path / f"cells.{suffix}"
    points = detect(detector, volume, out=out, threshold=0.3)
    assert np.array_equal(detect(detector, volume, out=out, threshold=0.3).zyx, points.zyx)
    moved = points.zyx.copy()
    moved[-1, 2] += 1
    for changed in (points.zyx[:-1], moved):
        columns = {"score": points.columns["score"][: len(changed)]}
        Points(changed, columns, points.meta).write(out)
        with pytest.raises(CanvasError, match="its rows are not those that were written"):
            detect(detector, volume, out=out, threshold=0.3)
    unhashed = {key: value for key, value in points.meta.items() if key != "rows_sha256"}
    Points(points.zyx, points.columns, unhashed).write(out)  # as earlier versions wrote it
    assert len(detect(detector, volume, out=out, threshold=0.3)) == len(points)


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


def test_another_voxel_size_is_refused_unless_asked_for(detector, tmp_path):
    other = write(tmp_path / "other.zarr", blobs(), voxel_um=(8.0, 3.6, 3.6))
    with pytest.raises(ModelMismatch, match=r"--resample .*--ignore-voxel-size"):
        detect(detector, other)
    assert len(detect(detector, other, ignore_voxel_size=True))
    resampled = detect(detector, other, resample=True, tile_zyx=(16, 32, 32))
    assert np.array_equal(resampled.zyx, detect(detector, other, resample=True).zyx)
    assert resampled.inside(other.shape_zyx).all()


def test_a_region_is_in_the_volumes_own_voxels_when_resampled_too(detector, tmp_path):
    other = write(tmp_path / "other.zarr", blobs(), voxel_um=(8.0, 3.6, 3.6))
    everything = detect(detector, other, resample=True).zyx
    region = (2, 10, 20, 15, 50, 66)
    inside = np.all(
        (everything >= np.array(region[:3]) - 0.5) & (everything < np.array(region[3:]) - 0.5), axis=1
    )
    assert 5 < inside.sum() < len(everything)
    found = detect(detector, other, resample=True, box=region, tile_zyx=(16, 64, 64))
    assert np.array_equal(found.zyx, everything[inside])
    with pytest.raises(CanvasError, match="does not lie in the volume"):
        detect(detector, other, resample=True, box=(0, 0, 0, 30, 9, 9))
    coarse = write(tmp_path / "fine.zarr", blobs(), voxel_um=(1.0, 0.5, 0.5))
    with pytest.raises(CanvasError, match="thinner than a voxel of the model"):
        detect(detector, coarse, resample=True, box=(1, 0, 0, 2, 61, 70))


@pytest.mark.parametrize("factor", [0.5, 0.7, 1.0, 1.6])
def test_a_resampled_volume_keeps_places_whatever_the_box(tmp_path, factor):
    z, y, x = np.indices((20, 30, 24)).astype(np.float32)
    volume = write(tmp_path / "ramp.zarr", 7 * z + 3 * y - 2 * x + 100)
    fine = Resampled(volume, tuple(um * factor for um in VOXEL_UM))
    everything = fine.read((0, 0, 0), fine.shape_zyx)
    inner = fine.read((4, 5, 6), (5, 9, 7))
    np.testing.assert_allclose(inner, everything[4:9, 5:14, 6:13], rtol=1e-6)
    place = np.stack(np.indices((5, 9, 7)).reshape(3, -1), axis=1) + np.array([4, 5, 6])
    expected = fine.to_volume(place) @ [7, 3, -2] + 100
    np.testing.assert_allclose(inner.reshape(-1), expected, rtol=1e-3)


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


# --- the baseline


def test_the_response_is_scipys_with_lengths_in_micrometres():
    voxels = blobs().astype(np.float32)
    ours = log_response(voxels, 3.6, (1.8, 1.8, 1.8))
    np.testing.assert_allclose(ours, -4 * gaussian_laplace(voxels, 2.0), rtol=1e-3, atol=1)


def test_a_blob_gives_the_same_response_in_finer_planes():
    """A Gaussian of σ 6 µm in planes of 1.5 and of 3 µm."""
    peaks = []
    for um in (1.5, 3.0):
        size = [int(60 / um) | 1, 41, 41]
        axes = [(np.arange(n) - n // 2) * step for n, step in zip(size, (um, 1.8, 1.8), strict=True)]
        squared = sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij"))
        peaks.append(log_response(np.exp(-squared / 72).astype(np.float32), 6.0, (um, 1.8, 1.8)).max())
    assert peaks[0] == pytest.approx(peaks[1], rel=0.02)


def test_the_baseline_by_tiles_is_the_baseline_whole(volume):
    options = {"sigma_um": 4.0, "threshold": 0.05, "min_distance_um": 9.0}
    whole_volume = run(log_job(volume, **options))
    tiled = run(log_job(volume, tile_zyx=(12, 40, 40), **options))
    assert len(whole_volume) > 10
    assert np.array_equal(whole_volume.zyx, tiled.zyx)
    assert np.array_equal(whole_volume.columns["score"], tiled.columns["score"])
    gaps = (whole_volume.zyx[:, None] - whole_volume.zyx[None]) * VOXEL_UM
    assert np.sqrt((gaps**2).sum(-1))[~np.eye(len(gaps), dtype=bool)].min() > 9.0


def test_the_baseline_finds_the_blobs(tmp_path):
    shape, truth = (30, 60, 60), np.array([[8, 15, 15], [8, 40, 44], [20, 20, 40], [22, 45, 12]])
    voxels = np.zeros(shape)
    voxels[tuple(truth.T)] = 1e6
    volume = write(tmp_path / "b.zarr", (gaussian_filter(voxels, (1, 2.5, 2.5)) + 100).astype(np.uint16))
    found = run(log_job(volume, sigma_um=4.0, threshold=0.2, window_rule=WindowRule("percentiles", 0, 100)))
    assert np.array_equal(found.zyx, truth[np.lexsort(truth.T[::-1])])


def test_the_reach_covers_what_the_response_depends_on():
    voxels = np.zeros((41, 41, 41), np.float32)
    voxels[20, 20, 20] = 1
    reached = np.argwhere(log_response(voxels, 4.0, VOXEL_UM))
    assert np.abs(reached - 20).max(axis=0).tolist() == list(log_reach(4.0, VOXEL_UM))


# --- features


def test_features_by_tiles_are_those_of_the_whole(detector, volume):
    rng = np.random.default_rng(0)
    points = rng.uniform(0, np.array(SHAPE) - 1, (60, 3))
    options = {"crop_zyx": (8, 16, 16), "device": "cpu"}
    features = detector_features(detector, volume, points, **options)
    tiled = detector_features(detector, volume, points, tile_zyx=(6, 16, 20), **options)
    assert features.shape == (60, 6 * 8)
    np.testing.assert_allclose(tiled, features, atol=1e-5)
    backwards = detector_features(detector, volume, points[::-1].copy(), **options)
    np.testing.assert_allclose(backwards, features[::-1], atol=1e-6)


@pytest.mark.parametrize("tile", [(5, 8, 12), (64, 64, 64)])
def test_the_heat_near_points_is_that_of_the_whole_volume(volume, tmp_path, tile):
    """Reach and smoothing look farther than the crop does."""
    detector = make_detector(tmp_path / "detector", smooth_um=5.0, min_distance_um=15.0)
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.uniform(0, np.array(SHAPE) - 1, (60, 3)), [[0, 0, 0], np.array(SHAPE) - 1]])
    features = detector_features(
        detector, volume, points, crop_zyx=(1, 4, 4), heat=True, tile_zyx=tile, device="cpu"
    )
    # Half of 15 µm is 2 voxels of 4 µm and 4 of 1.8 µm to either side.
    hottest = maximum_filter(whole_heat(detector, volume), (5, 9, 9), mode="nearest")
    near = hottest[tuple(np.floor(points + 0.5).astype(int).T)]
    np.testing.assert_allclose(features[:, -1], np.log((near + 1e-4) / (1 - near + 1e-4)), atol=1e-4)
    assert np.ptp(features[:, -1]) > 0.1


def test_features_of_a_loaded_detector_are_the_same(detector, volume):
    points = np.array([[10.0, 30.0, 30.0]])
    again = load(detector.path)
    assert np.array_equal(
        detector_features(detector, volume, points), detector_features(again, volume, points)
    )
