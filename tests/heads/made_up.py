"""Features of cells and of none that nobody has seen, for tests of the refiner."""

from __future__ import annotations

import numpy as np

from canvas_fm.heads.features.feature_set import FeatureSet, Provenance
from canvas_fm.heads.refine.refiner import Refiner

BLOCKS = {"detector": slice(0, 10), "mae": slice(10, 30)}
MADE = {
    "detector": Provenance("det", "d" * 64, {"bins": 2}),
    "mae": Provenance("base", "a" * 64, {"pool": "centre"}),
}


def cells(brains: int = 4, n: int = 120, seed: int = 0) -> tuple[FeatureSet, np.ndarray]:
    """Two blocks that each tell half of what a cell is, among noise; brains differ by an offset."""
    random = np.random.default_rng(seed)
    is_cell = random.random(brains * n) < 0.4
    x = random.normal(size=(brains * n, 30)).astype(np.float32)
    x[:, 2] += 2 * is_cell
    x[:, 12] += 2 * is_cell
    groups = np.repeat([f"brain {number}" for number in range(brains)], n)
    x += 0.2 * random.normal(size=(brains, 1))[np.repeat(np.arange(brains), n)].astype(np.float32)
    return FeatureSet(x, BLOCKS, groups, MADE), is_cell


def p_cell(refiner: Refiner, features) -> np.ndarray:
    return refiner.predict_proba(features)[:, 1]
