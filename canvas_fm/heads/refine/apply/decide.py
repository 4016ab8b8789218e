"""P(cell) and the decision of a refiner from precomputed features."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32

from canvas_fm.heads.features.extractor import Extractor
from canvas_fm.heads.refine.refiner import Refiner


def p_cell(
    refiner: Refiner, extractor: Extractor, blocks: dict[str, np.ndarray], brain: str
) -> Float32[np.ndarray, " n"]:
    """P(cell) of the candidates of one brain from the features of each block."""
    return refiner.predict_proba(extractor.together(blocks, brain))[:, 1].astype(np.float32)


def is_cell(refiner: Refiner, p_cell: Float32[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Whether each P(cell) reaches the refiner's threshold."""
    return p_cell.astype(np.float64) >= float(refiner.threshold_)
