"""`cf.fit_refiner` does all of `refine fit`: it opens models by name and fine-tunes where asked to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import canvas_fm as cf
from canvas_fm.errors import CanvasError
from canvas_fm.pipeline import fit_refiner as module


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the fit is given; it is not done."""
    given: dict[str, Any] = {}

    def fit(refiner: Any, brains: Any, extractor: Any, out: Any, **options: Any) -> dict[str, Any]:
        given.update(options, extractor=extractor, refiner=refiner)
        return {"refiner": str(out)}

    monkeypatch.setattr(module, "fit_labelled", fit)
    monkeypatch.setattr(module, "label_brains", lambda volumes, candidates, **options: [])
    return given


def test_a_model_by_name_and_fine_tuning_by_an_option(fitted: dict[str, Any], tmp_path: Path) -> None:
    out, kept = tmp_path / "refiner", str(tmp_path / "kept")
    report = cf.fit_refiner([], [], out, encoder="base", unfreeze=2, augment=True, feature_cache=kept)
    assert report == {"refiner": str(out)}
    assert fitted["extractor"].encoder.sha256 == cf.load("base").sha256
    assert fitted["extractor"].detector is None
    assert fitted["refiner"].variant == "mae"
    assert (fitted["tuning"].blocks, fitted["tuning"].augment) == (2, True)
    assert fitted["feature_cache"] == Path(kept)


def test_without_the_option_the_encoder_stays_as_it_is(fitted: dict[str, Any], tmp_path: Path) -> None:
    cf.fit_refiner([], [], tmp_path / "refiner", encoder=cf.load("base"), C=2.0)
    assert (fitted["tuning"], fitted["feature_cache"], fitted["refiner"].C) == (None, None, 2.0)


def test_mistakes_are_refused_before_a_model_is_opened(tmp_path: Path) -> None:
    with pytest.raises(CanvasError, match="give --detector too"):
        cf.fit_refiner([], [], tmp_path / "r", encoder="no such model", detector_score=True)
    with pytest.raises(CanvasError, match="there is no option unfreze; did you mean unfreeze"):
        cf.fit_refiner([], [], tmp_path / "r", encoder="no such model", unfreze=1)
