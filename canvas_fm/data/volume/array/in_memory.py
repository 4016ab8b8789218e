"""Voxels in memory behind the interface of a volume's source."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num

from canvas_fm.data.store.checked_store import BadChunks
from canvas_fm.data.zyx import Zyx


class InMemory:
    """Boxes of an array in memory, which can neither be damaged nor change."""

    fill = 0
    files: tuple[Path, ...] = ()

    def __init__(self, voxels: Num[np.ndarray, "z y x"]) -> None:
        self.voxels, self.dtype = voxels, voxels.dtype
        z, y, x = voxels.shape
        self.shape_zyx: Zyx = (z, y, x)
        self.chunk_zyx: Zyx = (min(z, 32), min(y, 64), min(x, 64))
        self.bad = BadChunks(skip=False)

    def read(self, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        return self.voxels[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))].copy()

    def key(self, start: Sequence[int]) -> str:
        """One key for all boxes, since there is one array."""
        return ""

    def stamp(self, key: str) -> Any:
        """Identity of the voxels as a stamp."""
        return self.sha256()

    def sha256(self) -> str:
        """The sha256 of the voxels."""
        return hashlib.sha256(np.ascontiguousarray(self.voxels).tobytes()).hexdigest()
