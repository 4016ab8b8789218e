"""The baselines: their features against independent sums, no leak between folds, what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError, ModelMismatch
from canvas_fm.evaluation.metrics.classification import auc
from canvas_fm.heads.compare.baselines import CandidateScoreMethod, Embedded, PcaCrops, ShapeTrees
from canvas_fm.heads.compare.methods import Method, fit_by, training
from canvas_fm.heads.compare.pooled_candidates import PooledCandidates
from canvas_fm.heads.features.feature_set import FeatureSet
from canvas_fm.heads.features.shape import RADII_UM, feature_names, shape_crop, shape_features
from canvas_fm.heads.labels.candidates import Candidates
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.models.device import native_bf16
from canvas_fm.models.heads.resnet import ResNet3D, ResNetConfig
from canvas_fm.training.finetune.resnet_method import ResNetClassifier

CROP = (8, 16, 16)


def of(pooled, out: str = "c", seed: int = 0):
    """What may be learned from all volumes but one."""
    others = [part.name for part in pooled.parts if part.name != out]
    pool = np.flatnonzero(np.isin(pooled.group, others))
    return training(pooled, pooled.labelled(others), pool, out, seed)


def features(pooled) -> FeatureSet:
    """A column that tells cells apart, and noise."""
    x = np.random.default_rng(0).normal(size=(len(pooled), 6)).astype(np.float32)
    x[:, 2] += 2.5 * pooled.is_cell
    return FeatureSet(x, {"mae": slice(0, 6)}, pooled.group)


# --- shape


def ball(height: float, radius: float, voxel_um, crop, offset_um=(0.0, 0.0, 0.0), stretch=(1.0, 1.0, 1.0)):
    axes = [
        ((np.arange(n) - n // 2) * um - o) / s
        for n, um, o, s in zip(crop, voxel_um, offset_um, stretch, strict=True)
    ]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return (0.1 + height * np.exp(-0.5 * (z**2 + y**2 + x**2) / radius**2)).astype(np.float32)


def test_shape_features_by_plain_sums():
    voxel_um = (4.0, 2.0, 2.0)
    crop = shape_crop(voxel_um)
    assert crop == (13, 25, 25)
    crops = np.random.default_rng(0).random((3, *crop)).astype(np.float32)
    found = dict(zip(feature_names(), shape_features(crops, voxel_um).T, strict=True))
    for row in range(3):
        inside = {radius: [] for radius in RADII_UM}
        for z in range(13):
            for y in range(25):
                for x in range(25):
                    far = np.sqrt((4 * (z - 6)) ** 2 + (2 * (y - 12)) ** 2 + (2 * (x - 12)) ** 2)
                    for radius in RADII_UM:
                        if far <= radius:
                            inside[radius].append(crops[row, z, y, x])
        for radius in RADII_UM:
            assert found[f"mean within {radius:g} um"][row] == pytest.approx(
                np.mean(inside[radius]), rel=1e-4
            )
            assert found[f"maximum within {radius:g} um"][row] == pytest.approx(max(inside[radius]))
        shell = (sum(inside[10.0]) - sum(inside[6.0])) / (len(inside[10.0]) - len(inside[6.0]))
        assert found["mean from 6 to 10 um"][row] == pytest.approx(shell, rel=1e-4)
        contrast = np.mean(inside[6.0]) - shell
        assert found["contrast at 6 um"][row] == pytest.approx(contrast, abs=1e-5)
        assert found["centre"][row] == crops[row, 6, 12, 12]


def test_the_same_spot_has_the_same_shape_at_other_voxels():
    numbers = []
    for voxel_um in ((2.0, 1.0, 1.0), (1.0, 1.0, 1.0)):
        crop = shape_crop(voxel_um)
        round_ = ball(0.8, 3.0, voxel_um, crop)
        long = ball(0.8, 2.0, voxel_um, crop, stretch=(1.0, 1.0, 2.2))
        numbers.append(shape_features(np.stack([round_, long]), voxel_um))
    names = feature_names()
    for name in ("axis 1 of the moments, um", "volume above half, um3", "mean within 6 um"):
        column = names.index(name)
        np.testing.assert_allclose(numbers[0][:, column], numbers[1][:, column], rtol=0.1)
    elongation = numbers[0][:, names.index("elongation")]
    assert elongation[0] > 0.9 > 0.6 > elongation[1]


def test_features_of_nothing_are_numbers():
    crops = np.zeros((2, *shape_crop((4.0, 2.0, 2.0))), np.float32)
    assert np.isfinite(shape_features(crops, (4.0, 2.0, 2.0))).all()


# --- the task


def test_crops_come_windowed_in_the_order_asked(pooled):
    rows = np.array([200, 3, 130])
    found = pooled.crops(rows, CROP)
    whole = {part.name: part.volume.read((0, 0, 0), part.volume.shape_zyx) for part in pooled.parts}
    for row, crop in zip(rows, found, strict=True):
        part = next(one for one in pooled.parts if one.name == pooled.group[row])
        start = np.floor(pooled.zyx[row] + 0.5).astype(int) - np.array(CROP) // 2
        box = np.zeros(CROP, np.float32)
        for index in np.ndindex(CROP):
            at = start + index
            if (at >= 0).all() and (at < part.volume.shape_zyx).all():
                box[index] = whole[part.name][tuple(at)]
        np.testing.assert_allclose(crop, part.volume.window.apply(box), atol=1e-6)


def test_counts_against_the_truth_know_the_missed_cells(pooled):
    part = pooled.parts[0]
    assert part.missed == 3
    everything = part.counts_by_box(np.ones(len(part), bool)).sum(axis=0)
    cells, others = int((part.label == 1).sum()), int((part.label == 0).sum())
    assert everything.tolist() == [cells, others, 3]
    assert part.counts_by_box(np.zeros(len(part), bool)).sum(axis=0).tolist() == [0, 0, cells + 3]
    curve = part.curve((part.label == 1).astype(float))
    assert curve.best == (1.0, pytest.approx(2 * cells / (2 * cells + 3)))


def test_boxes_leave_out_what_lies_outside(shape_volumes):
    volume, points, truth = shape_volumes[0]
    half = np.array([[0, 0, 0, 18, 96, 48]])
    part = Candidates.of(volume, points, truth, tolerance_um=6.0, within=half)
    assert (part.label[points.zyx[:, 2] >= 47.5] == -1).all()
    assert part.counts_by_box(np.ones(len(part), bool)).sum() < len(part)


def test_one_volume_is_divided_by_its_boxes(shape_volumes):
    volume, points, truth = shape_volumes[0]
    boxes = np.array([[0, 0, 0, 18, 96, 48], [0, 0, 48, 18, 96, 96]])
    divided = PooledCandidates([Candidates.of(volume, points, truth, tolerance_um=6.0, within=boxes)])
    assert divided.by == "region"
    assert [part.name for part in divided.parts] == ["a z0 y0 x0", "a z0 y0 x48"]
    assert sum(part.missed for part in divided.parts) == 3
    with pytest.raises(CanvasError, match="one volume with one labelled region"):
        PooledCandidates([Candidates.of(volume, points, truth, tolerance_um=6.0)])


def test_two_volumes_of_one_name_and_of_other_voxels_are_refused(shape_volumes, tmp_path):
    parts = [Candidates.of(*given, tolerance_um=6.0, name="same") for given in shape_volumes[:2]]
    with pytest.raises(CanvasError, match="two sets of candidates are called 'same'"):
        PooledCandidates(parts)
    with Volume.create(tmp_path / "coarse.zarr", (18, 96, 96), voxel_um=(8.0, 2.0, 2.0)) as writer:
        writer.write((0, 0, 0), np.random.default_rng(0).integers(0, 999, (18, 96, 96)).astype(np.uint16))
    _, points, truth = shape_volumes[0]
    other = Candidates.of(Volume.open(tmp_path / "coarse.zarr"), points, truth, tolerance_um=6.0)
    with pytest.raises(ModelMismatch, match="--resample"):
        PooledCandidates([parts[0], other])
    assert PooledCandidates([parts[0], other], ignore_voxel_size=True).crops(np.array([150]), CROP).shape == (
        1,
        *CROP,
    )


@pytest.mark.parametrize(
    ("columns", "options", "sentence"),
    [
        ({"label": 2}, {}, "column 'label' holds 2"),
        ({}, {}, "no column 'label'"),
        ({"label": 1, "score": np.nan}, {}, "the column 'score' is not a number in row 1"),
        ({"label": 1}, {"score": "mine"}, "no column 'mine'"),
    ],
)
def test_columns_that_are_no_labels_or_scores(shape_volumes, columns, options, sentence):
    volume, points, truth = shape_volumes[0]
    given = Points(points.zyx, {name: np.full(len(points), value) for name, value in columns.items()})
    with pytest.raises(CanvasError, match=sentence):
        _ = Candidates.of(volume, given, truth, tolerance_um=6.0, **options).own


# --- the methods


def test_the_own_score_ranks_as_it_is(pooled):
    fit = CandidateScoreMethod().fit(of(pooled))
    rows = pooled.labelled(["c"])
    p = fit.predict(rows)
    assert auc(pooled.is_cell[rows], p) == pytest.approx(auc(pooled.is_cell[rows], pooled.own[rows]))
    assert ((p > 0) & (p < 1)).all()


def test_an_own_score_that_misleads_is_not_turned_round(shape_volumes):
    parts = []
    for volume, points, truth in shape_volumes[:2]:
        wrong = Points(points.zyx, {"label": points.columns["label"], "score": -points.columns["score"]})
        parts.append(Candidates.of(volume, wrong, truth, tolerance_um=6.0))
    turned = PooledCandidates(parts)
    rows = turned.labelled(["b"])
    p = CandidateScoreMethod().fit(of(turned, "b")).predict(rows)
    assert auc(turned.is_cell[rows], p) == pytest.approx(auc(turned.is_cell[rows], turned.own[rows]))
    assert auc(turned.is_cell[rows], p) < 0.5


def test_candidates_without_a_score_cannot_be_judged_by_it(shape_volumes):
    parts = []
    for volume, points, truth in shape_volumes[:2]:
        bare = Points(points.zyx, {"label": points.columns["label"]})
        parts.append(Candidates.of(volume, bare, truth, tolerance_um=6.0))
    with pytest.raises(CanvasError, match="not all candidates came with a score"):
        CandidateScoreMethod().fit(of(PooledCandidates(parts), "b"))


def test_components_are_those_of_the_training_crops(pooled):
    given = of(pooled)
    method = PcaCrops(6, CROP)
    fit = method.fit(given)
    rows = pooled.labelled(["c"])
    assert auc(pooled.is_cell[rows], fit.predict(rows)) > 0.9
    np.testing.assert_allclose(fit.predict(rows), fit.from_scratch(rows), atol=1e-6)
    flat = pooled.crops(given.pool, CROP).reshape(len(given.pool), -1)
    own = method._last[1]
    np.testing.assert_allclose(own.mean_, flat.mean(axis=0), atol=1e-5)
    strength = np.linalg.svd(flat - flat.mean(axis=0), compute_uv=False)[:6] ** 2 / (len(flat) - 1)
    np.testing.assert_allclose(own.explained_variance_, strength, rtol=0.02)


def test_trees_tell_round_from_stretched(pooled):
    fit = ShapeTrees(30).fit(of(pooled))
    rows = pooled.labelled(["c"])
    assert auc(pooled.is_cell[rows], fit.predict(rows)) > 0.95
    np.testing.assert_allclose(fit.predict(rows[:9]), fit.from_scratch(rows[:9]), atol=1e-6)


@pytest.mark.parametrize(
    "refiner", [None, lambda seed: Refiner("mae"), lambda seed: Refiner("mae", correction="standardise")]
)
def test_embeddings_under_a_logistic_model_or_a_refiner(pooled, refiner):
    given = features(pooled)
    method = Embedded("mine", given, refiner=refiner, embed=lambda rows, fold: given.x[rows])
    fit = method.fit(of(pooled))
    rows = pooled.labelled(["c"])
    assert auc(pooled.is_cell[rows], fit.predict(rows)) > 0.9
    np.testing.assert_allclose(fit.predict(rows), fit.from_scratch(rows), atol=1e-6)
    assert 0 < fit.threshold < 1
    few = of(pooled)
    cells = few.rows[pooled.is_cell[few.rows]][:4]
    others = few.rows[~pooled.is_cell[few.rows]][:8]
    small = training(pooled, np.sort(np.concatenate([cells, others])), few.pool, "c", 0)
    assert np.isfinite(method.fit(small).predict(rows)).all()


def test_features_of_each_fold_and_of_other_candidates(pooled):
    one = features(pooled)
    with pytest.raises(CanvasError, match="mine has no features for the fold 'c'; it has a, b"):
        Embedded("mine", {"a": one, "b": one}).fit(of(pooled))
    with pytest.raises(CanvasError, match=r"mine has features of 10 rows; there are \d+ candidates"):
        Embedded("mine", one.rows(np.arange(10))).fit(of(pooled))


def test_a_threshold_is_chosen_on_held_out_training_rows_and_counts_missed_cells(pooled):
    given = of(pooled)
    p = np.where(pooled.is_cell[given.rows], 0.8, 0.3)
    assert 0.3 < fit_by(given, lambda rows: rows, p).threshold <= 0.8
    mixed = np.linspace(0, 1, len(given.rows))
    cells, rows = pooled.is_cell[given.rows], given.rows
    missed = sum(pooled.missed_by_part(rows).values())
    assert missed == 6
    f1 = [2 * (cells & (mixed >= t)).sum() / ((mixed >= t).sum() + cells.sum() + missed) for t in mixed]
    kept = mixed >= fit_by(given, lambda rows: rows, mixed).threshold
    assert 2 * (cells & kept).sum() / (kept.sum() + cells.sum() + missed) == pytest.approx(max(f1))


def test_a_single_cell_is_too_few(pooled):
    rows = pooled.labelled(["a"])
    few = np.sort(np.concatenate([rows[pooled.is_cell[rows]][:1], rows[~pooled.is_cell[rows]][:9]]))
    with pytest.raises(CanvasError, match=r"without c 1 cells and 9 other candidates are labelled"):
        training(pooled, few, few, "c", 0)


# --- the ResNet


def small(**options) -> ResNetClassifier:
    config = ResNetConfig(crop_zyx=CROP, width=4, blocks=(1, 1))
    return ResNetClassifier(config, device="cpu", batch=16, learning_rate=5e-3, **options)


def test_a_resnet_has_the_size_that_its_width_says():
    """ResNet-18: 8 blocks of two convolutions, a stem and a head; counted by hand for width 4."""
    net = ResNet3D(ResNetConfig(width=4, blocks=(2, 2)))
    stem = 4 * 75 + 8
    first = 2 * (2 * 4 * 4 * 27 + 2 * 8)
    second = 8 * 4 * 27 + 3 * 8 * 8 * 27 + 8 * 4 + 5 * 16
    assert sum(p.numel() for p in net.parameters()) == stem + first + second + 9
    assert net(torch.zeros(3, 1, 16, 32, 32)).shape == (3,)
    full = ResNet3D(ResNetConfig(width=64))
    assert 33e6 < sum(p.numel() for p in full.parameters()) < 34e6


@pytest.mark.slow
def test_a_resnet_learns_the_spots_of_other_volumes_and_the_seed_decides(pooled):
    net = small(least_steps=50, most_steps=50)
    given = of(pooled, "b")
    fit = net.fit(given)
    rows = pooled.labelled(["b"])
    p = fit.predict(rows)
    assert auc(pooled.is_cell[rows], p) > 0.85
    one, two = (net.train(pooled, given.rows, seed) for seed in (0, 1))
    np.testing.assert_allclose(net._predict(pooled, one)(rows), p, atol=1e-6)
    assert np.abs(net._predict(pooled, two)(rows) - p).max() > 1e-3


@pytest.mark.skipif(not native_bf16(torch.device("cpu")), reason="no bf16 instructions here")
def test_a_resnet_that_judges_in_bf16_says_the_same_and_is_another_method(pooled):
    given, rows = of(pooled, "b"), pooled.labelled(["b"])
    whole = small(least_steps=20, most_steps=20)
    mixed = small(least_steps=20, most_steps=20, precision="bf16")
    apart = np.abs(mixed.fit(given).predict(rows) - whole.fit(given).predict(rows)).max()
    assert 1e-6 < apart < 0.05
    assert mixed.identity("b") != whole.identity("b")


def test_a_resnet_trains_longer_on_more_labels_within_limits():
    net = ResNetClassifier(epochs=10, batch=32, least_steps=100, most_steps=500)
    assert [net.steps(n) for n in (20, 640, 100_000)] == [100, 200, 500]
    with pytest.raises(CanvasError, match="batch of at least 2"):
        ResNetClassifier(batch=1)


def test_every_way_is_a_method(pooled):
    for one in (
        CandidateScoreMethod(),
        PcaCrops(),
        ShapeTrees(),
        small(),
        Embedded("mine", features(pooled)),
    ):
        assert isinstance(one, Method)
