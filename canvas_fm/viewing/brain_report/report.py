"""One self-contained, printable page from the tables that `regions`, `evaluate` and `groups` wrote."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

from canvas_fm.analysis.regions.atlas import Atlas
from canvas_fm.data.points.points import Points
from canvas_fm.data.points.sidecar import warn_if_changed
from canvas_fm.data.points.tables import text_rows
from canvas_fm.errors import CanvasError, counted
from canvas_fm.evaluation.page.html import png_data, render
from canvas_fm.files.atomic import write_text_atomic
from canvas_fm.files.checksum import sha256
from canvas_fm.files.shipped import find
from canvas_fm.version import __version__
from canvas_fm.viewing.brain_report.planes import largest_density, planes_png

_ROWS = 30  # regions of a table on the page
_Q = 0.05
_FOLDS, _DENSITIES = ("log2_fold", "log2_fold_low", "log2_fold_high"), ("density_first", "density_second")
_NAMED = 3  # regions or brains in the sentence that a page begins with
_FIGURES = {
    "volcano": "Volcano plot",
    "heat_map": "Regions by brains",
    "profiles": "What the cells look like",
}
_CITED = (
    "CANVAS: arXiv 2603.29842",
    "Allen Mouse Brain Common Coordinate Framework: Wang et al., Cell 181 (2020), where it is used",
    "brainreg and BrainGlobe: Tyson et al., Scientific Reports 12 (2022), where their output is used",
)


def brain_report(
    regions: Sequence[str | Path],
    out: str | Path,
    *,
    title: str = "Cells per region",
    names: Sequence[str] = (),
    atlases: Iterable[Atlas] | None = None,
    cells: Sequence[str | Path] = (),
    scores: Sequence[str | Path] = (),
    models: Sequence[str | Path] = (),
    groups: str | Path | None = None,
    figures: Sequence[str | Path] = (),
    settings: str = "",
) -> Path:
    """Write the page. `regions` are tables of `canvas-fm regions`, one a brain, with its .json beside it.

    `names` are the brains'; default: those of the files. `cells` (of `regions --cells-out`) are drawn on the
    borders and densities of `atlases`, one of each a table. `scores` are JSON reports of `evaluate`, `models`
    detectors and refiners, `groups` is the table of `canvas-fm groups`, `figures` are PNG files, and
    `settings` is text to be shown as it is.
    """
    if bool(cells) != (atlases is not None):
        raise CanvasError("cells are drawn on an atlas: give --cells and --atlas together")
    if cells and len(cells) != len(regions):
        raise CanvasError(
            f"{counted(len(cells), 'table')} of cells and {len(regions)} of regions; expected one "
            "of cells for each"
        )
    if names and len(names) != len(regions):
        raise CanvasError(
            f"{counted(len(names), 'name')} for {counted(len(regions), 'table')} of regions; "
            "expected one for each"
        )
    densities = [_densities(Path(table)) for table in regions]
    most = max((largest_density(density) for density in densities), default=0.0)
    pictures = [
        png_data(planes_png(atlas, _positions(table, atlas), density, most))
        for density, table, atlas in zip(densities, cells, atlases or (), strict=bool(cells))
    ]
    files = [*regions, *scores, *([groups] if groups else []), *figures, *cells]
    brains = [
        region_rows(Path(path)) | {"name": name, "planes": picture}
        for path, name, picture in zip_longest(regions, names or _names(regions), pictures)
    ]
    compared = None if groups is None else group_rows(Path(groups))
    page = render(
        "viewing/brain_report/page.html",
        title=title,
        conclusion=conclusion_of(
            [(f"{one['name']}, {row['name']}:", row["count"]) for one in brains for row in one["rows"][:1]],
            compared,
        ),
        brains=brains,
        scores=[_score(Path(path)) for path in scores],
        models=[model_rows(path) for path in models],
        settings=settings,
        groups=compared,
        figures=[{"name": _heading(Path(path).stem), "png": _png(Path(path))} for path in figures],
        files=[{"path": _from(Path(out), path), "sha256": sha256(Path(path))} for path in files],
        version=__version__,
        cited=_CITED,
    )
    write_text_atomic(Path(out), page)
    return Path(out)


def conclusion_of(counts: Sequence[tuple[str, str]], groups: Mapping[str, Any] | None) -> str:
    """Conclusion of a page: which regions differ between groups, else the cells of each brain.

    `counts` are name and count as the page shows them, `groups` is what `group_rows` gives.
    """
    if groups is not None and groups["tested"]:
        found, tested = groups["found"], groups["tested"]
        if not found:
            return (
                f"None of {counted(tested, 'region')} differs between the groups at a false "
                "discovery rate of 5 %."
            )
        first = [row for row in groups["rows"] if row["differs"]][:_NAMED]
        named = "; ".join(f"{row['name']} {row['fold']} times ({row['pair']})" for row in first)
        rest = f"; {found - len(first)} more" if found > len(first) else ""
        return (
            f"{found} of {tested} regions {'differs' if found == 1 else 'differ'} between the groups in the "
            f"density of cells: {named}{rest}."
        )
    named = "; ".join(
        f"{name} {count} {'cell' if count == '1' else 'cells'}" for name, count in counts[:_NAMED]
    )
    rest = f"; {counted(len(counts) - _NAMED, 'more brain')} below" if len(counts) > _NAMED else ""
    return f"{named}{rest}." if named else ""


def _heading(stem: str) -> str:
    """The title over a figure, from the name of its file."""
    words = stem.replace("_", " ")
    return _FIGURES.get(stem, words[:1].upper() + words[1:])


def _from(out: Path, path: str | Path) -> str:
    """A path as seen from the page's folder or the one above it, elsewhere as it was given."""
    full, root = Path(path).resolve(), out.resolve().parent
    for folder in (root, root.parent):
        if full.is_relative_to(folder):
            return str(full.relative_to(folder))
    return str(path)


