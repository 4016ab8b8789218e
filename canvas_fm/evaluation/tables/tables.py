"""Detectors × data sets × regions as in Tables 3 and 4 of the CANVAS paper, and the generalisation gap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from canvas_fm.errors import CanvasError, counted
from canvas_fm.evaluation.detection.confusion_counts import Counts, Intervals, counts_array, intervals, pooled
from canvas_fm.evaluation.tables.manifest import DataSet, Manifest, Model, Region, planned_scores
from canvas_fm.files.strict_yaml import read_settings
from canvas_fm.progress import bar

SETS = {"train": "Train set", "test": "Test set"}


@dataclass(frozen=True)
class Cell:
    """Score of one model in one row: a region, a set of regions or a whole data set."""

    counts: Counts
    interval: Intervals
    matched: bool


@dataclass(frozen=True)
class Row:
    """A row of the table; `level` is total, set or region; None where a model was not run on all regions."""

    dataset: str
    label: str
    level: str
    cells: Mapping[str, Cell | None]

    @property
    def best(self) -> set[str]:
        """Models with the highest F1 of the row."""
        scores = {name: cell.counts.f1 or 0.0 for name, cell in self.cells.items() if cell is not None}
        return {name for name, f1 in scores.items() if f1 == max(scores.values())}


@dataclass(frozen=True)
class Tables:
    """All rows of Table 4; those of level total are Table 3."""

    title: str
    models: tuple[str, ...]
    rows: tuple[Row, ...]
    tolerances: Mapping[str, str]

    def gap(self, model: str) -> tuple[float, float] | None:
        """Generalisation gap: a model's mean F1 on its matched data sets and on the others."""
        totals = [row.cells[model] for row in self.rows if row.level == "total"]
        f1 = {side: [c.counts.f1 or 0.0 for c in totals if c and c.matched is side] for side in (True, False)}
        if not f1[True] or not f1[False]:
            return None
        return sum(f1[True]) / len(f1[True]), sum(f1[False]) / len(f1[False])


def make_tables(manifest: str | Path, *, show: bool | None = None) -> Tables:
    """Score every model on every region of a manifest (YAML); paths in it are relative to the manifest.

    Sets and totals pool the counts of their regions, as the paper's do. Raises CanvasError for an unknown
    key, naming the one that was meant, and, before anything is scored, for all files that are missing.
    """
    manifest = Path(manifest)
    settings = read_settings(manifest, Manifest)
    work = list(planned_scores(settings, manifest.parent))
    missing = [str(path) for planned in work for path in planned.files if not path.is_file()]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        listed = ", ".join(missing[:10]) + (" …" if len(missing) > 10 else "")
        raise CanvasError(
            f"{manifest}: {counted(len(missing), 'file')} that it names {verb} not there: {listed}"
        )
    scored: dict[tuple[str, str, str], list[Counts]] = {}
    tolerances: dict[str, str] = {}
    with bar("scoring", len(work), unit="regions", show=show) as advance:
        for planned in work:
            score = planned.run()
            scored[planned.data.name, planned.region.name, planned.model.name] = list(score.box_counts)
            tolerances[planned.data.name] = str(score.tolerance)
            advance(1, f"{planned.model.name} on {planned.data.name}")
    rows = [row for data in settings.datasets for row in _rows(data, settings.models, scored)]
    return Tables(settings.title, tuple(model.name for model in settings.models), tuple(rows), tolerances)


def _rows(
    data: DataSet, models: list[Model], scored: Mapping[tuple[str, str, str], list[Counts]]
) -> Iterator[Row]:
    """Total, each set followed by its regions, then regions without a set."""

    def row(label: str, level: str, regions: list[Region]) -> Row:
        cells: dict[str, Cell | None] = {}
        for model in models:
            parts = [scored.get((data.name, region.name, model.name)) for region in regions]
            if any(part is None for part in parts):
                cells[model.name] = None
                continue
            boxes = [counts for part in parts if part is not None for counts in part]
            cells[model.name] = Cell(pooled(boxes), intervals(counts_array(boxes)), _matched(model, data))
        return Row(data.name, label, level, cells)

    yield row("Total", "total", data.regions)
    for split in (*SETS, None):
        regions = [region for region in data.regions if region.split == split]
        if regions and split is not None:
            yield row(SETS[split], "set", regions)
        for region in regions:
            yield row(region.name, "region", [region])


def _matched(model: Model, data: DataSet) -> bool:
    markers = [model.marker] if isinstance(model.marker, str) else model.marker or []
    return data.marker.casefold() in (marker.casefold() for marker in markers)
