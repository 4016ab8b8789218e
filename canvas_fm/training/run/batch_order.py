"""Order of crops in a training, a function of seed and step alone; interface of batches."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64
from torch import Tensor

CropIndices = Int64[np.ndarray, " rows"]
Batch = tuple[Tensor, ...]  # crops as stored, their windows, and labels where there are some


@runtime_checkable
class Batches(Protocol):
    """Protocol: source of a training's batches."""

    def along(self, order: Iterator[CropIndices], first: int = 0) -> Generator[Batch]:
        """Crops on the device for each set of rows, in order; `first` is the step of the first set."""
        ...


def batch_order(crops: int, batch: int, seed: int, first: int, last: int) -> Iterator[CropIndices]:
    """Rows of the optimizer batches `first` to `last` − 1: one permutation an epoch.

    Batches run across the end of an epoch, so the place in the data is the step alone.
    """
    current: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))
    for step in range(first, last):
        parts, position, missing = [], step * batch, batch
        while missing:
            epoch, start = divmod(position, crops)
            if current[0] != epoch:
                current = epoch, np.random.default_rng([seed, epoch]).permutation(crops)
            parts.append(current[1][start : start + missing])
            position += len(parts[-1])
            missing -= len(parts[-1])
        yield np.concatenate(parts)


def volume_order(
    first_rows: Int64[np.ndarray, " rows"], batch: int, volumes: int, seed: int, first: int, last: int
) -> Iterator[CropIndices]:
    """Rows of the batches `first` to `last` − 1, each of `volumes` random volumes with equally many rows.

    Volume v has the rows `first_rows[v]` to `first_rows[v + 1]` − 1; no row comes twice in a batch.
    """
    starts, counts = first_rows[:-1], np.diff(first_rows)
    for step in range(first, last):
        random = np.random.default_rng([seed, step])
        chosen = random.choice(len(counts), volumes, replace=False)
        rows = [starts[v] + random.choice(counts[v], batch // volumes, replace=False) for v in chosen]
        yield np.concatenate(rows)
