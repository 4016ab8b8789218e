"""Sidecar of a table of regions: its inputs as JSON; and the cells with their regions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.analysis.regions.atlas import Atlas
from canvas_fm.analysis.regions.cells_per_region import RegionCounts
from canvas_fm.data.points.points import Points
from canvas_fm.data.points.tables import joined
from canvas_fm.errors import CanvasError
from canvas_fm.files.atomic import write_text_atomic
from canvas_fm.files.checksum import sha256
from canvas_fm.heads.refine.counts.count_interval import MeasuredCount, Recall
from canvas_fm.version import __version__


def write_sidecar(
    counts: Sequence[RegionCounts], atlas: Atlas, cells: Sequence[str | Path], out: str | Path
) -> dict[str, Any]:
    """Write OUT.json: files with checksums, atlas, cells inside and outside; returns the same."""
    channels = {
        region_counts.channel: {
            "cells": str(path),
            "sha256": sha256(Path(path)),
            "points": len(region_counts.placed.row),
            "outside_atlas": region_counts.placed.outside,
            "in_no_region": region_counts.placed.unlabelled,
            "counts_are": _kind_of_counts(region_counts),
            "count_of": region_counts.count_of,
            "candidate_recall": _fields(region_counts.recall, Recall),
            ("p_cell" if region_counts.by_p_cell else "detections") + "_per_cell": _fields(
                region_counts.recall, MeasuredCount
            ),
        }
        for region_counts, path in zip(counts, cells, strict=True)
    }
    about: dict[str, Any] = {
        "written": str(out),
        "table_sha256": sha256(Path(out)),
        "atlas": atlas.name,
        "atlas_kind": atlas.kind,
        "atlas_voxel_um": list(atlas.voxel_um),
        "regions": len(atlas.tree),
        "channels": channels,
        "files": {str(file): sha256(file) for file in atlas.files if file.is_file()},
        "canvas_fm": __version__,
    }
    write_text_atomic(Path(f"{out}.json"), json.dumps(about, indent=2) + "\n")
    return about


def _kind_of_counts(counts: RegionCounts) -> str:
    """What the counts are sums of."""
    if counts.by_p_cell:
        return "sum of P(cell)"
    return "rows" if counts.recall is None else "rows, by the cells per detection of held-out brains"


def _fields(known: Recall | MeasuredCount | None, kind: type) -> dict[str, Any] | None:
    return known._asdict() if known is not None and isinstance(known, kind) else None


def write_cells(counts: Sequence[RegionCounts], points: Sequence[Points], out: str | Path) -> None:
    """Write all cells with the columns channel, region_id, region (acronym), hemisphere and position in µm.

    `atlas_z_um`, `atlas_y_um`, `atlas_x_um` lie in the atlas where the registration says how to get there,
    and `grid_z_um`, `grid_y_um`, `grid_x_um` on the grid of its labels; else the former lie on that grid.
    """
    in_um = {f"{space}_{axis}_um" for space in ("atlas", "grid") for axis in "zyx"}
    taken = {"channel", "region_id", "region", "hemisphere"} | in_um
    columns = [name for name in points[0].columns if all(name in table.columns for table in points)]
    if clash := [name for name in columns if name in taken]:
        raise CanvasError(f"the cells have a column {clash[0]!r} already; leave it out to write it anew")
    sides = np.array(["", "left", "right"])
    parts: list[dict[str, np.ndarray]] = []
    for region_counts, cells in zip(counts, points, strict=True):
        tree, row = region_counts.atlas.tree, region_counts.placed.row
        acronyms = np.array([*(region.acronym for region in tree.regions), ""])
        own = region_counts.atlas.to_atlas if region_counts.atlas.on_sample else None
        spaces = {"atlas": region_counts.placed.um if own is None else own(region_counts.placed.um)}
        spaces |= {} if own is None else {"grid": region_counts.placed.um}
        parts.append(
            {name: cells.columns[name] for name in columns}
            | {"channel": np.full(len(row), region_counts.channel), "region_id": np.append(tree.ids, 0)[row]}
            | {"region": acronyms[row], "hemisphere": sides[region_counts.placed.side]}
            | {
                f"{space}_{axis}_um": np.round(um[:, at], 2)
                for space, um in spaces.items()
                for at, axis in enumerate("zyx")
            }
        )
    table = joined(parts)
    Points(np.concatenate([cells.zyx for cells in points]), table, dict(points[0].meta)).write(out)
