"""Report of a stitching: numbers, and the overlap that moved most before and after."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.files.atomic import write_atomic, write_text_atomic
from canvas_fm.prepare.stitch.offsets import Solution
from canvas_fm.prepare.stitch.tiles import Tile

_SIDE = 384  # voxels of the overlap that is shown


def report_stitching(summary: dict[str, Any], tiles: Sequence[Tile], solution: Solution, stem: Path) -> None:
    """Write `STEM.stitch.json`, and `.png` where any overlap was registered."""
    pairs = [
        {
            "tiles": [tiles[pair.first].name, tiles[pair.second].name],
            "shift_zyx": list(pair.shift_zyx),
            "correlation": pair.correlation,
            "used": pair in solution.used,
        }
        for pair in (*solution.used, *solution.dropped)
    ]
    content = json.dumps({**summary, "pairs": pairs}, indent=1) + "\n"
    write_text_atomic(stem.with_name(stem.name + ".stitch.json"), content)
    if not solution.used:
        return
    worst = max(solution.used, key=lambda pair: float(np.linalg.norm(pair.shift_zyx)))
    a, b = tiles[worst.first], tiles[worst.second]
    low = np.maximum(a.position_zyx, b.position_zyx)
    size = np.minimum(np.minimum(a.stop_zyx, b.stop_zyx) - low, (1, _SIDE, _SIDE))
    low[0] += (min(a.stop_zyx[0], b.stop_zyx[0]) - low[0]) // 2
    shift = np.rint(worst.shift_zyx).astype(int)
    fixed = _part(a, low, size)
    shown = [_part(b, low - by, size) for by in (0 * shift, shift)]
    _draw(fixed, shown, f"{a.name} (green) and {b.name} (magenta), plane {low[0]}", stem)


def _part(tile: Tile, low: np.ndarray, size: np.ndarray) -> np.ndarray:
    """A part of one plane of a tile, zero outside; planes of TIFF are decoded as a whole anyway."""
    z, y, x = (int(n) for n in low - tile.position_zyx)
    plane = tile.volume.read((z, 0, 0), (1, *tile.volume.shape_zyx[1:]))[0]
    before = max(0, -y), max(0, -x)
    padded = np.pad(plane, [(before[0], int(size[1])), (before[1], int(size[2]))])
    y, x = y + before[0], x + before[1]
    return padded[y : y + size[1], x : x + size[2]]


def _draw(fixed: np.ndarray, shown: Sequence[np.ndarray], title: str, stem: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    low, high = np.percentile(fixed, (1, 99.8))
    first = np.clip((fixed - low) / max(high - low, 1e-6), 0, 1)
    for axis, other, name in zip(figure.subplots(1, 2), shown, ("as stated", "registered"), strict=True):
        second = np.clip((other - low) / max(high - low, 1e-6), 0, 1)
        axis.imshow(np.stack([second, first, second], axis=-1), interpolation="nearest")
        axis.set_title(name)
        axis.set_axis_off()
    figure.suptitle(title.replace("$", r"\$"), fontsize=9)
    path = stem.with_name(stem.name + ".stitch.png")
    write_atomic(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))
