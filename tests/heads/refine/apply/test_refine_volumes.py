"""From volumes and candidates to a refiner's folder, and the refiner on other volumes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import BadInput, CanvasError, ModelMismatch
from canvas_fm.heads.features.extractor import Extractor
from canvas_fm.heads.features.feature_cache import cached_features
from canvas_fm.heads.labels.candidates import Candidates, label_brains
from canvas_fm.heads.refine.apply import apply as refine_points
from canvas_fm.heads.refine.apply import candidate_classifier
from canvas_fm.heads.refine.apply.apply import refine
from canvas_fm.heads.refine.fit.fit import fit_labelled, training_set
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.inference.detect.detector_features import detector_features
from canvas_fm.inference.embed.embed import embed
from tests.heads.conftest import SHAPE, VOXEL_UM, make_encoder, spots


def test_features_are_those_of_the_models_side_by_side(brains, encoder, detector, extractor):
    volume, points = brains[0]
    features = extractor.features(volume, points.zyx)
    wanted = embed(encoder, volume, points.zyx, pool="centre", layer=1, device="cpu")
    assert np.array_equal(features.block("mae"), wanted)
    crop = encoder.config.architecture.crop_zyx
    assert np.array_equal(
        features.block("detector"),
        detector_features(detector, volume, points.zyx, crop_zyx=crop, device="cpu"),
    )
    assert dict(features.blocks) == extractor.layout
    assert features.provenance["mae"].settings == {"pool": "centre", "layer": 1}
    assert features.sha256 == {"detector": detector.sha256, "mae": encoder.sha256}
    assert set(features.groups) == {"a"}


@pytest.mark.parametrize("with_detector", [True, False])
def test_every_row_is_in_one_block_of_neighbours(encoder, detector, brains, with_detector):
    volume, _ = brains[0]
    random = np.random.default_rng(0)
    zyx = random.uniform(0, 1, (5000, 3)) * (np.asarray(SHAPE) - 1)
    extractor = Extractor(encoder=encoder, detector=detector if with_detector else None)
    blocks = extractor.blocks(volume, zyx, 500)
    assert sorted(np.concatenate(blocks)) == list(range(5000))
    assert max(map(len, blocks)) <= 2000
    assert extractor.blocks(volume, np.empty((0, 3)), 500) == []


def test_kept_features_are_read_again_and_made_again_where_damaged(
    brains, extractor, tmp_path, monkeypatch, caplog
):
    volume, points = brains[0]
    first = cached_features(extractor, volume, points.zyx, tmp_path, group="x/a")
    assert len(list(tmp_path.iterdir())) == 2  # a file a model
    monkeypatch.setattr(Extractor, "features", lambda *_, **__: pytest.fail("worked out again"))
    again = cached_features(extractor, volume, points.zyx, tmp_path, group="x/a")
    assert np.array_equal(first.x, again.x)
    assert again.provenance == first.provenance
    alone = cached_features(Extractor(detector=extractor.detector, crop_zyx=(4, 8, 8), device="cpu"), volume,
                          points.zyx, tmp_path, group="x/a")  # fmt: skip
    assert np.array_equal(alone.x, first.block("detector"))
    path = next(tmp_path.glob("x_a-mae-*"))
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    monkeypatch.undo()
    mended = cached_features(extractor, volume, points.zyx, tmp_path, group="x/a")
    assert "is damaged" in caplog.text
    assert np.array_equal(mended.x, first.x)
    caplog.clear()
    cached_features(extractor, volume, points.zyx, tmp_path, group="x/a")
    assert caplog.text == ""


def test_features_of_damage_read_as_zeros_are_not_kept(extractor, tmp_path):
    volume, points = spots(tmp_path / "a.zarr", 0)
    chunk = max((tmp_path / "a.zarr").rglob("c/*/*/*"), key=lambda path: path.stat().st_size)
    chunk.write_bytes(b"!" * 100)
    damaged = Volume.open(volume.path, on_bad_chunk="skip")
    cached_features(extractor, damaged, points.zyx, tmp_path / "kept", group="a", show=False)
    assert damaged.bad_chunks
    assert not (tmp_path / "kept").exists()


def test_a_refiner_tells_cells_on_a_volume_it_never_met(brains, refiner_folder, encoder, detector):
    volume, points = brains[2]
    refiner = Refiner.load(refiner_folder)
    judged = refine(refiner, volume, points, encoder=encoder, detector=detector, device="cpu")
    assert list(judged.columns) == ["label", "note", "p_cell"]
    assert np.array_equal(judged.zyx, points.zyx)
    decided = judged.columns["p_cell"] >= refiner.threshold_
    assert (decided == (points.columns["label"] == 1)).mean() > 0.95
    assert judged.meta["refiner_encoder_sha256"] == encoder.sha256


def test_blocks_and_a_kill_change_nothing(brains, refiner_folder, encoder, detector, tmp_path, monkeypatch):
    volume, points = brains[2]
    refiner = Refiner.load(refiner_folder)
    models = {"encoder": encoder, "detector": detector, "device": "cpu"}
    whole = refine(refiner, volume, points, **models).columns["p_cell"]
    monkeypatch.setattr(candidate_classifier, "BLOCK", 4)
    real, calls = Refiner.predict_proba, []

    def dying(self, *args, **settings):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *args, **settings)

    monkeypatch.setattr(Refiner, "predict_proba", dying)
    with pytest.raises(KeyboardInterrupt):
        refine(refiner, volume, points, out=tmp_path / "cells.csv", **models)
    assert not (tmp_path / "cells.csv").exists()
    before = len(calls)
    refine(refiner, volume, points, out=tmp_path / "cells.csv", **models)
    blocks = len(Extractor(encoder=encoder, detector=detector).blocks(volume, points.zyx, 4))
    assert len(calls) - before == blocks - 2
    written = Points.read(tmp_path / "cells.csv")
    assert np.allclose(written.columns["p_cell"], whole, atol=1e-5)
    assert written.columns["note"].tolist() == points.columns["note"].tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.csv", "cells.csv.json"]


def test_a_finished_file_is_taken_as_it_is_or_refused(brains, refiner_folder, encoder, detector, tmp_path):
    volume, points = brains[2]
    refiner = Refiner.load(refiner_folder)
    models = {"encoder": encoder, "detector": detector, "device": "cpu", "out": tmp_path / "cells.csv"}
    refine(refiner, volume, points, **models)
    stamp = (tmp_path / "cells.csv").stat().st_mtime_ns
    refine(refiner, volume, points, **models)
    assert (tmp_path / "cells.csv").stat().st_mtime_ns == stamp
    with pytest.raises(CanvasError, match="made from other inputs"):
        refine(refiner, volume, Points(points.zyx[:5]), **models)


def test_duplicates_are_warned_about_and_kept(brains, refiner_folder, encoder, detector, caplog):
    volume, points = brains[2]
    twice = Points(np.concatenate([points.zyx, points.zyx[:3]]))
    refiner = Refiner.load(refiner_folder).set_params(correction="none")
    judged = refine(refiner, volume, twice, encoder=encoder, detector=detector, device="cpu")
    assert len(judged) == 83
    assert np.allclose(judged.columns["p_cell"][80:], judged.columns["p_cell"][:3], atol=1e-5)
    assert "3 of 83 candidates repeat the position of another; they are kept" in caplog.text


def test_no_candidates_give_no_rows(brains, refiner_folder, encoder, detector, tmp_path):
    volume, _ = brains[2]
    judged = refine(
        Refiner.load(refiner_folder), volume, Points(np.empty((0, 3))), encoder=encoder, detector=detector,
        out=tmp_path / "cells.csv",
    )  # fmt: skip
    assert len(judged) == 0
    assert list(Points.read(tmp_path / "cells.csv").columns) == ["p_cell"]


def test_candidates_of_another_volume_are_refused(brains, refiner_folder, encoder, detector):
    volume, points = brains[2]
    refiner = Refiner.load(refiner_folder)
    models = {"encoder": encoder, "detector": detector}
    with pytest.raises(CanvasError, match="points outside the volume: 1 of 2, first at row 2"):
        refine(refiner, volume, Points(np.array([[1.0, 2, 3], [99, 2, 3]])), **models)
    with pytest.raises(CanvasError, match="of the volume 'a'; this one is 'c'"):
        refine(refiner, volume, Points(points.zyx, {}, {"volume": "a"}), **models)


def test_models_are_asked_for_compared_and_found_by_their_sha256(
    brains, refiner_folder, encoder, detector, tmp_path, monkeypatch
):
    volume, points = brains[2]
    refiner = Refiner.load(refiner_folder)
    with pytest.raises(CanvasError, match=r"the detector spots \(sha256 .* not among the .*--detector"):
        refine(refiner, volume, points, encoder=encoder)
    other = make_encoder(tmp_path / "other", seed=7)
    with pytest.raises(ModelMismatch, match=r"the encoder other has sha256 .* was fitted with tiny"):
        refine(refiner, volume, points, encoder=other, detector=detector)
    # Under another name, beside another model: the sha256 decides.
    shipped = {"other": other.path, "spots": detector.path, "renamed": encoder.path}
    monkeypatch.setattr(refine_points, "shipped", lambda kind: shipped)
    p_cell = refine(refiner, volume, points, device="cpu").columns["p_cell"]
    by_given_models = refine(refiner, volume, points, encoder=encoder, detector=detector, device="cpu")
    assert np.array_equal(p_cell, by_given_models.columns["p_cell"])


def test_the_report_says_what_was_learned_from_and_what_is_above(brains, extractor, tmp_path):
    volumes, tables = zip(*brains, strict=True)
    truth = [Points(np.concatenate([p.zyx[p.columns["label"] == 1], [[1.0, 1, 1]]])) for p in tables]
    trained = label_brains(volumes, tables, truth=truth, tolerance_um=5.0)
    for brain, points in zip(trained, tables, strict=True):
        assert np.array_equal(brain.label, points.columns["label"])
    report = fit_labelled(Refiner(C=0.01), trained, extractor, tmp_path / "refiner", show=False)
    assert json.loads((tmp_path / "refiner" / "report.json").read_text()) == report
    assert report["brains"]["a"]["missed"] == 1
    ceiling = 2 * (40 / 41) / (1 + 40 / 41)
    assert report["brains"]["a"]["f1_ceiling"] == pytest.approx(ceiling)
    for figures in report["cross_validation"]["brains"].values():
        assert figures["f1"] <= figures["f1_ceiling"] == pytest.approx(ceiling)
    assert report["cross_validation"]["split"] == "brain"
    with pytest.raises(CanvasError, match="is there already"):
        fit_labelled(Refiner(), trained, extractor, tmp_path / "refiner")


def test_of_two_candidates_on_a_cell_the_nearer_is_it(brains):
    volume, _ = brains[0]
    points = Points(np.array([[5.0, 5, 5], [5, 5, 6], [9, 9, 9], [1, 1, 1]]))
    truth = Points(np.array([[5.0, 5, 6], [9, 9, 10], [15, 15, 15]]))
    candidates = Candidates.of(volume, points, truth, labels=None, tolerance_um=4.5)
    assert candidates.label.tolist() == [0, 1, 1, 0]
    assert candidates.missed == 1
    assert candidates.counts()["recall"] == pytest.approx(2 / 3)
    boxes = np.array([[0, 0, 0, 8, 8, 8]])
    inside = Candidates.of(volume, points, truth, labels=None, tolerance_um=4.5, within=boxes)
    assert inside.label.tolist() == [0, 1, -1, 0]
    assert inside.missed == 0
    assert inside.counts()["skipped"] == 1


def test_rows_of_the_truth_that_are_no_cells_are_not_looked_for(brains):
    volume, points = brains[0]
    candidates = Candidates.of(volume, points, points, labels=None, tolerance_um=4.5)
    assert np.array_equal(candidates.label, points.columns["label"])
    assert candidates.missed == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda inputs: inputs | {"labels": "lab"}, "no column 'lab'; they have label, note"),
        (lambda inputs: inputs | {"labels": "note"}, "holds 'row 0'; expected 1"),
        (lambda inputs: inputs | {"labels": None}, "give --labels COLUMN, or --truth"),
        (lambda inputs: inputs | {"candidates": inputs["candidates"][:1]}, "3 volumes and 1 of candidates"),
        (lambda inputs: inputs | {"volumes": inputs["volumes"][:1] * 3}, "3 volumes are called"),
        (lambda inputs: inputs | {"within": [[[0, 0, 0, 9, 9, 9]]]}, "3 volumes and 1 of within"),
    ],
)
def test_labels_that_do_not_fit(brains, change, message):
    volumes, tables = zip(*brains, strict=True)
    inputs = change({"volumes": list(volumes), "candidates": list(tables), "labels": "label"})
    with pytest.raises(CanvasError, match=message):
        label_brains(inputs.pop("volumes"), inputs.pop("candidates"), **inputs)


def test_what_cannot_be_fitted_is_said_before_features_are_made(
    brains, encoder, detector, tmp_path, monkeypatch
):
    extractor = Extractor(encoder=encoder, detector=detector)
    monkeypatch.setattr(Extractor, "features", lambda *_, **__: pytest.fail("features were made"))
    volumes, tables = zip(*brains, strict=True)

    def fit(refiner: Refiner, label, **settings) -> None:
        changed = [Points(p.zyx, {"label": label(p.columns["label"])}) for p in tables]
        count = settings.pop("count", 3)
        brains = label_brains(volumes[:count], changed[:count], labels="label", **settings)
        fit_labelled(refiner, brains, extractor, tmp_path / "refiner")

    with pytest.raises(BadInput, match="one class only"):
        fit(Refiner(), np.ones_like)
    with pytest.raises(BadInput, match="fewer than 5 folds"):
        fit(Refiner(), lambda label: np.where(np.arange(len(label)) < 2, label, -1))
    with pytest.raises(BadInput, match="none of the 240 candidates carries a label"):
        fit(Refiner(), lambda label: np.full_like(label, -1))
    with pytest.raises(BadInput, match="one brain"):
        fit(Refiner(), np.copy, count=1)
    with pytest.raises(BadInput, match=r"variant is 'lab'; give concat .* of the blocks detector, mae"):
        fit(Refiner(variant="lab"), np.copy)
    object.__setattr__(extractor, "detector", None)
    with pytest.raises(BadInput, match="variant concat needs the detector features: give --detector"):
        fit(Refiner(), np.copy)


def test_regions_of_one_brain_and_two_volumes_of_one_name(tmp_path, encoder):
    volume, points = spots(tmp_path / "x" / "brain.zarr", 5)
    spots(tmp_path / "y" / "brain.zarr", 6)
    extractor = Extractor(encoder=encoder, device="cpu")
    half = SHAPE[2] // 2
    boxes = [[0, 0, 0, 16, 64, half], [0, 0, half, 16, 64, 64]]
    (brain,) = label_brains([volume], [points], labels="label", within=[boxes])
    data = training_set([brain], extractor, show=False)
    assert np.array_equal(data.regions, (points.zyx[:, 2] >= half - 0.5).astype(int))
    report = fit_labelled(Refiner("mae", C=0.01), [brain], extractor, tmp_path / "refiner", show=False)
    assert report["cross_validation"]["split"] == "region"
    assert "one brain only" in report["cross_validation"]["warning"]
    two = label_brains([volume, Volume.open(tmp_path / "y" / "brain.zarr")], [points, points], labels="label")
    assert [one.name for one in two] == ["x/brain", "y/brain"]
    assert volume.voxel_um == VOXEL_UM


def test_features_are_of_labelled_candidates_alone_and_the_fit_is_as_with_all(
    brains, extractor, tmp_path, monkeypatch
):
    labelled = label_brains([v for v, _ in brains], [p for _, p in brains], labels="label")
    some = [
        replace(brain, label=np.where(np.arange(len(brain)) % 3 == keep, brain.label, -1))
        for brain, keep in zip(labelled, (0, 1, 3), strict=True)  # of the last brain none has a label
    ]
    seen: list[int] = []
    whole = Extractor.features

    def counted(self, volume, points_zyx, **options):
        seen.append(len(points_zyx))
        return whole(self, volume, points_zyx, **options)

    monkeypatch.setattr(Extractor, "features", counted)
    refiner = Refiner(C=0.01)
    report = fit_labelled(refiner, some, extractor, tmp_path / "few", show=False)
    assert seen == [int((brain.label >= 0).sum()) for brain in some[:2]]
    cache = tmp_path / "cache"
    of_all = fit_labelled(Refiner(C=0.01), some, extractor, tmp_path / "all", feature_cache=cache, show=False)
    assert report["skipped"] == of_all["skipped"] == sum(int((brain.label < 0).sum()) for brain in some)
    assert Refiner.load(tmp_path / "few").skipped_ == report["skipped"]
    for same in ("brains", "recalls", "columns", "split", "files", "settings"):
        assert report.get(same) == of_all.get(same)
    assert report["threshold"] == pytest.approx(of_all["threshold"], rel=1e-3)
    figures, of_every = (one["cross_validation"]["pooled"] for one in (report, of_all))
    assert figures.pop("count") == pytest.approx(of_every.pop("count"), rel=1e-3)
    assert figures.pop("f1_ceiling") is of_every.pop("f1_ceiling") is None
    assert figures == pytest.approx(of_every, rel=1e-3)
    seen.clear()
    fit_labelled(Refiner(C=0.01, correction="centre"), some[:2], extractor, tmp_path / "centred", show=False)
    assert seen == [len(brain) for brain in some[:2]]  # a brain is corrected by all its candidates
