"""Adapting a detector by a few labels: what is chosen, what it is chosen by, and what it must not look at."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from canvas_fm import Points, Volume, adapt_detector, detect, load
from canvas_fm.data.points.boxes import inside_boxes
from canvas_fm.data.volume.window import WindowRule
from canvas_fm.errors import CanvasError
from canvas_fm.inference.detect.maxima.blob_amplitude import Amplitude
from canvas_fm.inference.detect.out_of_distribution import LOOKS
from canvas_fm.models.detector.convmixer import HeatMapNet
from canvas_fm.models.folder.network_config import ConvMixerConfig, RelativeConfig
from canvas_fm.models.load_model import Detector, save_detector
from canvas_fm.pipeline.score_domains import trained_on
from canvas_fm.training.detector.adapt.amplitude import amplitude_detector
from canvas_fm.training.detector.adapt.candidates import candidates_in_boxes
from canvas_fm.training.detector.adapt.fine_tune import fine_tune, fine_tune_recipe
from canvas_fm.training.detector.adapt.strategies import StrategyScore, choose_strategy
from canvas_fm.training.detector.targets import Labelled
from canvas_fm.training.detector.threshold import LOWEST_THRESHOLD
from tests.training.detector.adapt.conftest import ROI, SHAPE, VOXEL_UM, labelled


def brightness_detector(folder, threshold: float):
    """A detector whose heat rises with a voxel's brightness alone."""
    net = HeatMapNet(ConvMixerConfig(patch_zyx=(1, 1, 1), dim=8, depth=1, kernel_zyx=(3, 3, 3)))
    torch.manual_seed(0)
    embed, block = net.body[0][0], net.body[1]
    depthwise, pointwise = block[0].inner[0], block[1][0]
    with torch.no_grad():
        for part in (embed, depthwise, pointwise, net.head):
            part.weight.zero_()
            part.bias.zero_()
        embed.weight[0] = 4.0
        pointwise.weight.copy_(torch.eye(8))
        net.head.weight[0, 0], net.head.bias[0] = 2.0, -4.0
    return save_detector(
        folder, net.eval(), voxel_um=VOXEL_UM, threshold=threshold, min_distance_um=8.0,
        window_rule=WindowRule("median", 0, 10), provenance={"trained_on": [{"name": "before"}]},
    )  # fmt: skip


def adapt(brain, detector, out, cells=None, **options):
    options = {"layers": "none", "device": "cpu", "show": False} | options
    return adapt_detector(
        detector, brain[0], Points(brain[1] if cells is None else cells), ROI, out=out, **options
    )


def test_a_threshold_that_takes_dim_spots_for_cells_is_raised(brain, tmp_path):
    before = brightness_detector(tmp_path / "d", 0.05)
    done = adapt(brain, before, tmp_path / "new")
    unadapted, threshold, amplitude = done.scores
    assert (done.chosen, unadapted.way, threshold.way) == ("threshold", "unadapted", "threshold")
    assert (amplitude.way, done.detector.config.amplitude) == ("amplitude", None)
    assert unadapted.f1 < 0.85
    assert threshold.f1 > 0.95
    assert threshold.gain == pytest.approx(threshold.f1 - unadapted.f1)
    assert done.sentence.startswith("adapted by threshold")
    found = load(tmp_path / "new", kind="detector")
    assert found.config.threshold == threshold.threshold > 0.05
    assert all(
        torch.equal(a, b)
        for a, b in zip(found.net.state_dict().values(), before.net.state_dict().values(), strict=True)
    )


def test_a_detector_that_is_right_already_is_left_as_it_was_and_that_is_said(brain, tmp_path, caplog):
    right = adapt(brain, brightness_detector(tmp_path / "d", 0.05), tmp_path / "new").detector
    with caplog.at_level("WARNING"):
        done = adapt(brain, right, tmp_path / "again")
    assert done.chosen == "unadapted"
    assert done.detector.config.threshold == right.config.threshold
    assert "left as it was" in done.sentence
    assert done.sentence in caplog.text


