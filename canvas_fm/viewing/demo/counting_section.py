"""The demo page's sections on counted cells, one for each shipped sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from markupsafe import Markup

from canvas_fm.evaluation.page.html import png_data, render
from canvas_fm.viewing.demo.counting import HITS, SampleCount

_TISSUE = {
    "microglia": "Microglia somata of a cleared mouse brain",
    "cfos": "c-Fos positive nuclei of a cleared mouse brain",
}


def counting_sections(counts: Sequence[SampleCount]) -> Markup:
    """HTML of the sections, every value escaped, images embedded."""
    return Markup(render("viewing/demo/cells.html", counts=[_fields(count) for count in counts]))


def _fields(count: SampleCount) -> dict[str, Any]:
    voxel_um = " × ".join(map(str, cast("list[float]", count.about["voxel_um"])))
    cube, licence = Path(str(count.about["cube"])).name, str(count.about["licence"]).partition(",")[0]
    return {
        **vars(count),
        "title": f"Counted cells: sample:{count.name}",
        "tissue": f"{_TISSUE[count.name]}, 64 × 160 × 160 voxels of nominally {voxel_um} µm "
        f"(DELiVR {cube}, {licence} licence).",
        "seen": _seen(count),
        "rows": [(count.detector, count.detected), (f"{count.detector} → {count.refiner}", count.refined)],
        "low": count.interval_90[0],
        "high": count.interval_90[1],
        "hits": HITS,
        "score_png": png_data(count.score_png.read_bytes()),
        "hits_png": png_data(count.hits_png.read_bytes()),
        "commands": "\n".join(
            (
                f"canvas-fm detect {count.detector} sample:{count.name} --out cells.csv",
                f"canvas-fm refine apply {count.refiner} sample:{count.name} cells.csv --out refined.csv",
                f"canvas-fm evaluate refined.csv sample:{count.name} --tolerance-um {count.tolerance_um:g}",
                f"canvas-fm embed {count.encoder} sample:{count.name} --points refined.csv --out "
                "cells.emb.zarr",
                "canvas-fm index cells.emb.zarr --out cells.index",
                f"canvas-fm search cells.index --ids {count.query} -k {HITS}",
            )
        ),
    }


def _seen(count: SampleCount) -> str:
    if not count.trained_on_it:
        return "No shipped model was trained on this cube."
    names, have = ", ".join(count.trained_on_it), "has" if len(count.trained_on_it) == 1 else "have"
    return f"{names} {have} seen this cube in training: each F1 here says nothing about a new brain."
