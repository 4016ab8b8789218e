"""Results of a sweep: a row a run, the best of each data set, the effect of each parameter, a ranking."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from canvas_fm.errors import counted
from canvas_fm.evaluation.metrics.reconstruction import DEFINITIONS, PARTS
from canvas_fm.files.atomic import write_text_atomic
from canvas_fm.training.run.folder.run_folder import Run
from canvas_fm.training.sweep.figures import loss_curves, pareto
from canvas_fm.training.sweep.grid import DATA_SET, SweepRecipe, SweepRun
from canvas_fm.training.sweep.linear_readout import LinearReadout

SCORES = ("loss", *(f"{measure}_{part}" for part in DEFINITIONS for measure in ("psnr", "ssim")))
BY_VARIANCE = tuple(
    f"{measure}_{part}_{level}" for part in DEFINITIONS for measure in ("psnr", "ssim") for level in PARTS
)
COMPARED = (*SCORES[1:], *BY_VARIANCE)
TRIVIAL = ("crop_mean", "neighbours_mean", "patch_mean")
Row = dict[str, Any]


class Effect(NamedTuple):
    """The paired difference that one value of a parameter makes against another, all else being equal."""

    parameter: str
    value: str
    against: str
    figure: str
    mean: float
    low: float
    high: float
    pairs: int


def write_results(
    sweep: SweepRecipe,
    out: Path,
    runs: Sequence[SweepRun],
    states: Mapping[str, Mapping[str, Any]],
    readout: LinearReadout,
) -> None:
    """Write results.csv, results.md, curves.png and pareto.png of the runs that are done."""
    rows = [row_of(run, Run(out / "runs" / run.name), states[run.name], readout) for run in runs]
    write_text_atomic(out / "results.csv", as_csv(rows))
    write_text_atomic(out / "results.md", summary(sweep, rows, states, readout))
    if rows:
        curves = {run.name: Run(out / "runs" / run.name).metrics() for run in runs}
        loss_curves({run.name: _data_set_and_rest(run) for run in runs}, curves, out / "curves.png")
        pareto(rows, sweep.metric.name, out / "pareto.png")


def _data_set_and_rest(run: SweepRun) -> tuple[str, str]:
    rest = [label for key, label in run.labels.items() if key != DATA_SET]
    return run.labels[DATA_SET], ", ".join(rest)


def row_of(run: SweepRun, folder: Run, state: Mapping[str, Any], readout: LinearReadout) -> Row:
    """One run: the labels of its values, its cost, its scores, the trivial predictors', its read-out's.

    Scores are means over the sets of crops of the last evaluation: of each held-out volume those at random
    places and those on signal, or of the training volumes where nothing is held out.
    """
    metrics = folder.metrics()
    last = max((row["step"] for row in metrics if row["kind"] == "eval"), default=None)
    sets = [row for row in metrics if row["kind"] == "eval" and row["step"] == last]
    row: Row = {"run": run.name, **run.labels, "steps": last, "cpu_s": round(state["cpu_s"], 1)}
    row["wall_s"] = round(state["wall_s"], 1)
    for score in (*SCORES, *BY_VARIANCE):
        row[score] = _mean([metrics.get(score) for metrics in sets])
    for predictor in TRIVIAL:
        row[f"{predictor}_psnr_masked"] = _mean([metrics[predictor]["psnr_masked"] for metrics in sets])
    for key, value in readout.runs.get(run.name, {}).items():
        row["linear_readout" if key == "value" else f"linear_readout_{key}"] = value
    return row


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return fmean(known) if known else None


def best_rows(sweep: SweepRecipe, rows: Sequence[Row]) -> list[Row]:
    """The best run of each data set by the sweep's metric, as in Table 7."""
    sign = 1 if sweep.metric.goal == "maximize" else -1
    best: dict[str, Row] = {}
    for row in rows:
        value, name = row.get(sweep.metric.name), row[DATA_SET]
        if value is not None and (name not in best or sign * value > sign * best[name][sweep.metric.name]):
            best[name] = row
    return list(best.values())


