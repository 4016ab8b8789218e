"""Deprecated import path and arguments of `ResumableTiles`, kept for scripts written before 0.3."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.inference.detect.tiles.resumable_tiles import ResumableTiles


class TileWork(ResumableTiles):
    """Deprecated: `ResumableTiles` of `detect.tiles.resumable_tiles`, with the earlier arguments."""

    suffix = ".npz"

    def __init__(self, out: Path, inputs: dict[str, Any], digest: str, tiles: int) -> None:
        warnings.warn(
            "TileWork is called ResumableTiles, in canvas_fm.inference.detect.tiles.resumable_tiles",
            DeprecationWarning,
            stacklevel=2,
        )
        super().__init__(out, inputs, digest, tiles)

    def keep(  # type: ignore[override]
        self,
        number: int,
        zyx: np.ndarray,
        score: np.ndarray,
        features: np.ndarray,
        bad_chunks: Sequence[str],
    ) -> None:
        """Store the result of a tile."""
        super().keep(number, {"zyx": zyx, "score": score, "features": features}, bad_chunks)

    def remaining(self) -> list[int]:
        """Numbers of the tiles that are missing or damaged, which have to be computed."""
        done = self.done()
        return [number for number in range(self.tiles) if number not in done]
