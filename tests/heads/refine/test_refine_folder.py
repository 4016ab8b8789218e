"""A refiner's folder: the same numbers again, and nothing that was changed or made otherwise."""

from __future__ import annotations

import json

import numpy as np
import pytest

from canvas_fm.errors import CanvasError, ModelMismatch
from canvas_fm.heads.features.feature_set import FeatureSet, Provenance
from canvas_fm.heads.refine.refiner import Refiner
from tests.heads.made_up import BLOCKS, MADE, p_cell


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"model": "mlp", "epochs": 1, "folds": 2, "hidden": 8},
        {"calibration": "isotonic", "cut": "mae", "ratio": 0.3},
    ],
)
def test_a_saved_refiner_gives_the_same_numbers(data, tmp_path, settings):
    features, is_cell = data
    refiner = Refiner(C=0.01, correction="centre", **settings).fit(features, is_cell)
    sha256 = refiner.save(tmp_path / "refiner", {"note": "a test"})
    again = Refiner.load(tmp_path / "refiner")
    assert np.array_equal(p_cell(refiner, features), p_cell(again, features))
    assert np.array_equal(refiner.predict(features), again.predict(features))
    assert again.sha256_ == sha256
    assert again.get_params() == refiner.get_params() | {"blocks": BLOCKS}
    config = json.loads((tmp_path / "refiner" / "config.json").read_text())
    assert [block["made"]["sha256"] for block in config["blocks"]] == ["d" * 64, "a" * 64]
    assert [block["made"]["name"] for block in config["blocks"]] == ["det", "base"]
    assert sorted(path.name for path in (tmp_path / "refiner").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_a_refiner_that_was_changed_is_refused(fitted, tmp_path):
    fitted.save(tmp_path / "refiner")
    weights = tmp_path / "refiner" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CanvasError, match="damaged or was changed"):
        Refiner.load(tmp_path / "refiner")
    config = tmp_path / "refiner" / "config.json"
    config.write_text(config.read_text().replace('"threshold": 0.', '"threshold": 0.1'))
    with pytest.raises(CanvasError, match="was changed"):
        Refiner.load(tmp_path / "refiner")


def test_features_of_another_encoder_or_made_otherwise_are_refused(data, fitted):
    features, _ = data
    other = MADE | {"mae": Provenance("else", "e" * 64, {"pool": "centre"})}
    with pytest.raises(ModelMismatch, match=r"mae features are of else .* fitted with base"):
        fitted.predict_proba(FeatureSet(features.x, BLOCKS, features.groups, other))
    other = MADE | {"mae": Provenance("base", "a" * 64, {"pool": "mean"})}
    with pytest.raises(ModelMismatch, match="'pool': 'mean'"):
        fitted.predict_proba(FeatureSet(features.x, BLOCKS, features.groups, other))
