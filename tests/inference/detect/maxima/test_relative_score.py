"""Scores against the strongest detections around: as a loop has them, whatever the tiles."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.volume.window import WindowRule
from canvas_fm.inference.detect.detect import detect, detector_job
from canvas_fm.inference.detect.maxima.blob_amplitude import Amplitude
from canvas_fm.inference.detect.maxima.relative_score import LEAST_HEAT, reference_box, relative_scores
from canvas_fm.inference.detect.tiles.resumable_tiles import ResumableTiles
from canvas_fm.models.detector.convmixer import HeatMapNet
from canvas_fm.models.folder.network_config import AmplitudeConfig, ConvMixerConfig, RelativeConfig
from canvas_fm.models.load_model import load, save_detector

VOXEL_UM = (4.0, 2.0, 2.0)
CONFIG = RelativeConfig(weight=0.7, rank=3, block_um=60.0, least=0.1)


def logit(p):
    return np.log(p / (1 - p))


@pytest.fixture
def scored():
    random = np.random.default_rng(0)
    return random.uniform(0, 60, (120, 3)), random.uniform(0.05, 0.9, 120).astype(np.float32)


def test_relative_scores_are_those_of_a_loop_over_detections(scored):
    zyx, score = scored
    found = relative_scores(zyx, score, VOXEL_UM, CONFIG)
    blocks = np.floor(zyx * VOXEL_UM / 60)
    for row in range(len(zyx)):
        near = np.abs(blocks - blocks[row]).max(axis=1) <= 1
        third = np.sort(score[near].astype(float))[::-1][:3][-1]
        expected = logit(float(score[row])) - 0.7 * logit(max(third, 0.1))
        assert logit(float(found[row])) == pytest.approx(expected, abs=1e-4)


def test_a_dim_brain_has_the_scores_of_a_bright_one_and_an_empty_place_has_not(scored):
    zyx, _ = scored
    whole = CONFIG.model_copy(update={"weight": 1.0, "least": 1e-5})
    bright = np.linspace(0.4, 0.9, len(zyx)).astype(np.float32)
    dim = (1 / (1 + np.exp(2.5 - logit(bright.astype(float))))).astype(np.float32)
    assert np.allclose(
        relative_scores(zyx, dim, VOXEL_UM, whole), relative_scores(zyx, bright, VOXEL_UM, whole), atol=1e-4
    )
    alone = relative_scores(zyx[:1], np.array([0.06], np.float32), VOXEL_UM, CONFIG)
    assert alone[0] < 0.25  # beside nothing it is compared with `least`, not with itself
    assert len(relative_scores(zyx[:0], bright[:0], VOXEL_UM, CONFIG)) == 0


def test_amplitude_counts_against_the_largest_around(scored):
    zyx, score = scored
    amplitude = np.random.default_rng(2).uniform(0.5, 20, len(zyx)).astype(np.float32)
    joint = relative_scores(zyx, score, VOXEL_UM, CONFIG, amplitude, 0.6)
    alone = relative_scores(zyx, score, VOXEL_UM, CONFIG)
    blocks = np.floor(zyx * VOXEL_UM / 60)
    for row in range(len(zyx)):
        near = np.abs(blocks - blocks[row]).max(axis=1) <= 1
        third = np.sort(amplitude[near].astype(float))[::-1][:3][-1]
        expected = logit(float(alone[row])) + 0.6 * np.log(amplitude[row] / third)
        assert logit(float(joint[row])) == pytest.approx(expected, abs=1e-4)
    brighter = relative_scores(zyx, score, VOXEL_UM, CONFIG, 7 * amplitude, 0.6)
    assert np.allclose(joint, brighter, atol=1e-6)  # another stain of the same brain
    dark = relative_scores(zyx, score, VOXEL_UM, CONFIG, np.zeros_like(amplitude), 0.6)
    assert np.array_equal(dark, alone)


def test_amplitude_counts_against_that_of_a_typical_detection_around(scored):
    zyx, score = scored
    amplitude = np.random.default_rng(2).uniform(0.5, 20, len(zyx)).astype(np.float32)
    config = RelativeConfig(weight=0.0, block_um=60.0, least=0.1)
    joint = relative_scores(zyx, score, VOXEL_UM, config, amplitude, 0.6, typical=True)
    blocks = np.floor(zyx * VOXEL_UM / 60)
    for row in range(len(zyx)):
        near = np.flatnonzero(np.abs(blocks - blocks[row]).max(axis=1) <= 1)
        near = near[np.argsort(amplitude[near])]
        weight, below = score[near].astype(float) ** 2, 0.0
        middles = []
        for each in weight:
            middles.append(below + each / 2)
            below += each
        typical = np.interp(below / 2, middles, np.log(amplitude[near].astype(float)))
        expected = logit(float(score[row])) + 0.6 * (np.log(float(amplitude[row])) - typical)
        assert logit(float(joint[row])) == pytest.approx(expected, abs=1e-4)


def test_a_few_bright_specks_move_the_largest_amplitude_and_hardly_the_typical_one(scored):
    zyx, score = scored
    amplitude = np.random.default_rng(2).uniform(1, 2, len(zyx)).astype(np.float32)
    specks = amplitude.copy()
    specks[:5] *= 1000

    def moved(config, **typical):
        before, after = (
            relative_scores(zyx, score, VOXEL_UM, config, values, 1.0, **typical)[5:].astype(float)
            for values in (amplitude, specks)
        )
        return np.abs(logit(before) - logit(after)).max()

    whole = RelativeConfig(weight=0.0, rank=3, block_um=500.0, least=0.1)
    assert moved(whole) > 4
    assert moved(whole, typical=True) < 0.1
    assert relative_scores(zyx[:1], score[:1], VOXEL_UM, whole, specks[:1], 1.0, typical=True) == score[:1]


@pytest.mark.parametrize("relative", [True, "typical"])
def test_amplitudes_of_all_tiles_enter_the_scores_and_the_file_that_resumes(relative, tmp_path):
    torch.manual_seed(0)
    net = HeatMapNet(ConvMixerConfig(dim=8, depth=1, kernel_zyx=(3, 3, 3)), prior=0.15)
    torch.nn.init.normal_(net.head.weight, std=0.6)
    blobs = AmplitudeConfig(sigma_um=4.0, weight=0.8, unit=4.0, relative=relative)
    settings = {"voxel_um": VOXEL_UM, "min_distance_um": 6.0, "window_rule": WindowRule("median", 0, 4)}
    detector = save_detector(
        tmp_path / "d", net, threshold=0.01, relative=CONFIG, amplitude=blobs, **settings
    )
    plain = save_detector(tmp_path / "p", net, threshold=LEAST_HEAT, **settings)
    voxels = np.random.default_rng(1).integers(50, 400, (24, 64, 64)).astype(np.uint16)
    volume = Volume.from_array(voxels, voxel_um=VOXEL_UM, name="noise")
    once = detect(detector, volume, device="cpu", show=False)
    path, tile = tmp_path / "cells.csv", (8, 24, 40)
    job = detector_job(detector, volume, device="cpu", tile_zyx=tile)
    with ResumableTiles(path, job.inputs, job.digest(), len(job.tiles)) as work:  # half of it was done
        for number in range(len(job.tiles) // 2):
            work.keep(number, job.tile(number).arrays(), ())
    tiled = detect(detector, volume, device="cpu", show=False, tile_zyx=tile, out=path)
    assert len(once) > 20
    assert np.array_equal(once.zyx, tiled.zyx)
    assert np.allclose(once.columns["score"], tiled.columns["score"], atol=1e-5)
    heat = detect(plain, volume, device="cpu", show=False, subvoxel=False)
    windowed = volume.window_by(WindowRule("median", 0, 4)).apply(voxels)
    amplitude = Amplitude(blobs, VOXEL_UM).near(windowed, heat.zyx.astype(int))
    expected = relative_scores(
        heat.zyx, heat.columns["score"], VOXEL_UM, CONFIG, amplitude, 0.8, typical=relative == "typical"
    )
    whole = detect(detector, volume, device="cpu", show=False, subvoxel=False)
    kept = expected >= np.float32(0.01)
    assert np.array_equal(heat.zyx[kept], whole.zyx)
    assert np.allclose(expected[kept], whole.columns["score"], atol=1e-5)
    with pytest.raises(ValidationError, match="needs relative: its rank"):
        save_detector(tmp_path / "x", net, threshold=0.01, amplitude=blobs, **settings)
    nothing = CONFIG.model_copy(update={"weight": 0.0})
    with pytest.raises(ValidationError, match="nothing is relative"):
        save_detector(tmp_path / "x", net, threshold=0.01, relative=nothing, **settings)


def test_tiles_give_what_one_pass_gives_and_a_threshold_applies_to_relative_scores(tmp_path):
    torch.manual_seed(0)
    net = HeatMapNet(ConvMixerConfig(dim=8, depth=1, kernel_zyx=(3, 3, 3)), prior=0.15)
    torch.nn.init.normal_(net.head.weight, std=0.6)
    save_detector(
        tmp_path / "d", net, voxel_um=VOXEL_UM, threshold=0.3, min_distance_um=6.0, relative=CONFIG,
        window_rule=WindowRule("median", 0, 4),
    )  # fmt: skip
    detector = load(tmp_path / "d", kind="detector")
    assert detector.config.relative == CONFIG
    voxels = np.random.default_rng(1).integers(50, 400, (24, 64, 64)).astype(np.uint16)
    volume = Volume.from_array(voxels, voxel_um=VOXEL_UM, name="noise")
    once = detect(detector, volume, device="cpu", show=False)
    tiled = detect(detector, volume, device="cpu", show=False, tile_zyx=(8, 24, 40))
    assert len(once) > 20
    assert np.array_equal(once.zyx, tiled.zyx)
    assert np.allclose(once.columns["score"], tiled.columns["score"], atol=1e-5)
    every = detect(detector, volume, device="cpu", show=False, threshold=0.001)
    middle = float(np.median(every.columns["score"]))
    kept = every.columns["score"] >= np.float32(middle)
    high = detect(detector, volume, device="cpu", show=False, threshold=middle)
    assert 0 < kept.sum() < len(every)
    assert np.array_equal(every.zyx[kept], high.zyx)
    plain = save_detector(
        tmp_path / "p", net, voxel_um=VOXEL_UM, threshold=LEAST_HEAT, min_distance_um=6.0,
        window_rule=WindowRule("median", 0, 4),
    )  # fmt: skip
    heat = detect(plain, volume, device="cpu", show=False)
    expected = relative_scores(heat.zyx, heat.columns["score"], VOXEL_UM, CONFIG)
    assert np.allclose(expected, every.columns["score"], atol=1e-5)


def test_a_small_box_is_warned_of_where_the_volume_goes_on(tmp_path, caplog):
    torch.manual_seed(0)
    net = HeatMapNet(ConvMixerConfig(dim=8, depth=1, kernel_zyx=(3, 3, 3)), prior=0.15)
    detector = save_detector(
        tmp_path / "d", net, voxel_um=VOXEL_UM, threshold=0.3, min_distance_um=6.0, relative=CONFIG,
        window_rule=WindowRule("median", 0, 4),
    )  # fmt: skip
    voxels = np.random.default_rng(1).integers(50, 400, (12, 64, 80)).astype(np.uint16)
    volume = Volume.from_array(voxels, voxel_um=VOXEL_UM, name="noise")
    for box, warned in (
        (None, False), ([0, 0, 0, 12, 60, 80], False), ([0, 0, 0, 12, 64, 59], True),
        ([0, 0, 20, 12, 60, 80], False), ([0, 5, 0, 12, 64, 80], True),
    ):  # fmt: skip
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            detect(detector, volume, box=box, device="cpu", show=False)
        assert ("relative to the strongest" in caplog.text) is warned
    assert "the box is 118 um along y" in caplog.text


def test_the_box_to_detect_in_holds_the_blocks_around_and_ends_at_the_volume():
    """By hand: from 317 µm along z the block before begins at 280; both ends give way to the margin."""
    config, um = RelativeConfig(weight=0.7, rank=3, block_um=20.0, least=0.1), (4.0, 2.0, 2.0)
    box = np.array([80, 150, 170, 95, 180, 201])
    wide = reference_box(box, (200, 400, 400), um, 3.0, config)
    assert wide.tolist() == [69, 128, 148, 106, 202, 222]
    corner = reference_box(np.array([0, 0, 0, 5, 5, 5]), (10, 400, 400), um, 3.0, config)
    assert corner.tolist() == [0, 0, 0, 10, 22, 22]


@pytest.fixture
def of_two_kinds():
    """Scores with and without classes of 40 cells beside 60 processes, so many times dimmer."""
    random = np.random.default_rng(3)
    zyx, score = random.uniform(0, 60, (100, 3)), np.full(100, 0.5, np.float32)
    config = RelativeConfig(weight=0.0, block_um=500.0, least=0.1)

    def scored(times_dimmer, n_bright=40, spread=0.1):
        amplitude = np.exp(random.normal(0, 0.1, 100))
        amplitude[:n_bright] **= spread / 0.1
        amplitude[n_bright:] /= times_dimmer
        values = amplitude.astype(np.float32)
        plain, split = (
            relative_scores(zyx, score, VOXEL_UM, config, values, 1.0, typical=True, classes_apart=apart)
            for apart in (None, (3.5, 7.0))
        )
        return logit(plain.astype(float)), logit(split.astype(float))

    return scored


def test_where_detections_are_of_two_kinds_brightness_counts_against_the_bright_one(of_two_kinds):
    plain, split = of_two_kinds(10.0)
    assert np.median(plain[:40]) > 2  # the dim kind is typical
    assert np.median(split[:40]) == pytest.approx(0, abs=0.05)
    assert np.median(split[40:]) == pytest.approx(-np.log(10), abs=0.1)
    halfway = of_two_kinds((3.5 * 7) ** 0.5)
    assert np.median(halfway[0] - halfway[1]) == pytest.approx(np.log(3.5 * 7) / 4, abs=0.15)


def test_cells_of_one_kind_keep_their_scores_and_so_do_they_beside_bright_specks(of_two_kinds):
    assert np.array_equal(*of_two_kinds(3.0))
    assert np.array_equal(*of_two_kinds(100.0, n_bright=5))  # too few for a kind of cells


def test_bright_ones_that_are_of_many_kinds_move_nothing(of_two_kinds):
    assert np.array_equal(*of_two_kinds(30.0, spread=1.0))


def test_a_dim_kind_that_scores_low_is_told(of_two_kinds, caplog):
    with caplog.at_level(logging.INFO):
        of_two_kinds(3.0)
        assert not caplog.records
        of_two_kinds(10.0)
    (message,) = [record.getMessage() for record in caplog.records]
    assert re.search("some (9|10|11) times brighter", message)
    assert "take a lower threshold" in message


def test_classes_of_brightness_need_a_typical_one_and_rising_ratios():
    blobs = {"sigma_um": 4.0, "weight": 0.8}
    with pytest.raises(ValidationError, match=r"needs amplitude\.relative: typical"):
        AmplitudeConfig(**blobs, relative=True, classes_apart=(3.5, 7.0))
    for ratios in ((7.0, 3.5), (0.5, 7.0)):
        with pytest.raises(ValidationError, match="two ratios of brightness"):
            AmplitudeConfig(**blobs, relative="typical", classes_apart=ratios)
