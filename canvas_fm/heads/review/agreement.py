"""Agreement of annotators beyond chance: Cohen's κ of two, Fleiss' κ of several."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Int64


def cohen_kappa(a: Int64[np.ndarray, " n"], b: Int64[np.ndarray, " n"]) -> float | None:
    """κ of two annotators on the same rows; None where chance alone would make them agree."""
    if not len(a):
        return None
    kinds = np.union1d(a, b)
    agreed = float((a == b).mean())
    chance = float(sum((a == kind).mean() * (b == kind).mean() for kind in kinds))
    return None if chance >= 1 else (agreed - chance) / (1 - chance)


def fleiss_kappa(counts: Int64[np.ndarray, "n k"]) -> float | None:
    """κ of as many annotators on every row: counts of each label, (rows, labels)."""
    n = counts.sum(axis=1)
    if not len(counts) or n[0] < 2 or (n != n[0]).any():
        return None
    agreed = float(((counts * (counts - 1)).sum(axis=1) / (n * (n - 1))).mean())
    chance = float(((counts.sum(axis=0) / counts.sum()) ** 2).sum())
    return None if chance >= 1 else (agreed - chance) / (1 - chance)


def agreement(labels: Mapping[str, Mapping[int, int]]) -> dict[str, Any]:
    """κ of each pair and of all, on rows that they all called a cell or none; unsure ones are left out."""
    sure = {name: {row: label for row, label in of.items() if label >= 0} for name, of in labels.items()}
    pairs = []
    for a, b in combinations(sorted(sure), 2):
        rows = sorted(sure[a].keys() & sure[b].keys())
        both = [np.array([sure[name][row] for row in rows], np.int64) for name in (a, b)]
        pairs.append(
            {
                "annotators": [a, b],
                "rows": len(rows),
                "agree": None if not rows else float((both[0] == both[1]).mean()),
                "kappa": cohen_kappa(*both),
            }
        )
    result: dict[str, Any] = {"pairs": pairs}
    if len(sure) > 2:
        rows = sorted(set.intersection(*(set(of) for of in sure.values())))
        cells = np.array([sum(of[row] == 1 for of in sure.values()) for row in rows], np.int64)
        counts = np.stack([cells, len(sure) - cells], axis=1)
        result["fleiss"] = {"rows": len(rows), "kappa": fleiss_kappa(counts)}
    return result
