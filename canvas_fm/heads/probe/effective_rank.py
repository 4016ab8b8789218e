"""Effective rank of embeddings, which is low for a collapsed encoder."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def effective_rank(x: Float[np.ndarray, "n d"]) -> float:
    """exp of the entropy of the normalised singular values of centred rows (Roy and Vetterli 2007).

    Between 1 and min(n − 1, d); 0 where nothing varies. The covariance's eigenvalues are used, so memory goes
    by d² and not by n · d.
    """
    centred = x - x.mean(axis=0, dtype=np.float64)
    values = np.linalg.eigvalsh(centred.T @ centred)
    singular = np.sqrt(np.clip(values, 0.0, None))
    # The square root of rounding errors is not small: what lies below them is no direction.
    singular = singular[singular > singular.max(initial=0.0) * 1e-6]
    if not len(singular):
        return 0.0
    share = singular / singular.sum()
    return float(np.exp(-(share * np.log(share)).sum()))
