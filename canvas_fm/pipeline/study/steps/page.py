"""The last step: the counts of all brains as a table, and one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.data.points.points import Points
from canvas_fm.data.points.tables import joined, write_csv
from canvas_fm.pipeline.count_cells import count_figure, count_row
from canvas_fm.pipeline.study.finished_steps import Record, inputs_sha256, read_record
from canvas_fm.pipeline.study.settings import as_yaml
from canvas_fm.pipeline.study.steps.cells import is_cell
from canvas_fm.pipeline.study.steps.study_step import StepRun
from canvas_fm.viewing.brain_report.report import group_rows, region_rows
from canvas_fm.viewing.brain_report.section import section_png
from canvas_fm.viewing.brain_report.study_page import BrainSection, StudyPage, write_study_page

_REGIONS = 12  # rows of a brain's table


def whole_study(step_run: StepRun) -> dict[str, Any]:
    """The page shows the settings as they are written."""
    return {"settings": as_yaml(step_run.study.settings)}


def run_report(step_run: StepRun) -> dict[str, Any]:
    counts, figure = _counts(step_run)
    has = step_run.study.has
    groups = step_run.folder_of("groups", None) / "groups.csv"
    page = StudyPage(
        title=step_run.study.settings.title,
        counts=counts,
        brains=[_brain(step_run, brain) for brain in step_run.brains()],
        steps=_steps(step_run),
        settings=as_yaml(step_run.study.settings),
        figure=figure,
        groups=group_rows(groups) if has("groups") else None,
        index=step_run.result_of("index", None) if has("index") else None,
    )
    write_study_page(page, step_run.out)
    return {"counts": [[row["brain"], row["count"], row["interval"]] for row in counts]}


def _of(step_run: StepRun, brain: str) -> StepRun:
    return StepRun(step_run.study, step_run.step, brain)


def _counts(step_run: StepRun) -> tuple[list[dict[str, str]], bytes | None]:
    """Rows of the page, after counts.csv and its figure were written."""
    if not step_run.study.has("detect"):
        return [], None
    rows = [count_row(brain, Points.read(_of(step_run, brain).cells_path())) for brain in step_run.brains()]
    table = joined(rows)
    groups = [step_run.study.settings.brains[brain].group or "" for brain in step_run.brains()]
    write_csv(
        step_run.folder / "counts.csv", {"brain": table.pop("brain"), "group": np.array(groups)} | table, {}
    )
    figure = step_run.folder / "counts.png"
    count_figure(table | {"brain": np.array(step_run.brains())}, figure)
    shown = []
    for at, (brain, group) in enumerate(zip(step_run.brains(), groups, strict=True)):
        low, high = table["count_low"][at], table["count_high"][at]
        interval = "" if np.isnan(low) else f"{low:,.0f} to {high:,.0f}"
        shown.append(
            {"brain": brain, "group": group, "count": f"{table['count'][at]:,.0f}", "interval": interval,
             "count_of": str(table["count_of"][at])}
        )  # fmt: skip
    return shown, figure.read_bytes()


def _brain(step_run: StepRun, brain: str) -> BrainSection:
    own, has = _of(step_run, brain), step_run.study.has
    volume, zyx, warnings = own.volume(), np.zeros((0, 3)), []
    facts = {
        "voxels z × y × x": " × ".join(f"{n:,}" for n in volume.shape_zyx),
        "voxel size, µm": " × ".join(f"{um:g}" for um in volume.voxel_um),
        "source": own.brain_settings.source,
    }
    if has("detect"):
        cells = Points.read(own.cells_path())
        zyx = cells.zyx[is_cell(cells)]
        facts["detections"] = f"{len(cells):,}"
    if has("refine"):
        facts["at or above the refiner's threshold"] = f"{len(zyx):,}"
        warnings += [note] if (note := own.result_of("refine", brain)["notes"]) else []
    for step in ("convert", "detect"):
        if has(step) and (bad := own.result_of(step, brain)["bad_chunks"]):
            warnings.append(f"{bad} damaged planes or chunks were read as zeros ({step}).")
    picture, shows = section_png(volume, zyx)
    corrections = own.folder_of("convert", brain) / f"{brain}.corrections"
    if corrections.with_suffix(".corrections.json").is_file():
        facts |= _corrections(corrections.with_suffix(".corrections.json"))
    image = corrections.with_suffix(".corrections.png")
    regions = own.folder_of("regions", brain) / "regions.csv"
    return BrainSection(
        brain,
        own.brain_settings.group or "",
        facts,
        picture,
        shows,
        image.read_bytes() if image.is_file() else None,
        region_rows(regions)["rows"][:_REGIONS] if has("regions") else (),
        warnings,
    )


def _corrections(path: Path) -> dict[str, str]:
    """Figures of destriping and flat-field of each channel."""
    figures = {}
    for channel, numbers in json.loads(path.read_text(encoding="utf-8")).items():
        for name, value in numbers.items():
            if isinstance(value, float) and name != "dark":
                figures[f"{channel}: {name}"] = f"{value:.3g}"
    return figures


def _steps(step_run: StepRun) -> list[dict[str, str]]:
    """Duration of every finished step, in the order of their ends."""
    rows: list[tuple[str, str, Record]] = []
    for step in step_run.step.reads:
        if step_run.study.has(step):
            for path in sorted((step_run.study.out / "records" / step).glob("*.json")):
                record = read_record(path)
                if record is not None and path.stem in (*step_run.brains(), "all"):
                    rows.append((step, path.stem, record))
    return [
        {
            "step": step,
            "brain": "all" if brain == "all" else brain,
            "seconds": f"{record.seconds:,.1f}",
            "finished": record.finished,
            "inputs": inputs_sha256(record.inputs)[:12],
        }
        for step, brain, record in sorted(rows, key=lambda row: row[2].finished)
    ]