def _names(regions: Sequence[str | Path]) -> list[str]:
    """The tables' names; those of their folders where tables are called alike."""
    stems = [Path(path).stem for path in regions]
    return stems if len(set(stems)) == len(stems) else [Path(path).resolve().parent.name for path in regions]


def _densities(regions: Path) -> dict[int, float]:
    """Density of each region of a brain, in its first channel."""
    rows = [row for row in text_rows(regions) if row.get("hemisphere", "both") == "both"]
    first = rows[0].get("channel") if rows else None
    return {
        int(row["id"]): float(row["density"] or "nan")
        for row in rows
        if row.get("channel") == first and row.get("id") and "density" in row
    }


def model_rows(model: str | Path) -> dict[str, Any]:
    """A detector or refiner as a page shows it: identity, threshold, cross-validated scores of a refiner."""
    folder = find("model", model)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    pooled = (config.get("cross_validation") or {}).get("pooled") or {}
    wanted = {"threshold": config.get("threshold"), "voxel_um": config.get("voxel_um")} | {
        name: pooled.get(key)
        for name, key in (
            ("F1, cross-validated", "f1"), ("AUC", "auc"), ("calibration error", "calibration_error"),
        )
    }  # fmt: skip
    shown = {
        key: f"{value:.3g}" if isinstance(value, float) else value
        for key, value in wanted.items()
        if value is not None
    }
    identity = {key: config.get(key, "") for key in ("kind", "sha256")}
    return {"name": folder.name, **identity, "facts": shown}


def region_rows(path: Path) -> dict[str, Any]:
    """The largest regions of a table that `regions` wrote, as a page shows them."""
    rows = text_rows(path)
    if not rows or not {"name", "count", "volume_mm3", "density"} <= set(rows[0]):
        raise CanvasError(f"{path} is no table of regions; give one that canvas-fm regions wrote")
    both = [row for row in rows if row.get("hemisphere", "both") == "both"]
    warn_if_changed(path)
    about = _stated(Path(f"{path}.json"))
    with _numbers_of(path, "regions"):
        most = sorted(both, key=lambda row: -float(row["count"] or 0))[:_ROWS]
        densest = max(
            (float(row["density"]) for row in most if row["density"] not in ("", "nan")), default=1.0
        )
        shown = [_row(row, densest) for row in most]
    return {
        "name": path.stem,
        "rows": shown,
        "regions": len({row.get("id") for row in both}),
        "intervals": bool(rows[0].get("count_low")),
        "about": about,
    }


