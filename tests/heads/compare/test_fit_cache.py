"""A comparison that goes on: after a kill, with a method more; not where what it stands on has changed."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from canvas_fm.heads.compare import compare as comparing
from canvas_fm.heads.compare.baselines import CandidateScoreMethod, Embedded, PcaCrops, ShapeTrees
from canvas_fm.heads.compare.compare import compare
from canvas_fm.heads.compare.pooled_candidates import PooledCandidates
from canvas_fm.heads.features.feature_set import FeatureSet
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.training.finetune.resnet_method import ResNetClassifier

from .test_report import Known

PLAN = {"seeds": 2, "counts": (20,), "show": False}
FITS = 3 * (2 + 2)  # folds × (seeds on all labels and on 20)


@pytest.fixture(scope="module")
def saying(pooled):
    random = np.random.default_rng(0)
    return np.clip(0.5 + 0.3 * (2 * pooled.is_cell - 1) + random.normal(0, 0.2, len(pooled)), 0, 1)


def figures(found) -> list:
    """All figures but what the clock said."""
    return [one._replace(seconds=0.0) for one in found.results]


def test_after_a_kill_only_what_was_left_is_fitted(pooled, saying, tmp_path):
    whole = compare(pooled, [Known("good", saying, seeded=True)], **PLAN)

    class Dying(Known):
        def fit(self, given):
            if len(self.given) == 5:
                raise KeyboardInterrupt
            return super().fit(given)

    first = Dying("good", saying, seeded=True)
    with pytest.raises(KeyboardInterrupt):
        compare(pooled, [first], keep=tmp_path, **PLAN)
    assert len(list(tmp_path.glob("*.part"))) == 5
    second = Known("good", saying, seeded=True)
    found = compare(pooled, [second], keep=tmp_path, **PLAN)
    assert len(second.given) == FITS - 5
    assert figures(found) == figures(whole)
    assert np.array_equal(found.p_cell["good"], whole.p_cell["good"], equal_nan=True)
    assert found.thresholds == whole.thresholds


def test_a_method_more_is_all_that_is_fitted_and_its_speed_is_of_another_run(
    pooled, saying, tmp_path, monkeypatch
):
    compare(pooled, [Known("good", saying)], keep=tmp_path, **PLAN)
    monkeypatch.setattr(comparing, "_RUN", "later")
    methods = [Known("good", saying), Known("noise", saying[::-1])]
    found = compare(pooled, methods, keep=tmp_path, **PLAN)
    assert [len(method.given) for method in methods] == [0, 3 * (1 + 2)]
    assert set(found.speed) == {"good", "noise"}
    assert any("measured in several runs" in note for note in found.notes)


def test_other_labels_settings_or_folds_are_another_fit(pooled, saying, tmp_path):
    compare(pooled, [Known("good", saying)], keep=tmp_path, **PLAN)
    label = pooled.parts[0].label.copy()
    label[np.flatnonzero(label == 0)[0]] = 1
    changed = PooledCandidates([replace(pooled.parts[0], label=label), *pooled.parts[1:]])
    for given, method, more in (
        (changed, Known("good", saying), {}),
        (pooled, Known("good", saying, threshold=0.6), {}),
        (pooled, Known("good", saying), {"folds": {"ab": ("a", "b")}}),
    ):
        compare(given, [method], keep=tmp_path, **PLAN, **more)
        assert len(method.given) == (3 if more else 9)


def test_a_damaged_fit_is_made_again(pooled, saying, tmp_path, caplog):
    whole = compare(pooled, [Known("good", saying)], keep=tmp_path, **PLAN)
    path = sorted(tmp_path.glob("*.part"))[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 255
    path.write_bytes(data)
    again = Known("good", saying)
    assert figures(compare(pooled, [again], keep=tmp_path, **PLAN)) == figures(whole)
    assert len(again.given) == 1
    assert "is damaged" in caplog.text


def test_every_method_tells_what_decides_it(pooled):
    x = np.random.default_rng(0).normal(size=(len(pooled), 6)).astype(np.float32)
    features = FeatureSet(x, {"mae": slice(0, 6)}, pooled.group)
    other = FeatureSet(x + 1, {"mae": slice(0, 6)}, pooled.group)
    told = [
        CandidateScoreMethod(),
        PcaCrops(6),
        PcaCrops(8),
        ShapeTrees(),
        ShapeTrees(30),
        ResNetClassifier(),
        ResNetClassifier(most_steps=500),
        Embedded("one", features),
        Embedded("one", other),
        Embedded("one", features, refiner=lambda seed: Refiner("mae")),
        Embedded("one", features, refiner=lambda seed: Refiner("mae", correction="centre")),
    ]
    assert len({json.dumps(one.identity("c"), sort_keys=True, default=str) for one in told}) == len(told)
    assert ResNetClassifier(name="x").identity("c") == ResNetClassifier(device="cpu").identity("c")
