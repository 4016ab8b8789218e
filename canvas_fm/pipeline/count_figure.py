"""Figure of counted cells: a bar for each brain, or for each of its largest regions."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from canvas_fm.files.atomic import write_atomic


def count_figure(table: dict[str, np.ndarray], path: str | Path) -> None:
    """Bars of the brains' counts with intervals; with regions those of the 15 largest, one colour a brain."""
    from matplotlib.figure import Figure

    brains = list(dict.fromkeys(table["brain"].tolist()))
    labels, rows = _bars(table)
    if "id" not in table:  # a bar a brain, by its name
        brains, labels, rows = ["cells"], brains, rows.T
    figure = Figure(
        figsize=(max(4.0, 1.5 + 0.5 * len(labels) * max(1, len(brains) ** 0.5)), 3.6), layout="constrained"
    )
    axes = figure.subplots()
    for at, brain in enumerate(brains):
        row = rows[:, at]
        value = np.where(row >= 0, table["count"][row].astype(float), np.nan)
        ends = [np.where(row >= 0, table[key][row], np.nan) for key in ("count_low", "count_high")]
        error = np.nan_to_num(np.abs([value - ends[0], ends[1] - value]))
        place = np.arange(len(labels)) + (at - (len(brains) - 1) / 2) * 0.8 / len(brains)
        axes.bar(
            place, value, 0.75 / len(brains), yerr=error if error.any() else None, label=brain, capsize=2
        )
    axes.set_xticks(range(len(labels)), labels, rotation=45 if len(labels) > 1 else 0, ha="right")
    axes.set_ylabel("cells")
    if len(brains) > 1:
        axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    write_atomic(Path(path), lambda temporary: figure.savefig(temporary, format="png", dpi=150))


def _bars(table: dict[str, np.ndarray]) -> tuple[list[str], np.ndarray]:
    """Labels, and the table's row of each label and brain (-1: none)."""
    brains = list(dict.fromkeys(table["brain"].tolist()))
    if "id" not in table:
        return ["cells"], np.array([[table["brain"].tolist().index(brain) for brain in brains]])
    both = np.flatnonzero(table["hemisphere"] == "both")
    total: dict[int, float] = {}
    for row in both:
        total[int(table["id"][row])] = total.get(int(table["id"][row]), 0) + float(table["own_count"][row])
    largest = sorted(total, key=lambda region: -total[region])[:15]
    at = {(int(table["id"][row]), str(table["brain"][row])): int(row) for row in both}
    names = {int(table["id"][row]): str(table["acronym"][row]) for row in both}
    rows = np.array([[at.get((region, brain), -1) for brain in brains] for region in largest])
    return [names[region] for region in largest], rows
