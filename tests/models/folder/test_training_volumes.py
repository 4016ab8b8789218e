"""Volumes that share tissue with those that a model was trained on are known as seen."""

from __future__ import annotations

import pytest

from canvas_fm.models.folder.training_volumes import training_volumes, volume_in_training

DETECTOR = {"trained_on": [{"name": "695"}, {"name": "piece", "crop_of": "7095"}], "start_trained_on": ["9"]}
REFINER = {"trained_on": {"695": {"cells": 3}, "piece": {"cells": 1, "crop_of": "7095"}, "9": {}}}


@pytest.mark.parametrize("provenance", [DETECTOR, REFINER], ids=["detector", "refiner"])
@pytest.mark.parametrize(
    ("name", "crop_of", "words"),
    [
        ("695", None, "the volume '695'"),
        ("9", None, "the volume '9'"),
        ("cfos", "695", "the volume '695', of which 'cfos' is a crop"),
        ("7095", None, "the volume 'piece', which is a crop of '7095'"),
        ("other", "7095", "the volume 'piece', which is a crop of '7095' as 'other' is"),
        ("new", "elsewhere", None),
        ("new", None, None),
        (None, None, None),
    ],
)
def test_a_volume_its_crops_and_the_volume_that_it_was_cut_from(provenance, name, crop_of, words):
    assert volume_in_training(provenance, name, crop_of) == words
    assert training_volumes(provenance) == {"695", "piece", "9"}
