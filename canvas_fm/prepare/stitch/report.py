"""What stitching did: numbers, and the overlap that moved most before and after."""

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
    one = a.volume.read(tuple(low - a.position_zyx), tuple(size))[0]
    shown = [(b.volume.read(tuple(low - b.position_zyx - by), tuple(size))[0]) for by in (0 * shift, shift)]
    _draw(one, shown, f"{a.name} (green) and {b.name} (magenta), plane {low[0]}", stem)


def _draw(one: np.ndarray, shown: Sequence[np.ndarray], title: str, stem: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    low, high = np.percentile(one, (1, 99.8))
    first = np.clip((one - low) / max(high - low, 1e-6), 0, 1)
    for axis, other, name in zip(figure.subplots(1, 2), shown, ("as stated", "registered"), strict=True):
        second = np.clip((other - low) / max(high - low, 1e-6), 0, 1)
        axis.imshow(np.stack([second, first, second], axis=-1), interpolation="nearest")
        axis.set_title(name)
        axis.set_axis_off()
    figure.suptitle(title.replace("$", r"\$"), fontsize=9)
    path = stem.with_name(stem.name + ".stitch.png")
    write_atomic(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))
