"""A refiner among scikit-learn's tools: a plain array, cross-validation by brains, routed groups."""

import numpy as np
import pytest
import sklearn
from sklearn.model_selection import GroupKFold, cross_val_score

from canvas_fm.heads.refine.refiner import Refiner


@pytest.fixture
def cells():
    random = np.random.default_rng(0)
    x = random.normal(size=(120, 6)).astype(np.float32)
    is_cell = random.permutation(120) % 2
    x[:, 0] += 8 * is_cell  # far apart: no verdict hangs on a few cells
    return x, is_cell, np.repeat(np.arange(4), 30)


def test_it_fits_on_one_plain_array(cells):
    x, y, _ = cells
    assert Refiner().fit(x, y).score(x, y) > 0.9


def test_groups_split_and_reach_the_refiner(cells):
    x, y, groups = cells
    assert min(cross_val_score(Refiner(), x, y, groups=groups, cv=GroupKFold(2))) > 0.8
    seen = []

    class Noting(Refiner):
        def fit(self, X, y, *, groups=None):
            seen.append(set(groups.tolist()))
            return super().fit(X, y, groups=groups)

    with sklearn.config_context(enable_metadata_routing=True):
        refiner = Noting().set_fit_request(groups=True)
        scores = cross_val_score(
            refiner, x, y, params={"groups": groups}, cv=GroupKFold(2), error_score="raise"
        )
    assert min(scores) > 0.8
    assert len(seen) == 2
    assert seen[0].isdisjoint(seen[1])  # each fit is of the two brains that the other leaves out
