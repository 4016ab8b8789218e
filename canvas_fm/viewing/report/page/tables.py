"""Tables of a comparison, shown as Markdown and HTML."""

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
    """A table for Markdown and HTML; rows begin with a name."""

    caption: str
    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def tables_of(comparison: Comparison, reference: str | None) -> list[Table]:
    """All tables: all volumes, ΔF1, counts, label curves, speed; then each volume."""
    counts = curve_counts(comparison)
    tables = [_figures_table(comparison, POOLED)] if len(comparison.volumes) > 1 else []
    tables += [_gains_table(comparison), _counts_table(comparison)]
    if counts:
        tables.append(_labels_table(comparison, counts))
    if reference is not None:
        tables.append(_against_table(comparison, reference, counts))
    return [
        *tables,
        _speed_table(comparison, reference),
        *(_figures_table(comparison, name) for name in comparison.volumes),
    ]


def _figures_table(comparison: Comparison, volume: str) -> Table:
    heads = (
        "Method",
        "AUC",
        "AUC, overlap",
        "F1",
        "F1 at best threshold",
        "Best possible F1",
        "Precision",
        "Recall",
        "ECE",
    )
    rows = []
    for line in lines(comparison, volume):
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
    caption = (
        "All volumes, cross-validated, cells pooled" if volume == POOLED else f"{volume}, cross-validated"
    )
    return Table(caption, heads, rows)


def _labels_table(comparison: Comparison, counts: list[int]) -> Table:
    every = curves(comparison)
    heads = ("Method", *(f"{n:,} labels" for n in counts), "all", "Gain from more labels")
    rows = []
    for method, curve in every.items():
        most = max(curve.values)
        cells = [_interval(curve.mean(n), *curve.interval(n)) if n in curve.values else "–" for n in counts]
        rows.append((method, *cells, f"{curve.mean(most):.3f}", curve.sentence))
    return Table("F1 at the fixed threshold by number of labels, volumes pooled", heads, rows)


def _against_table(comparison: Comparison, reference: str, counts: list[int]) -> Table:
    label_counts: list[int | None] = [*counts, None]
    by_count = [against(comparison, reference, labels=labels) for labels in label_counts]
    heads = ("Method", *("all labels" if n is None else f"{n:,} labels" for n in label_counts))
    rows = []
    for method in comparison.methods:
        if method != reference:
            rows.append((method, *(_signed(differences.get(method)) for differences in by_count)))
    return Table(f"ΔF1 from {reference}, paired by volume and seed", heads, rows)


def _gains_table(comparison: Comparison) -> Table:
    volumes = [*comparison.volumes, *([POOLED] if len(comparison.volumes) > 1 else [])]
    by_volume = [gains(comparison, volume) for volume in volumes]
    over = by_volume[0].over
    rows = [(_unrefined_label(comparison), *(_signed_from(gain.before, gain, CAME) for gain in by_volume))]
    for method in comparison.methods:
        cells = [_signed_from(gain.after[method], gain, method) for gain in by_volume]
        rows.append((method, *cells))
    return Table(f"F1 by volume, in brackets ΔF1 from: {over}", ("Method", *volumes), rows)


def _unrefined_label(comparison: Comparison) -> str:
    """The row of unrefined candidates, with their recorded threshold."""
    thresholds = sorted(set(comparison.own_thresholds.values()))
    if not thresholds:
        return f"{CAME}, all kept"
    return f"{CAME}, fixed threshold {' or '.join(f'{threshold:g}' for threshold in thresholds)}"


def _signed_from(value: float, gained: Gains, name: str) -> str:
    if name == gained.over:
        return f"{value:.3f}"
    return f"{value:.3f} [{value - gained.start:+.3f}]"


def _counts_table(comparison: Comparison) -> Table:
    rows = []
    for method, error, counts in count_lines(comparison):
        covered = f"{counts.held:,} of {counts.regions:,}"
        rows.append((method, f"{error:.3f}", f"{counts.error:.3f}", covered))
    heads = ("Method", "Calibration error", "Count error", "Coverage of 90 % intervals")
    return Table("Probabilities as counts: labelled regions of held-out volumes", heads, rows)


def _speed_table(comparison: Comparison, reference: str | None) -> Table:
    rows = []
    beside = (
        reference
        if reference in comparison.speed
        else min(comparison.speed, key=lambda n: comparison.speed[n][0])
    )
    seconds = fit_seconds(comparison)
    for method, speed in comparison.speed.items():
        start = "voxels" if speed.whole else "precomputed features"
        times = speed.cells_per_s / comparison.speed[beside].cells_per_s
        ratio = f"{times:,.1f}" if times >= 1 else f"{times:.2g}"
        cells = (f"{speed.cells_per_s:,.0f}", ratio, start, f"{seconds[method]:,.1f}")
        rows.append((method, *cells))
    threads = next(iter(comparison.speed.values())).threads
    caption = f"Speed in this run, {threads} thread{'s' * (threads != 1)}"
    heads = ("Method", "Candidates/s", f"Relative to {beside}", "Includes", "Fit on all labels, s")
    return Table(caption, heads, rows)


def curve_counts(comparison: Comparison) -> list[int]:
    return sorted({result.labels for result in comparison.results if not result.everything})


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
