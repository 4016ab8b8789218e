"""Figures of a sweep: the loss of every run by data set, and cost against what was reached."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from canvas_fm.files.atomic import write_atomic

_COLUMNS = 4
_STYLES = ("-", "--", ":", "-.")


def loss_curves(
    runs: Mapping[str, tuple[str, str]], metrics: Mapping[str, Sequence[Mapping[str, Any]]], path: Path
) -> None:
    """Training loss against step, a panel a data set and a line a run, as in Figure 3 of the paper.

    `runs` gives each run's data set and its other settings, which have the same colour in every panel.
    """
    names = list(dict.fromkeys(data_set for data_set, _ in runs.values()))
    settings = list(dict.fromkeys(setting for _, setting in runs.values()))
    colours = {setting: f"C{number % 10}" for number, setting in enumerate(settings)}
    styles = {setting: _STYLES[number // 10 % len(_STYLES)] for number, setting in enumerate(settings)}
    columns = min(_COLUMNS, len(names))
    lines = math.ceil(len(names) / columns)
    figure = Figure(figsize=(3.4 * columns + 0.6, 2.6 * lines + 0.4), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for ax in panels[len(names) :]:
        ax.set_visible(False)
    for name, ax in zip(names, panels, strict=False):
        for run, setting in ((run, setting) for run, (data_set, setting) in runs.items() if data_set == name):
            rows = [row for row in metrics[run] if row["kind"] == "train"]
            line = {"color": colours[setting], "ls": styles[setting], "label": setting, "lw": 0.9}
            ax.plot([row["step"] for row in rows], [row["loss"] for row in rows], **line)
        ax.set(title=name, yscale="log", xlabel="step", ylabel="training loss")
        ax.title.set_fontsize(9)
    handles = {str(line.get_label()): line for ax in panels for line in ax.get_lines()}
    if len(handles) > 1:
        figure.legend(list(handles.values()), list(handles), loc="outside right upper", fontsize=7)
    _save(figure, path)


def pareto(rows: Sequence[Mapping[str, Any]], metric: str, path: Path) -> None:
    """CPU seconds against the metric and against the linear read-out, the best at each cost joined."""
    measures = [
        measure for measure in (metric, "linear_readout") if any(row.get(measure) is not None for row in rows)
    ]
    figure = Figure(figsize=(4.6 * max(1, len(measures)), 3.4), layout="constrained")
    for ax, measure in zip(
        figure.subplots(1, max(1, len(measures)), squeeze=False)[0], measures, strict=False
    ):
        points = sorted((row["cpu_s"], row[measure]) for row in rows if row.get(measure) is not None)
        ax.scatter(*zip(*points, strict=True), s=14, color="0.5")
        front, best = [], -math.inf
        for cost, value in points:
            if value > best:
                best = value
                front.append((cost, value))
        ax.plot(*zip(*front, strict=True), marker="o", ms=4, lw=1, drawstyle="steps-post")
        ax.set(xlabel="CPU seconds of the training", ylabel=measure)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    write_atomic(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))