@pytest.mark.parametrize(("cells", "better", "way"), [
    (10, 1.0, "threshold"), (10, 0.98, "unadapted"), (14, 0.99, "threshold"), (15, 0.9, "threshold"),
    (20, 0.89, "unadapted"), (50, 0.95, "threshold"), (50, 0.89, "unadapted"),
    (20, 0.96, "threshold"),
])  # fmt: skip
def test_the_fewer_cells_are_labelled_the_surer_a_gain_has_to_be(cells, better, way):
    unadapted = StrategyScore("unadapted", 0.5, (0.4, 0.6), 0.0, (0.0, 0.0), 0.0, 0.3)
    threshold = StrategyScore("threshold", 0.7, (0.6, 0.8), 0.2, (0.0, 0.3), better, 0.4)
    best, chosen = choose_strategy([unadapted, threshold], cells)
    assert (best, chosen.way) == (threshold, way)


def test_a_surely_better_way_is_taken_before_one_that_may_be_better_by_chance():
    unadapted = StrategyScore("unadapted", 0.5, (0.4, 0.6), 0.0, (0.0, 0.0), 0.0, 0.3)
    threshold = StrategyScore("threshold", 0.6, (0.5, 0.7), 0.1, (0.0, 0.2), 0.95, 0.4)
    chance = StrategyScore("all layers", 0.65, (0.3, 0.8), 0.15, (-0.2, 0.3), 0.8, 0.4)
    assert choose_strategy([unadapted, threshold, chance], 20) == (threshold, threshold)
    assert choose_strategy([unadapted, chance], 20) == (chance, unadapted)


def test_what_changes_the_order_of_detections_has_to_be_surer_than_a_threshold():
    unadapted = StrategyScore("unadapted", 0.5, (0.4, 0.6), 0.0, (0.0, 0.0), 0.0, 0.3)
    threshold = StrategyScore("threshold", 0.6, (0.5, 0.7), 0.1, (0.0, 0.2), 0.96, 0.4)
    for better, chosen in ((0.96, threshold), (0.98, None)):
        amplitude = StrategyScore("amplitude", 0.7, (0.5, 0.8), 0.2, (0.0, 0.3), better, 0.4)
        chosen = chosen or amplitude
        assert choose_strategy([unadapted, threshold, amplitude], 20) == (chosen, chosen)


@pytest.mark.parametrize(("cells", "gain", "better", "taken"), [
    (15, 0.01, 0.5, True), (15, 0.01, 0.49, False), (50, 0.0, 0.6, False), (14, 0.1, 0.98, False),
])  # fmt: skip
def test_self_training_is_taken_where_it_is_more_likely_better_than_not(cells, gain, better, taken):
    unadapted = StrategyScore("unadapted", 0.5, (0.4, 0.6), 0.0, (0.0, 0.0), 0.0, 0.3)
    threshold = StrategyScore("threshold", 0.7, (0.5, 0.8), 0.2, (0.0, 0.3), 1.0, 0.4)
    taught = StrategyScore("self-training", 0.5 + gain, (0.4, 0.6), gain, (-0.1, 0.2), better, 0.4)
    chosen = taught if taken else threshold
    scores = [unadapted, threshold, taught]
    assert choose_strategy(scores, cells, phantoms_alone=True) == (chosen, chosen)
    assert choose_strategy(scores, cells) == (threshold, threshold)  # a detector that has seen real brains