def effects(sweep: SweepRecipe, rows: Sequence[Row], figures: Sequence[str]) -> list[Effect]:
    """Each value of each parameter against the parameter's first, over runs that are equal in all else.

    Differences are paired; the interval is Student's at 95 % over the pairs, so over data sets, seeds and the
    other parameters of the grid. Values with fewer than two pairs are left out.
    """
    from scipy.stats import t

    names = [key for key in rows[0] if key in sweep.parameters or key == DATA_SET] if rows else []
    result = []
    for parameter in names:
        if parameter in (DATA_SET, "seed"):
            continue  # another data set or seed is no setting that could be chosen
        others = [name for name in names if name != parameter]
        by_value: dict[str, dict[tuple[str, ...], Row]] = {}
        for row in rows:
            by_value.setdefault(row[parameter], {})[tuple(row[name] for name in others)] = row
        first, *rest = by_value
        for value in rest:
            for figure in figures:
                pairs = [
                    (row[figure], by_value[first][key][figure])
                    for key, row in by_value[value].items()
                    if key in by_value[first]
                ]
                differences = [a - b for a, b in pairs if a is not None and b is not None]
                if len(differences) > 1:
                    mean, n = fmean(differences), len(differences)
                    half = float(t.ppf(0.975, n - 1)) * stdev(differences) / math.sqrt(n)
                    result.append(Effect(parameter, value, first, figure, mean, mean - half, mean + half, n))
    return result


def as_csv(rows: Sequence[Row]) -> str:
    """A line a run, in the grid's order."""
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def summary(
    sweep: SweepRecipe, rows: Sequence[Row], states: Mapping[str, Mapping[str, Any]], readout: LinearReadout
) -> str:
    """The sweep in Markdown."""
    figures = [*COMPARED, *(["linear_readout"] if readout.runs else [])]
    parts = [f"# {sweep.name}", sweep.description, f"{len(rows)} of {counted(len(states), 'run')} are done."]
    failed = {
        name: state.get("error") for name, state in states.items() if state.get("error", "") is not None
    }
    if failed:
        parts += [
            "## Not done",
            "\n".join(f"- {name}: {error or 'never run'}" for name, error in failed.items()),
        ]
    labels = [*(key for key in sweep.parameters if key != DATA_SET)]
    parts += [
        f"## Best run of each data set, by {sweep.metric.name}",
        _table(best_rows(sweep, rows), [DATA_SET, *labels, *SCORES, "neighbours_mean_psnr_masked"]),
        "Means over the sets of crops of the last evaluation. The loss is comparable only between runs of "
        "one mask ratio and one weighting; masked PSNR and SSIM are of the hidden patches alone.",
    ]
    ended = {name for name, state in states.items() if state.get("stopped_at") is not None}
    if ended:
        parts += ["## Stopped early", _stopped(rows, ended)]
    complete = [row for row in rows if row["run"] not in ended]  # a shorter training is another setting
    if parameter_effects := effects(sweep, complete, figures):
        parts += ["## Effect of each parameter", _effects_table(parameter_effects)]
    if readout.runs:
        parts += [f"## Ranking by linear read-out ({_few(sweep)})", _ranking(rows, readout, labels)]
    parts += ["## All runs", _table(rows, [DATA_SET, *labels, "cpu_s", *SCORES])]
    return "\n\n".join(part for part in parts if part) + "\n"


def _stopped(rows: Sequence[Row], ended: Container[str]) -> str:
    lines = [f"- {row['run']}: after step {row['steps']}" for row in rows if row["run"] in ended]
    return "\n".join(
        ["They fell behind the runs of their data set, and enter no paired difference.", "", *lines]
    )


def _few(sweep: SweepRecipe) -> str:
    assert sweep.linear_readout is not None
    return f"on {counted(sweep.linear_readout.few, 'label')} of other brains"


def _ranking(rows: Sequence[Row], readout: LinearReadout, labels: Sequence[str]) -> str:
    ranked: list[Row] = [
        {"features": row["run"], **row} for row in rows if row.get("linear_readout") is not None
    ]
    for size, named in readout.baselines.items():
        ranked += [
            {
                "features": f"**{name}**, crop {size}",
                "linear_readout": s["value"],
                "linear_readout_low": s["low"],
                "linear_readout_high": s["high"],
            }
            for name, s in named.items()
        ]
    ranked.sort(key=lambda row: -row["linear_readout"])
    return _table(
        ranked,
        ["features", "linear_readout", "linear_readout_low", "linear_readout_high", "psnr_masked", "cpu_s"],
    )


def _effects_table(parameter_effects: Sequence[Effect]) -> str:
    lines = [
        "| parameter | value | against | figure | paired difference | 95 % interval | pairs |",
        "|---|---|---|---|---|---|---|",
    ]
    for e in parameter_effects:
        lines.append(
            f"| {e.parameter} | {e.value} | {e.against} | {e.figure} | {e.mean:+.4g} | "
            f"[{e.low:+.4g}, {e.high:+.4g}] | {e.pairs} |"
        )
    return "\n".join(lines)


def _table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    shown = [column for column in columns if any(row.get(column) is not None for row in rows)]
    lines = [f"| {' | '.join(shown)} |", f"|{'---|' * len(shown)}"]
    lines += [f"| {' | '.join(_cell(row.get(column)) for column in shown)} |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
