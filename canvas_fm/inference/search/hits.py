"""Search results: rows, distances, and the cells as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64, Shaped

from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError

Describe = Callable[[Sequence[int]], list[dict[str, Any]]]

_DESCRIBED = 8192  # cells at a time, so that freeing them takes no long moment


@dataclass(frozen=True)
class Hits:
    """Nearest rows of each query, nearest first; −1 and infinity beyond the last.

    A distance is 1 − cos for metric cosine, Euclidean for l2. Of `like` it is the mean distance to the
    examples, and the order is that of `scores`: mean distance to the counter-examples less that.
    """

    rows: Int64[np.ndarray, "q k"]
    distances: Float32[np.ndarray, "q k"]
    scores: Float32[np.ndarray, "q k"] | None = None

    def table(self, describe: Describe) -> list[dict[str, Any]]:
        """One dictionary a hit: `query`, `rank` from 1, `distance`, then the cell by `Index.describe`."""
        queries, ranks = np.nonzero(self.rows >= 0)
        out = []
        for start in range(0, len(queries), _DESCRIBED):
            block = slice(start, start + _DESCRIBED)
            cells = describe(self.rows[queries[block], ranks[block]].tolist())
            for query, rank, cell in zip(queries[block].tolist(), ranks[block].tolist(), cells, strict=True):
                line = {"query": query, "rank": rank + 1, "distance": float(self.distances[query, rank])}
                if self.scores is not None:
                    line["likeness"] = float(self.scores[query, rank])
                out.append(line | cell)
        return out

    def write(self, describe: Describe, path: str | Path) -> None:
        """Write the table as .csv or .parquet points: z, y, x in voxels of each brain, then the rest."""
        table = self.table(describe)
        if not table:
            raise CanvasError(f"there is no hit to write to {path}")
        zyx = np.array([[line[axis] for axis in "zyx"] for line in table])
        names = dict.fromkeys(name for line in table for name in line if name not in ("z", "y", "x"))
        Points(zyx, {name: _column([line.get(name) for line in table]) for name in names}).write(path)


def _column(values: list[Any]) -> np.ndarray:
    """A column: numbers with NaN, or text with '', where a cell has no value."""
    if any(isinstance(value, str) for value in values):
        return np.array(["" if value is None else str(value) for value in values])
    if None in values:
        return np.array([np.nan if value is None else float(value) for value in values])
    return np.array(values)


def pooling_name(pool: str, layer: int | None) -> str:
    """Pooling and layer of vectors as text."""
    return f"pool {pool}" if layer is None else f"pool {pool} after block {layer}"


def without(
    rows: Int64[np.ndarray, "q m"],
    squared: Float32[np.ndarray, "q m"],
    exclude: Int64[np.ndarray, " e"],
    k: int,
) -> tuple[Int64[np.ndarray, "q k"], Float32[np.ndarray, "q k"]]:
    """k of k + 1 hits: without the excluded row, or without the last."""
    if exclude.shape != (len(rows),):
        raise CanvasError(f"{len(exclude)} rows to leave out for {len(rows)} queries; give one for each")
    drop = rows == exclude[:, None]
    drop[~drop.any(axis=1), -1] = True
    keep = ~drop
    return rows[keep].reshape(-1, k), squared[keep].reshape(-1, k)


def padded(values: Shaped[np.ndarray, " n"], k: int, fill: float) -> Shaped[np.ndarray, "1 k"]:
    """Values as one row, filled to k with `fill`."""
    out = np.full((1, k), fill, values.dtype)
    out[0, : len(values)] = values
    return out


def rising(
    quantiles: Float32[np.ndarray, " n"],
) -> tuple[Float32[np.ndarray, " m"], Float64[np.ndarray, " m"]]:
    """Distances and shares for interpolation: of equal distances the highest share."""
    shares = np.linspace(0, 1, len(quantiles))
    last = np.append(np.diff(quantiles) > 0, True)
    return quantiles[last], shares[last]
