"""Features in named blocks: what they are made of, and brains corrected by themselves."""

from __future__ import annotations

import numpy as np
import pytest

from canvas_fm.errors import CanvasError, ModelMismatch
from canvas_fm.heads.features.feature_set import (
    CORRECTIONS,
    FeatureSet,
    Provenance,
    beside,
    correct_by_group,
    stack,
)

ENCODER = Provenance("base", "a" * 64, {"pool": "centre"})


def two_brains(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The same cells twice, the second brain ten times as bright and shifted."""
    x = np.random.default_rng(seed).normal(size=(60, 5)) @ np.random.default_rng(9).normal(size=(5, 5))
    both = np.concatenate([x, 10 * x + 3]).astype(np.float32)
    return both, np.repeat(["a", "b"], 60)


def test_blocks_keep_their_columns_and_models():
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    features = beside({"detector": (x[:, :1], None), "mae": (x[:, 1:], ENCODER)}, "brain")
    assert features.blocks == {"detector": slice(0, 1), "mae": slice(1, 4)}
    assert np.array_equal(features.block("mae"), x[:, 1:])
    assert features.sha256 == {"mae": "a" * 64}
    assert np.array_equal(features.rows(np.array([2, 0])).x, x[[2, 0]])
    with pytest.raises(CanvasError, match="no block 'lab'"):
        features.block("lab")


def test_brains_below_each_other_have_the_same_models():
    x = np.ones((2, 3), np.float32)
    one, two = beside({"mae": (x, ENCODER)}, "a"), beside({"mae": (x + 1, ENCODER)}, "a longer name")
    both = stack([one, two])
    assert both.groups.tolist() == ["a", "a", "a longer name", "a longer name"]
    assert both.x[:, 0].tolist() == [1, 1, 2, 2]
    other = beside({"mae": (x, Provenance("base", "b" * 64, {"pool": "centre"}))}, "c")
    with pytest.raises(ModelMismatch, match="base bbbbbbbb"):
        stack([one, other])


@pytest.mark.parametrize("how", [how for how in CORRECTIONS if how != "none"])
def test_every_brain_is_corrected_by_itself_alone(how):
    x, groups = two_brains()
    both = correct_by_group(x, groups, how)
    changed = x.copy()
    changed[60:] *= 7
    assert np.array_equal(correct_by_group(changed, groups, how)[:60], both[:60])
    assert np.abs(both[:60].mean(axis=0)).max() < 1e-5
    if how != "centre":
        assert np.allclose(both[:60], both[60:], atol=1e-3)


def test_whitening_leaves_unit_covariance_and_the_columns_in_place():
    x, groups = two_brains()
    white = correct_by_group(x, groups, "whiten")[:60]
    was = np.linalg.eigvalsh(np.cov(x[:60].T, bias=True))
    wanted = was / (0.99 * was + 0.01 * was.mean())  # one, but for the shrinkage where there is no variance
    assert np.allclose(np.linalg.eigvalsh(np.cov(white.T, bias=True)), wanted, atol=1e-4)
    centred = x[:60] - x[:60].mean(axis=0)
    assert (np.sum(white * centred, axis=0) > 0).all()


def test_constant_columns_become_zero_and_not_nan():
    x = np.full((4, 2), 3, np.float32)
    for how in ("centre", "standardise", "whiten"):
        assert np.array_equal(correct_by_group(x, np.zeros(4, int), how), np.zeros((4, 2)))


def test_what_is_refused():
    x = np.ones((3, 4), np.float32)
    groups = np.zeros(3, int)
    bad = x.copy()
    bad[1, 2] = np.nan
    with pytest.raises(
        CanvasError, match=r"NaN or infinite values in 1 of 3 rows, first in row 2, column 3 .*mae"
    ):
        FeatureSet(bad, {"lab": slice(0, 2), "mae": slice(2, 4)}, groups)
    with pytest.raises(CanvasError, match="overlaps"):
        FeatureSet(x, {"lab": slice(0, 3), "mae": slice(2, 4)}, groups)
    with pytest.raises(CanvasError, match="expected a part of the 4 columns"):
        FeatureSet(x, {"mae": slice(0, 5)}, groups)
    with pytest.raises(CanvasError, match="correction is 'log'"):
        correct_by_group(x, groups, "log")
