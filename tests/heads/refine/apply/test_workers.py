"""The refiner by Dask workers: the rows of one process, with workers killed and with damage skipped."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.heads.features.extractor import Extractor
from canvas_fm.heads.refine.apply import candidate_classifier
from canvas_fm.heads.refine.apply.apply import refine
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.inference.detect.tiles.resumable_tiles import ResumableTiles
from tests.heads.conftest import SHAPE
from tests.support.dask_cluster import cluster_of_threads
from tests.support.killed_workers import two_of_four_killed


def test_a_scheduler_and_a_pickled_classifier_give_the_same_rows(
    brains, refiner_folder, encoder, detector, tmp_path, monkeypatch
):
    volume, points = brains[2]
    refiner = Refiner.load(refiner_folder)
    models = {"encoder": encoder, "detector": detector, "device": "cpu"}
    monkeypatch.setattr(candidate_classifier, "BLOCK", 4)
    alone = refine(refiner, volume, points, **models)
    with cluster_of_threads(1) as local:
        where = {"scheduler": local.scheduler_address, "out": tmp_path / "cells.csv"}
        together = refine(refiner, volume, points, **models, **where)
    np.testing.assert_allclose(together.columns["p_cell"], alone.columns["p_cell"], atol=1e-6)
    extractor = Extractor(encoder=encoder, detector=detector, pool="centre", layer=1, device="cpu")
    classifier = candidate_classifier.CandidateClassifier(refiner, extractor, volume, None, points.zyx, None)
    classifier._moments = classifier._measure()
    sent = pickle.loads(pickle.dumps(classifier))
    assert len(classifier.blocks) > 2
    for number in range(len(classifier.blocks)):
        np.testing.assert_allclose(sent.tile(number).p_cell, classifier.tile(number).p_cell, atol=1e-6)


def test_damage_that_workers_or_an_earlier_run_skipped_is_told(
    brains, refiner_folder, encoder, detector, tmp_path, monkeypatch
):
    def worker(job, numbers, **_):
        for number in numbers:
            yield number, job.tile(number)._replace(bad_chunks=((f"chunk {number} is damaged",),))

    monkeypatch.setattr(candidate_classifier, "map_tiles", worker)
    monkeypatch.setattr(candidate_classifier, "BLOCK", 16)
    refiner, path = Refiner.load(refiner_folder), brains[2][0].path
    models = {"encoder": encoder, "detector": detector, "device": "cpu"}
    volume = Volume.open(path)
    refine(refiner, volume, brains[2][1], **models)
    assert volume.bad_chunks[:2] == ["chunk 0 is damaged", "chunk 1 is damaged"]

    # A run that ends after its last block: the next one computes nothing and tells the same.
    monkeypatch.setattr(ResumableTiles, "finish", lambda *_: pytest.fail("ended here"))
    for _ in range(2):
        again = Volume.open(path)
        with pytest.raises(pytest.fail.Exception):
            refine(refiner, again, brains[2][1], out=tmp_path / "cells.csv", **models)
        assert again.bad_chunks == volume.bad_chunks


@pytest.mark.slow
def test_workers_of_this_machine_refine_the_same_rows(brains, refiner_folder, encoder, detector, monkeypatch):
    volume, points = brains[2]
    models = {"encoder": encoder, "detector": detector, "device": "cpu"}
    monkeypatch.setattr(candidate_classifier, "BLOCK", 16)
    refiner = Refiner.load(refiner_folder)
    alone, together = (refine(refiner, volume, points, **models, workers=n) for n in (1, 2))
    np.testing.assert_allclose(together.columns["p_cell"], alone.columns["p_cell"], atol=1e-6)


@pytest.mark.slow
def test_two_of_four_workers_are_killed_and_the_rows_are_those_of_one(
    brains, refiner_folder, encoder, detector, tmp_path, monkeypatch
):
    volume = brains[2][0]
    many = Points(np.random.default_rng(0).random((1200, 3)) * (np.array(SHAPE) - 1))
    monkeypatch.setattr(candidate_classifier, "BLOCK", 8)
    models = {"encoder": encoder, "detector": detector, "device": "cpu"}
    refiner = Refiner.load(refiner_folder)
    alone = refine(refiner, volume, many, out=tmp_path / "a.csv", **models)

    def done() -> int:
        return len(list((tmp_path / "b.csv.unfinished").glob("*.part")))

    with two_of_four_killed(done, each=10) as scheduler:
        together = refine(refiner, volume, many, out=tmp_path / "b.csv", scheduler=scheduler, **models)
    np.testing.assert_array_equal(together.zyx, alone.zyx)
    np.testing.assert_array_equal(together.columns["p_cell"], alone.columns["p_cell"])
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()
