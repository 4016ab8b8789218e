"""Models of earlier versions stay findable by the sha256 that shipped refiners recorded, by nothing else."""

from __future__ import annotations

from canvas_fm.files.shipped import shipped
from canvas_fm.heads.refine.apply.apply import models_needed, models_of
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.models.load_model import load


def test_every_shipped_refiner_finds_the_very_models_that_it_was_fitted_with():
    for name, folder in [*shipped("model").items(), *shipped("older model").items()]:
        if not name.startswith("refiner"):
            continue
        refiner = Refiner.load(folder)
        needed = models_needed(refiner)
        assert needed, name
        found = models_of(refiner, None, None)
        for kind, made in needed.items():
            assert found[kind].sha256 == made.sha256, (name, kind)


def test_an_older_model_is_no_name_that_a_user_would_get():
    older = shipped("older model")
    assert older
    assert not set(older) & set(shipped("model"))
    assert "_older" not in shipped("model")
    for path in older.values():
        assert Refiner.load(path).sha256_ if path.name.startswith("refiner") else load(path).sha256