@contextmanager
def _numbers_of(path: Path, verb: str) -> Iterator[None]:
    """Context manager: what is no number in a table, or a column that lacks, as an error with its path."""
    try:
        yield
    except (ValueError, KeyError, OverflowError) as problem:
        raise CanvasError(
            f"{path} cannot be shown ({problem}); give the table as canvas-fm {verb} wrote it"
        ) from problem


def _stated(path: Path) -> dict[str, Any]:
    """Atlas and channels of a table by its sidecar; empty where there is none."""
    stated: Any = {}
    if path.is_file():
        try:
            stated = json.loads(path.read_text(encoding="utf-8"))
            for channel in stated.get("channels", {}).values():
                _ = (
                    [f"{channel[key]:,}" for key in ("points", "outside_atlas", "in_no_region")],
                    channel["count_of"],
                )
        except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as problem:
            raise CanvasError(
                f"{path} is damaged, or not of its table ({problem}); write the table anew with "
                "canvas-fm regions, or move that file away"
            ) from problem
    return {"atlas": None, "channels": {}} | stated


def _row(row: dict[str, str], densest: float) -> dict[str, Any]:
    density = float(row["density"]) if row["density"] not in ("", "nan") else None
    low, high = row.get("count_low") or "nan", row.get("count_high") or "nan"
    return {
        "name": row["name"],
        "channel": row.get("channel", ""),
        "count": f"{float(row['count']):,.0f}",
        "interval": "" if "nan" in (low, high) else f"{float(low):,.0f} to {float(high):,.0f}",
        "volume": f"{float(row['volume_mm3']):.3f}",
        "density": "" if density is None else f"{density:,.0f}",
        "share": 0.0 if density is None or densest <= 0 else density / densest,
    }


def _score(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise CanvasError(f"{path} cannot be read as JSON: {problem}") from problem
    if not isinstance(held, dict):
        raise CanvasError(f"{path} holds no scores; give a JSON report that evaluate --out wrote")
    keys = ("f1", "precision", "recall", "pq", "rq", "sq", "tp", "fp", "fn")
    return {"name": path.stem, "values": {key: held[key] for key in keys if held.get(key) is not None}}


def group_rows(path: Path) -> dict[str, Any]:
    """The regions of a table that `groups` wrote with the smallest p-values, as a page shows them."""
    rows = text_rows(path)
    if not rows or "q_value" not in rows[0]:
        raise CanvasError(f"{path} is no table of groups; give one that canvas-fm groups wrote")
    with _numbers_of(path, "groups"):
        order = sorted(rows, key=lambda row: float(row["p_value"] or "inf"))
        shown = [
            {key: f"{float(row[key]):.2g}" if row[key] else "" for key in ("p_value", "q_value")}
            | {key.removeprefix("log2_"): f"{2 ** float(row[key]):.2f}" for key in _FOLDS}
            | {key: f"{float(row[key]):,.0f}" if row.get(key) else "" for key in _DENSITIES}
            | {"name": row["name"], "pair": f"{row['second']} over {row['first']}"}
            | {"differs": float(row["q_value"] or "inf") < _Q}
            for row in order[:_ROWS]
        ]
        found = sum(float(row["q_value"] or "inf") < _Q for row in rows)
    return {"rows": shown, "tested": len(rows), "found": found}


def _positions(path: str | Path, atlas: Atlas) -> Any:
    """Positions in µm on the atlas' grid: of a registration with fields that is the sample's."""
    import numpy as np

    points = Points.read(path)
    space = "grid" if atlas.on_sample and atlas.to_atlas is not None else "atlas"
    names = [f"{space}_{axis}_um" for axis in "zyx"]
    if any(name not in points.columns for name in names):
        raise CanvasError(f"{path} has no column {names[0]}; give what `canvas-fm regions --cells-out` wrote")
    with _numbers_of(Path(path), "regions --cells-out"):
        return np.stack([points.columns[name].astype(np.float64) for name in names], axis=1)


def _png(path: Path) -> str:
    held = path.read_bytes()
    if not held.startswith(b"\x89PNG"):
        raise CanvasError(f"{path} is no PNG; figures of a report are PNG files")
    return png_data(held)