def test_specks_as_bright_as_cells_are_told_from_them_by_their_amplitude(tmp_path):
    """A voxel of a speck is as bright as a cell's middle, which is all that this net sees."""
    grid = np.stack(np.meshgrid([6, 17], range(8, 64, 16), range(8, 64, 16), indexing="ij"), -1)
    cells = grid.reshape(-1, 3)
    image = np.zeros(SHAPE)
    image[tuple(cells.T)] = 1.0
    image = gaussian_filter(image, (0.8, 1.5, 1.5))
    specks = cells + np.array([0, 7, 7])
    specks = specks[(specks < 62).all(axis=1)]
    image[tuple(specks.T)] = image.max()
    voxels = 100 + 600 * image / image.max() + np.random.default_rng(0).normal(0, 3, SHAPE)
    volume = Volume.from_array(voxels.astype(np.uint16), voxel_um=VOXEL_UM, name="specks")
    before = brightness_detector(tmp_path / "d", 0.5)
    done = adapt((volume, cells.astype(float)), before, tmp_path / "new")
    _, threshold, amplitude = done.scores
    assert done.chosen == "amplitude"
    assert amplitude.f1 > 0.95 > 0.9 > threshold.f1
    saved = load(tmp_path / "new", kind="detector").config
    assert saved.amplitude == done.detector.config.amplitude
    assert (saved.amplitude.sigma_um, saved.threshold) == (5.0, amplitude.threshold)
    assert saved.provenance[LOOKS]["cells_mm3"] == pytest.approx(
        [cells_mm3(done.detector, volume)] * 2, abs=1e-3
    )
    again = adapt((volume, cells.astype(float)), done.detector, tmp_path / "again")
    assert [score.way for score in again.scores] == ["unadapted", "threshold"]  # it has its amplitude


def cells_mm3(detector, volume):
    """Detections per mm³ of the labelled box, whose last x is 39."""
    in_box = detect(detector, volume, device="cpu", show=False).zyx[:, 2] < 39.5
    return in_box.sum() / (24 * 64 * 40 * np.prod(VOXEL_UM) * 1e-9)


def test_a_cell_of_median_amplitude_keeps_its_score(brain, tmp_path):
    before = brightness_detector(tmp_path / "d", 0.3)
    config = amplitude_detector(before, labelled(brain)).config.amplitude
    joined = Amplitude(config, VOXEL_UM)
    rule = before.config.window_rule
    voxels = brain[0].window_by(rule).apply(brain[0].read((0, 0, 0), SHAPE))
    inside = brain[1][brain[1][:, 2] < 39.5].astype(int)
    at_cells = joined.near(voxels, inside)
    assert np.median(at_cells) == pytest.approx(1, rel=0.02)
    heat = np.array([0.2, 0.7], np.float32)
    assert joined.join(heat, np.ones(2, np.float32)) == pytest.approx(heat, abs=1e-6)
    assert (joined.join(heat, np.full(2, 3, np.float32)) > heat + 0.05).all()


@pytest.mark.parametrize("boxes", [
    [[2, 16, 16, 12, 48, 48]],
    [[0, 0, 0, 12, 16, 36], [12, 48, 30, 24, 64, 64]],
])  # fmt: skip
def test_candidates_of_boxes_have_the_scores_that_detecting_the_whole_volume_gives_them(
    brain, tmp_path, boxes
):
    """Relative to the strongest around, which lie outside the boxes: the threshold is one of the volume."""
    plain = brightness_detector(tmp_path / "d", 0.3)
    relative = RelativeConfig(weight=0.7, rank=3, block_um=24.0, least=0.06)
    detector = Detector(plain.config.model_copy(update={"relative": relative}), plain.net)
    labels = labelled(brain, boxes)
    found = candidates_in_boxes(detector, labels, 8.0, ignore=False)
    whole = detect(detector, brain[0], threshold=LOWEST_THRESHOLD, device="cpu", show=False)
    alone = detect(detector, brain[0], threshold=LOWEST_THRESHOLD, box=boxes[0], device="cpu", show=False)

    def in_boxes(points):
        inside = inside_boxes(points.zyx, np.array(boxes))
        order = np.lexsort(points.zyx[inside].T)
        return points.zyx[inside][order], points.columns["score"][inside][order]

    (zyx, score), (expected_zyx, expected) = in_boxes(found), in_boxes(whole)
    assert len(expected) >= 4
    assert zyx == pytest.approx(expected_zyx, abs=1e-4)
    assert score == pytest.approx(expected, abs=1e-6)
    assert not np.isin(in_boxes(alone)[1].round(5), expected.round(5)).all()  # the box alone has others


