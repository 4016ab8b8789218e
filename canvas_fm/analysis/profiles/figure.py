"""Figure of a comparison of profiles: novelty of regions by brain, and change of cluster shares."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from canvas_fm.analysis.profiles.compare import ProfileComparison
from canvas_fm.files.atomic import write_atomic

_SHOWN = 40


def profile_figure(comparison: ProfileComparison, path: str | Path) -> None:
    """The 40 tested regions with the smallest p-value of novelty, mean or a share; stars where q < 0.05."""
    from matplotlib.figure import Figure

    study = comparison.study
    at = np.flatnonzero(comparison.tested)
    least = np.fmin(np.fmin(comparison.novelty_p, comparison.shift_p), np.nanmin(
        np.where(np.isnan(comparison.share_p), 1.0, comparison.share_p), axis=1))[at]  # fmt: skip
    at = at[np.argsort(least, kind="stable")[:_SHOWN]]
    order = np.concatenate([np.flatnonzero(study.of(group)) for group in study.groups])
    first, second = study.of(comparison.first), study.of(comparison.second)
    novelty = 100 * comparison.novelty[order][:, at].T
    change = 100 * (
        comparison.share[second][:, at].mean(axis=0) - comparison.share[first][:, at].mean(axis=0)
    )
    clusters = change.shape[1]
    width = 3.4 + 0.32 * len(order) + 0.34 * clusters
    figure = Figure(figsize=(width, 1.9 + 0.2 * len(at)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[len(order), clusters])
    image = left.imshow(
        novelty, cmap="magma", vmin=0, vmax=max(10.0, float(np.nanmax(novelty))), aspect="auto"
    )
    named = [study.regions[region] + (" *" if comparison.more_novel[region] else "") for region in at]
    left.set_yticks(range(len(at)), named, fontsize=7)
    brains = [f"{study.brains[index].brain} ({study.brains[index].group})" for index in order]
    left.set_xticks(range(len(order)), brains, rotation=90, fontsize=7)
    left.set_title("novel cells, %", fontsize=9, loc="left")
    figure.colorbar(image, ax=left, shrink=0.7)
    most = max(1.0, float(np.abs(change).max()))
    image = right.imshow(change, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
    for row, column in np.argwhere(comparison.share_q[at] < 0.05):
        right.text(column, row, "*", ha="center", va="center", fontsize=8)
    shifted = ["mean *" if comparison.shift_q[region] < 0.05 else "" for region in at]
    right.set_yticks(range(len(at)), shifted, fontsize=7)
    right.set_xticks(range(clusters), [str(cluster) for cluster in range(clusters)], fontsize=7)
    right.set_xlabel("cluster", fontsize=8)
    right.set_title(f"share in {comparison.second} − {comparison.first}, points", fontsize=9, loc="left")
    figure.colorbar(image, ax=right, shrink=0.7)
    write_atomic(Path(path), lambda temporary: figure.savefig(temporary, format="png", dpi=150))
