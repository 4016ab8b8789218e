"""Figures of a comparison: volcano plot, heat map of regions by brains."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from canvas_fm.analysis.groups.compare import Comparison
from canvas_fm.analysis.groups.study import GroupStudy
from canvas_fm.files.atomic import write_atomic

_NAMED, _SHOWN = 12, 40


def volcano(comparison: Comparison, path: str | Path) -> None:
    """Fold change against p-value; regions with q < 0.05 in colour, the first dozen named."""
    from matplotlib.figure import Figure

    at = np.flatnonzero(comparison.tested)
    fold, p = comparison.log2_fold[at], np.maximum(comparison.p_value[at], 1e-300)
    significant = comparison.q_value[at] < 0.05
    figure = Figure(figsize=(5.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for mask, colour in ((~significant, "#9aa7b4"), (significant, "#c2410c")):
        axes.scatter(fold[mask], -np.log10(p[mask]), s=16, c=colour, lw=0)
    for row in np.argsort(p)[:_NAMED]:
        label = comparison.study.acronyms[at[row]]
        axes.annotate(
            label, (fold[row], -np.log10(p[row])), fontsize=7, xytext=(3, 2), textcoords="offset points"
        )
    axes.axvline(0, color="#dce1e7", zorder=0)
    axes.set_xlabel(f"log2 fold change, {comparison.second} over {comparison.first}")
    axes.set_ylabel("−log10 p")
    axes.set_title(f"{significant.sum()} of {len(at)} regions with q < 0.05", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    write_atomic(Path(path), lambda temporary: figure.savefig(temporary, format="png", dpi=150))


def region_heat_map(study: GroupStudy, comparison: Comparison, path: str | Path) -> None:
    """Densities of the 40 regions with the smallest p-values, each over its mean over brains."""
    from matplotlib.figure import Figure

    at = np.flatnonzero(comparison.tested)
    at = at[np.argsort(comparison.p_value[at])[:_SHOWN]]
    order = np.argsort(study.groups, kind="stable")
    density = np.log2((study.count[:, at] + 0.5) / study.volume_mm3[:, at])
    shown = (density - density.mean(0))[order].T
    figure = Figure(figsize=(2.2 + 0.35 * len(order), max(3.6, 1.2 + 0.2 * len(at))), layout="constrained")
    axes = figure.subplots()
    most = max(float(np.abs(shown).max(initial=0)), 0.1)
    image = axes.imshow(shown, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
    axes.set_yticks(range(len(at)), [study.acronyms[row] for row in at], fontsize=7)
    names = [f"{study.brains[index]} ({study.groups[index]})" for index in order]
    axes.set_xticks(range(len(order)), names, rotation=90, fontsize=7)
    bar = figure.colorbar(image, shrink=0.8)
    bar.set_label("log2 density over the mean brain", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    write_atomic(Path(path), lambda temporary: figure.savefig(temporary, format="png", dpi=150))