def test_provenance_tells_from_what_by_which_labels_and_why(brain, tmp_path):
    before = brightness_detector(tmp_path / "d", 0.05)
    done = adapt(brain, before, tmp_path / "new", seed=3)
    known = json.loads((tmp_path / "new" / "config.json").read_text())["provenance"]
    assert known["adapted_from"] == before.sha256
    assert known["adaptation"]["chosen"] == "threshold"
    assert known["adaptation"]["cells"] == done.cells == int((brain[1][:, 2] < 39.5).sum())
    assert known["adaptation"]["options"]["seed"] == 3
    assert [row["way"] for row in known["adaptation"]["cross_validated"]] == [
        "unadapted", "threshold", "amplitude"
    ]  # fmt: skip
    assert known["adaptation"]["cross_validated"][1]["f1"] == round(done.scores[1].f1, 4)
    assert known["trained_on"][0]["labels_sha256"]
    assert known[LOOKS]["cells_mm3"] == pytest.approx([cells_mm3(done.detector, brain[0])] * 2, abs=1e-3)
    assert trained_on(done.detector) == {"before", "new"}


def test_cells_outside_the_boxes_are_neither_cells_nor_background(brain, tmp_path):
    before = brightness_detector(tmp_path / "d", 0.05)
    inside = brain[1][brain[1][:, 2] < 42]
    options = {"layers": "last", "steps": 1, "folds": 2}
    every = adapt(brain, before, tmp_path / "a", **options)
    few = adapt(brain, before, tmp_path / "b", cells=inside, **options)
    assert len(inside) < len(brain[1])
    assert few.scores == every.scores


def test_the_same_seed_gives_the_same_detector(brain, tmp_path):
    before = brightness_detector(tmp_path / "d", 0.05)
    first, second = (adapt(brain, before, tmp_path / n, layers="last", steps=1, folds=2) for n in "ab")
    assert first.detector.sha256 == second.detector.sha256
    assert [score.way for score in first.scores] == [
        "unadapted", "threshold", "amplitude", "last layers"
    ]  # fmt: skip


def test_a_part_that_is_held_out_does_not_reach_the_net_that_it_scores(brain):
    """Cells of the held-out part are moved: what was trained without that part stays the same, bit by bit."""
    detector = load_like(brain)
    part = labelled(brain, [[0, 0, 0, 24, 64, 20]])
    moved = brain[1] + np.array([0, 3, 0]) * (brain[1][:, 2:] > 30)
    other = Labelled(part.source, moved, part.boxes)
    recipe = fine_tune_recipe(detector, part, 3, 0)
    nets = [fine_tune(detector, one, recipe) for one in (part, other)]
    states = [net.state_dict() for net in nets]
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))
    assert any(not torch.equal(a, b) for a, b in
               zip(states[0].values(), detector.net.state_dict().values(), strict=True))  # fmt: skip


def load_like(brain):
    from canvas_fm.models.load_model import DetectorConfig

    torch.manual_seed(1)
    net = HeatMapNet(ConvMixerConfig(patch_zyx=(1, 2, 2), dim=8, depth=2, kernel_zyx=(3, 3, 3)))
    config = DetectorConfig(
        architecture=net.config, voxel_um=VOXEL_UM, threshold=0.3, min_distance_um=8.0, weights={}, sha256="",
        window_rule=WindowRule("median", 0, 10),
    )  # fmt: skip
    return Detector(config, net.eval().requires_grad_(False))


@pytest.mark.parametrize("last", [True, False])
def test_only_the_last_layers_move_where_only_they_may_and_norms_follow_where_all_may(brain, last):
    detector = load_like(brain)
    before = {name: value.clone() for name, value in detector.net.state_dict().items()}
    recipe = fine_tune_recipe(detector, labelled(brain), 3, 0)
    net = fine_tune(detector, labelled(brain), recipe, last=last)
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert any("running" in name for name in changed) is not last
    assert any(name.startswith("body.0") for name in changed) is not last
    assert all(name.startswith(("body.2", "head")) for name in changed) is last
    assert not net.training
    assert all(torch.equal(v, before[k]) for k, v in detector.net.state_dict().items())  # itself untouched


