"""The report of a released model: provenance, and figures on volumes that it never saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.detection.score import Score
from canvas_fm.files.strict_yaml import StrictModel

_METRICS = {"f1": "F1", "auc": "AUC", "auc_overlap": "AUC, overlap", "f1_tuned": "F1, tuned"}
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Figure(StrictModel):
    """One metric on one volume or several pooled: value, `n` cells, interval, comparison."""

    data: str
    split: Literal["fold", "test"]
    metric: str = "F1"
    n: int = Field(ge=0)
    value: float
    low: float | None = None
    high: float | None = None
    beside: dict[str, float] = Field(default_factory=dict)


class Report(StrictModel):
    """Provenance and metrics of a released model; `sha256` is that of its folder's config.

    `date` is the day of the training, `licence` that of the weights, `commit` the one that added them.
    """

    model: str
    sha256: Sha256
    command: str
    seed: int
    cpu_minutes: float = Field(gt=0)
    machine: str
    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")] | None = None
    licence: str | None = None
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{7,40}$")] | None = None
    protocol: str
    figures: Annotated[list[Figure], Field(min_length=1)]
    versions: dict[str, str] = Field(default_factory=dict)
    data_sha256: dict[str, Sha256] = Field(default_factory=dict)


def figure_of(
    score: Score,
    data: str,
    split: Literal["fold", "test"],
    *,
    beside: Mapping[str, float] | None = None,
) -> Figure:
    """The F1 of a score as a card's `Figure`."""
    counts = score.counts
    low, high = score.interval.of.get("f1", (None, None))
    return Figure(
        data=data, split=split, n=counts.tp + counts.fn, value=counts.f1 or 0.0, low=low, high=high,
        beside=dict(beside or {}),
    )  # fmt: skip


def figures_of_report(
    report: Mapping[str, Any],
    method: str,
    split: Literal["fold", "test"],
    *,
    metrics: Sequence[str] = ("f1", "auc"),
    beside: Mapping[str, str] | None = None,
    names: Mapping[str, str] | None = None,
) -> list[Figure]:
    """The figures of one method in a comparison's report.json, for each volume and all pooled.

    `metrics` are those of the report; `beside` are columns with the same metric of other methods, by their
    heads; `names` are what volumes are called on the card. Intervals are over seeds, for F1 of one seed over
    cells. Raises CanvasError for a method or metric that is not there.
    """
    figures = []
    for metric in metrics:
        for volume in _methods(report, method):
            line = _line_of(report, method, volume, metric)
            interval = line[metric]["interval"]
            if len(line[metric]["seeds"]) == 1:
                interval = line["f1_interval_over_cells"] if metric == "f1" else None
            low, high = interval or (None, None)
            figure = Figure(
                data=(names or {}).get(volume, volume),
                split=split,
                metric=_METRICS.get(metric, metric.replace("_", " ")),
                n=line["tp"] + line["fn"],
                value=line[metric]["mean"],
                low=low,
                high=high,
                beside={
                    head: float(_line_of(report, name, volume, metric)[metric]["mean"])
                    for head, name in (beside or {}).items()
                },
            )
            figures.append(figure)
    return figures


def _methods(report: Mapping[str, Any], method: str) -> Mapping[str, Any]:
    if method not in report["methods"]:
        raise CanvasError(f"the report has no method {method!r}; it has {', '.join(report['methods'])}")
    return dict(report["methods"][method])


def _line_of(report: Mapping[str, Any], method: str, volume: str, metric: str) -> Mapping[str, Any]:
    line = _methods(report, method).get(volume) or {}
    if line.get(metric) is None:
        raise CanvasError(f"the report has no {metric} of {method!r} on {volume}")
    return dict(line)
