"""The tables of a comparison in words: what Markdown and the page both show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from canvas_fm.heads.compare.compare import Comparison
from canvas_fm.heads.compare.summary import (
    CAME,
    POOLED,
    Figure,
    Gains,
    against,
    count_lines,
    curves,
    fit_seconds,
    gains,
    lines,
)


class Table(NamedTuple):
    """What is shown twice, as Markdown and as HTML: rows begin with a name."""

    caption: str
    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def tables_of(found: Comparison, reference: str | None) -> list[Table]:
    """What is asked first stands first: all volumes, gains, counts, labels, speed; then each volume."""
    counts = curve_counts(found)
    made = [_figures_table(found, POOLED)] if len(found.volumes) > 1 else []
    made += [_gains_table(found), _counts_table(found)]
    if counts:
        made.append(_labels_table(found, counts))
    if reference is not None:
        made.append(_against_table(found, reference, counts))
    return [*made, _speed_table(found, reference), *(_figures_table(found, name) for name in found.volumes)]


def _figures_table(found: Comparison, volume: str) -> Table:
    heads = ("Method", "AUC", "AUC, overlap", "F1", "Tuned F1", "Ceiling", "Precision", "Recall", "ECE")
    rows = []
    for line in lines(found, volume):
        f = line.figures
        cells = line.cells_interval if f["f1"] is not None and len(f["f1"].seeds) == 1 else None
        rows.append(
            (
                line.method,
                _shown(f["auc"]),
                _shown(f["auc_overlap"]),
                _shown(f["f1"], cells),
                _shown(f["f1_tuned"]),
                f"{line.ceiling:.3f}",
                _shown(f["precision"]),
                _shown(f["recall"]),
                _shown(f["calibration_error"]),
            )
        )
    caption = "All held-out volumes, their cells pooled" if volume == POOLED else f"{volume}, held out"
    return Table(caption, heads, rows)


def _labels_table(found: Comparison, counts: list[int]) -> Table:
    every = curves(found)
    heads = ("Method", *(f"{n:,} labels" for n in counts), "all", "What more are worth")
    rows = []
    for method, curve in every.items():
        most = max(curve.values)
        cells = [_interval(curve.mean(n), *curve.interval(n)) if n in curve.values else "–" for n in counts]
        rows.append((method, *cells, f"{curve.mean(most):.3f}", curve.sentence))
    return Table("F1 at the carried threshold by the number of labels, volumes pooled", heads, rows)


def _against_table(found: Comparison, reference: str, counts: list[int]) -> Table:
    asked: list[int | None] = [*counts, None]
    by_count = [against(found, reference, labels=labels) for labels in asked]
    heads = ("Method", *("all labels" if n is None else f"{n:,} labels" for n in asked))
    rows = []
    for method in found.methods:
        if method != reference:
            rows.append((method, *(_signed(differences.get(method)) for differences in by_count)))
    return Table(f"F1 minus that of {reference}, paired by volume and seed", heads, rows)


def _gains_table(found: Comparison) -> Table:
    volumes = [*found.volumes, *([POOLED] if len(found.volumes) > 1 else [])]
    by_volume = [gains(found, volume) for volume in volumes]
    over = by_volume[0].over
    rows = [(_came(found), *(_signed_from(one.before, one, CAME) for one in by_volume))]
    for method in found.methods:
        cells = [_signed_from(one.after[method], one, method) for one in by_volume]
        rows.append((method, *cells))
    return Table(f"F1 by volume, and what is gained over: {over}", ("Method", *volumes), rows)


def _came(found: Comparison) -> str:
    """The row of candidates before any judge, with the own score from which on they are cells."""
    thresholds = sorted(set(found.own_thresholds.values()))
    if not thresholds:
        return f"{CAME}, all kept"
    return f"{CAME}, from {' or '.join(f'{one:g}' for one in thresholds)} on"


def _signed_from(value: float, gained: Gains, name: str) -> str:
    if name == gained.over:
        return f"{value:.3f}"
    return f"{value:.3f} [{value - gained.start:+.3f}]"


def _counts_table(found: Comparison) -> Table:
    rows = []
    for method, error, counts in count_lines(found):
        held = f"{counts.held:,} of {counts.regions:,}"
        rows.append((method, f"{error:.3f}", f"{counts.error:.3f}", held))
    heads = ("Method", "Calibration error", "Count error", "90 % intervals that hold")
    return Table("Probabilities as counts: labelled regions of held-out volumes", heads, rows)


def _speed_table(found: Comparison, reference: str | None) -> Table:
    rows = []
    beside = reference if reference in found.speed else min(found.speed, key=lambda n: found.speed[n][0])
    seconds = fit_seconds(found)
    for method, speed in found.speed.items():
        start = "the voxels" if speed.whole else "what came with them"
        times = speed.cells_per_s / found.speed[beside].cells_per_s
        ratio = f"{times:,.1f}" if times >= 1 else f"{times:.2g}"
        cells = (f"{speed.cells_per_s:,.0f}", ratio, start, f"{seconds[method]:,.1f}")
        rows.append((method, *cells))
    threads = next(iter(found.speed.values())).threads
    caption = f"Speed in this run, {threads} thread{'s' * (threads != 1)}"
    heads = ("Method", "Candidates/s", f"Times that of {beside}", "Counted from", "Fit on all labels, s")
    return Table(caption, heads, rows)


def curve_counts(found: Comparison) -> list[int]:
    return sorted({one.labels for one in found.results if not one.everything})


def _shown(figure: Figure | None, cells: tuple[float, float] | None = None) -> str:
    if figure is None:
        return "–"
    if len(figure.seeds) > 1:
        return _interval(figure.mean, figure.low, figure.high)
    return f"{figure.mean:.3f}" if cells is None else _interval(figure.mean, *cells)


def _interval(mean: float, low: float, high: float) -> str:
    return f"{mean:.3f}" if low == high else f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _signed(figure: Figure | None) -> str:
    return "–" if figure is None else f"{figure.mean:+.3f} [{figure.low:+.3f}, {figure.high:+.3f}]"