def test_training_on_the_labels_raises_their_heat_over_the_background(brain):
    detector, here = load_like(brain), labelled(brain)
    rule = detector.config.window_rule
    voxels = torch.from_numpy(brain[0].window_by(rule).apply(brain[0].read((0, 0, 0), SHAPE)))[None, None]
    recipe = fine_tune_recipe(detector, here, 25, 0, rate=3e-2)
    ratio = []
    for net in (detector.net, fine_tune(detector, here, recipe)):
        heat = torch.sigmoid(net(voxels))[0].numpy()
        ratio.append(heat[tuple(brain[1].astype(int).T)].mean() / heat.mean())
    assert ratio[0] == pytest.approx(1, abs=0.05)
    assert ratio[1] > 1.2


def test_figures_of_the_guide_are_those_of_the_committed_report():
    root = Path(__file__).parents[4]
    below, above = json.loads((root / "recipes/domains/adapt.json").read_text())["summary"]["20"][1::2]
    assert (below["way"], above["way"]) == ("as shipped", "as shipped")
    guide = (root / "docs/how-to/count-cells/detect.md").read_text().replace("\n", " ")
    before, after = f"{below['before']:.2f}"[1:], f"{below['after']:.2f}"[1:]
    assert f"on {below['domains']} phantoms and cubes" in guide
    assert f"took it from {before} to {after} " in guide
    assert f"it went from {above['before']:.3f} to {above['after']:.3f}".replace(" 0.", " .") in guide


def test_the_guide_says_by_how_much_200_labels_from_nothing_are_ahead_of_20_adapted():
    root = Path(__file__).parents[4]
    report = json.loads((root / "recipes/domains/adapt_large.json").read_text())
    rows, guide = report["rows"]["20"], (root / "docs/how-to/count-cells/detect.md").read_text()

    def mean(of: str, some: list[dict]) -> str:
        return f"{np.mean([row[of] for row in some]):.3f}"[1:]

    assert f"On {len(rows)} other draws ({sum('shape_zyx' in row for row in rows)} phantoms" in guide
    before, after, nothing = (mean(of, rows) for of in ("unadapted", "as shipped", "from nothing"))
    cubes = [row for row in rows if "shape_zyx" not in row]
    assert f"take the present one from {before} to {after}. " in guide
    assert f"random weights has {nothing} there" in guide
    assert f"it has {mean('from nothing', cubes)} for {mean('as shipped', cubes)}. " in guide
    less = report["summary"]["20"][0]["over from nothing"]
    low, high = (f"{-end:.3f}"[1:] for end in less["interval_95"][::-1])
    assert f"{-less['mean']:.3f} more (95 %: {low} to {high})".removeprefix("0") in guide
    losses = sorted(row["as shipped"] - row["unadapted"] for row in rows)
    assert f"One lost {-losses[0]:.3f}, the others {-losses[1]:.3f} at most".replace(" 0.", " .") in guide


# --- refusals


def test_what_cannot_be_adapted_is_refused(brain, tmp_path):
    detector = brightness_detector(tmp_path / "d", 0.05)
    with pytest.raises(CanvasError, match="3 labelled cells lie inside the boxes of new, too few"):
        adapt(brain, detector, tmp_path / "n", cells=brain[1][:3])
    with pytest.raises(CanvasError, match="beyond"):
        adapt_detector(detector, brain[0], Points(brain[1]), [[0, 0, 0, 30, 64, 64]], out=tmp_path / "n")
    with pytest.raises(CanvasError, match="layers is 'some'"):
        adapt(brain, detector, tmp_path / "n", layers="some")
    other = Volume.from_array(np.zeros(SHAPE, np.uint16), voxel_um=(2.0, 2.0, 2.0), name="fine")
    with pytest.raises(CanvasError, match="--resample"):
        adapt((other, brain[1]), detector, tmp_path / "n")
    assert not (tmp_path / "n").exists()
