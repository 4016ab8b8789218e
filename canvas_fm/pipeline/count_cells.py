"""Cells of volumes in one call: detected, refined, counted by brain and region, with a figure."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.analysis.regions.atlas import Atlas
from canvas_fm.analysis.regions.cells_per_region import RegionCounts, count_regions, region_volumes
from canvas_fm.data.dataset.unique_names import unique_names
from canvas_fm.data.points.points import Points
from canvas_fm.data.points.sidecar import read_sidecar
from canvas_fm.data.points.tables import write_table
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError
from canvas_fm.files.checksum import sha256
from canvas_fm.heads.refine.apply.apply import refine
from canvas_fm.heads.refine.counts.refined_count import RECALL_COMMAND, mark_counted, with_count
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.inference.detect.detect import detect
from canvas_fm.inference.embed.point_crops import volume_identity
from canvas_fm.models.load_model import Detector
from canvas_fm.pipeline.count_figure import count_figure
from canvas_fm.version import __version__

_log = logging.getLogger(__name__)

DETECTIONS = "detections"
_COUNT, _TOTALS = "count ", ("count", "count_low", "count_high")
_WIDE = 2.0  # an interval whose upper end is so many times its lower one hardly tells brains apart


def count(
    volumes: Sequence[Volume],
    detector: Detector,
    out: str | Path,
    *,
    refiner: Refiner | None = None,
    atlas: Atlas | Sequence[Atlas] | None = None,
    placing: dict[str, Any] | None = None,
    figure: str | Path | None = None,
    overwrite: bool = False,
    about: Mapping[str, str] | None = None,
    **options: Any,
) -> dict[str, np.ndarray]:
    """Count the cells of each volume, per region of an atlas if there is one; writes and returns the table.

    `atlas` is one of all volumes, or one a volume in their order: registered brains have one each.
    The cells of each volume are kept in the folder OUT.cells, where the same call resumes; a table or figure
    that was made otherwise is refused unless `overwrite`. With a refiner the
    count is the sum of P(cell) with its 90 % interval (of all cells where the candidates' recall is known);
    without, it is by the cells per detection of that detector on held-out brains. Where these were not
    measured, for another detector or threshold, it is the number of detections, and the interval is blank.
    `options` are those of `detect`; `placing` those of `place`. What the counts were made from stands in
    OUT.json beside the table (models, volumes, cells and atlas with checksums, settings, version, `about`).
    """
    out = Path(out)
    if out.suffix.lower() != ".csv":
        raise CanvasError(f"{out}: the table of counts is a .csv")
    folder = out.with_suffix(".cells")
    atlases = _one_each(atlas, volumes)
    names = unique_names(list(volumes))
    settings = {"settings": _settings(options, placing)} | dict(about or {})
    if not overwrite:
        _check_own(out, figure, _models(detector, refiner) | _inputs(volumes, names, {}, atlases) | settings)
    folder.mkdir(parents=True, exist_ok=True)
    regions_mm3 = {id(each): region_volumes(each) for each in atlases if each is not None}
    tables: list[dict[str, np.ndarray]] = []
    kept: dict[str, str] = {}
    totals: dict[str, str] = {}
    wide: list[tuple[str, str]] = []
    for volume, name, of_volume in zip(volumes, names, atlases, strict=True):
        stem = name.replace("/", "_")
        cells_path = folder / f"{stem}.csv"
        detect(detector, volume, out=cells_path, mark=mark_counted, **options)
        # As the next run finds them, so that the refiner's inputs are the same.
        cells = Points.read(cells_path)
        if refiner is None:
            cells = with_count(cells)  # of earlier versions
        else:
            run = {
                key: value
                for key, value in options.items()
                if key in ("device", "resample", "ignore_voxel_size")
            }
            cells = refine(refiner, volume, cells, detector=None, out=folder / f"{stem}_refined.csv", **run)
        if notes := cells.meta.get("count_notes"):
            if (model := getattr(refiner, "folder_", None)) is not None:
                notes = notes.replace(RECALL_COMMAND, _recall_command(model, volume, cells_path, run))
            _log.warning("%s: %s", name, notes)
        cells_file = folder / f"{stem}{'' if refiner is None else '_refined'}.csv"
        kept[name] = sha256(cells_file)
        row = count_row(name, cells)
        totals[f"{_COUNT}{name}"] = " ".join(f"{row[key].item():.10g}" for key in _TOTALS)
        low, high = row["count_low"].item(), row["count_high"].item()
        if high > max(1.0, _WIDE * low):
            interval = f"{name} ({low:.0f} to {high:.0f})"
            wide.append((interval, _audit_command(volume, cells_file)))
        if of_volume is None:
            tables.append(row)
        else:
            spread = None if refiner is None else refiner.count_spread_
            counted = count_regions(
                cells, of_volume, channel=name, volume_mm3=regions_mm3[id(of_volume)], spread=spread,
                **{"voxel_um": volume.voxel_um, "shape_zyx": volume.shape_zyx} | (placing or {}),
            )  # fmt: skip
            tables.append(_by_region(name, counted))
    if wide:
        _log.warning(
            "the upper end of the 90 %% interval is more than twice the lower one: %s. Such a count tells "
            "brains apart only where they differ by more. Draw a sample, answer it by eye, and precision, "
            "recall and the count are measured: `%s`",
            ", ".join(interval for interval, _ in wide),
            wide[0][1],
        )
    keys = list(dict.fromkeys(key for table in tables for key in table))
    table = {key: np.concatenate([part[key] for part in tables]) for key in keys}
    made_from = _models(detector, refiner) | _inputs(volumes, names, kept, atlases) | totals | settings
    write_table(out, table, made_from | {"canvas_fm": __version__})
    if figure is not None:
        count_figure(table, figure)
    return table


def _check_own(out: Path, figure: str | Path | None, made_from: Mapping[str, str]) -> None:
    """Raise CanvasError if OUT or the figure is there and is not of the same inputs and settings."""
    stated = read_sidecar(out) if out.exists() else {}
    results = ("cells ", _COUNT, "canvas_fm")
    if stated and {key: text for key, text in stated.items() if not key.startswith(results)} == made_from:
        return
    for path in (out, *([] if figure is None else [Path(figure)])):
        if path.exists():
            raise CanvasError(
                f"{path} is there already and was not made from the same models, volumes and settings; give "
                "another name, or --overwrite to replace it"
            )


def _recall_command(refiner: Path, volume: Volume, cells: Path, run: Mapping[str, Any]) -> str:
    """The command by which these candidates are counted again with a recall that was looked up by eye."""
    out = cells.with_name(f"{cells.stem}_recall.csv")
    words = ["canvas-fm", "refine", "apply", refiner, *_opening(volume), cells, "--out", out]
    words += [f"--{name.replace('_', '-')}" for name in ("resample", "ignore_voxel_size") if run.get(name)]
    return shlex.join(map(str, words)) + " --recall FOUND CELLS"


def _audit_command(volume: Volume, cells: Path) -> str:
    out = cells.with_name(f"{cells.stem.removesuffix('_refined')}_audit.csv")
    return shlex.join(["canvas-fm", "audit", *_opening(volume), str(cells), "--out", str(out)])


def _opening(volume: Volume) -> list[str]:
    """Words of the command line that open the same volume."""
    options = volume.options
    words = [str(volume.path)]
    for name in ("t", "c"):
        words += [] if options[name] is None else [f"--{name}", str(options[name])]
    if options["voxel_um"] is not None:
        words = [*words, "--voxel-um", *(f"{um:g}" for um in volume.voxel_um)]
    return words


def _one_each(atlas: Atlas | Sequence[Atlas] | None, volumes: Sequence[Volume]) -> list[Atlas | None]:
    if isinstance(atlas, Atlas):
        atlas = [atlas]
    if atlas is None:
        return [None] * len(volumes)
    if len(atlas) == 1 < len(volumes):
        _log.warning(
            "one atlas is taken for all %d volumes, as if they lie in one space; a registered brain has "
            "one of its own: give --regions one for each",
            len(volumes),
        )
    if len(atlas) not in (1, len(volumes)):
        raise CanvasError(
            f"{len(volumes)} volumes and {len(atlas)} atlases were given; give one of all, or one a volume "
            "in their order"
        )
    return [*atlas] if len(atlas) == len(volumes) else [atlas[0]] * len(volumes)


def _models(detector: Detector, refiner: Refiner | None) -> dict[str, str]:
    identities = {"detector": detector.name, "detector_sha256": detector.sha256}
    if refiner is not None:
        name = "" if refiner.folder_ is None else Path(refiner.folder_).name
        identities |= {"refiner": name, "refiner_sha256": str(refiner.sha256_)}
    return identities


def _inputs(
    volumes: Sequence[Volume],
    names: Sequence[str],
    kept: Mapping[str, str],
    atlases: Sequence[Atlas | None],
) -> dict[str, str]:
    """Identity of each volume, its cells where `kept` has them, and the atlas' files, by sha256."""
    identities: dict[str, str] = {}
    for volume, name in zip(volumes, names, strict=True):
        identities |= {f"volume {name}": volume_identity(volume)}
        identities |= {f"cells {name}": kept[name]} if name in kept else {}
    several = len({id(atlas) for atlas in atlases}) > 1
    for name, atlas in zip(names, atlases, strict=True):
        if atlas is None:
            continue
        key = f"atlas of {name}" if several else "atlas"
        files = [path for path in atlas.files if path.is_file()]
        identities |= {key: atlas.name} | {f"{key} {path.name}": sha256(path) for path in files}
    return identities


def _settings(options: Mapping[str, Any], placing: Mapping[str, Any] | None) -> str:
    """Settings as JSON; transforms are matrices and fields, whose files `about` may name."""
    plain = {key: value for key, value in (placing or {}).items() if key != "transforms"}
    return json.dumps({"detect": dict(options), "regions": plain}, default=str, sort_keys=True)


def count_row(name: str, cells: Points) -> dict[str, np.ndarray]:
    """One row of a brain: the expected count that its header states, else its rows."""
    if "expected_cells" not in cells.meta:
        value, low, high, of = float(len(cells)), np.nan, np.nan, DETECTIONS
    else:
        value = float(cells.meta["expected_cells"])
        low, high = (float(part) for part in cells.meta["expected_cells_90"].split())
        of = cells.meta["count_of"]
    row: dict[str, Any] = {
        "brain": name,
        "count": value,
        "count_low": low,
        "count_high": high,
        "count_of": of,
    }
    return {key: np.array([value]) for key, value in row.items()}


def _by_region(name: str, counted: RegionCounts) -> dict[str, np.ndarray]:
    table = counted.table()
    table.pop("channel")
    rows = len(table["id"])
    if not counted.by_p_cell and counted.recall is None:
        table["count_of"] = np.full(rows, DETECTIONS)
    ordered = {"brain": np.full(rows, name)}
    for key, values in table.items():
        ordered[key] = values
        if key == "count" and "count_low" not in table:  # detections: how far off they are is not known
            ordered |= {"count_low": np.full(rows, np.nan), "count_high": np.full(rows, np.nan)}
    return ordered


def brain_counts(out: str | Path) -> dict[str, tuple[float, float, float]]:
    """Count of each brain, and the ends of its 90 % interval (NaN of detections), as OUT.json states them.

    They are of all cells of the volume, those outside the regions of an atlas too.
    """
    of = {key: text for key, text in read_sidecar(Path(out)).items() if key.startswith(_COUNT)}
    counts = {key.removeprefix(_COUNT): [float(part) for part in text.split()] for key, text in of.items()}
    return {name: (value, low, high) for name, (value, low, high) in counts.items()}
