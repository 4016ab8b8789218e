"""Figure of scores over domains: one dot a domain, one column a method, by group."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from canvas_fm.files.atomic import write_atomic


def domains_figure(report: Mapping[str, Any], path: Path | str) -> None:
    """PNG of F1 at the fixed threshold of every domain, a panel a group; bars: mean and worst decile."""
    methods = report["methods"]
    groups = list(dict.fromkeys(group for method in methods.values() for group in method["groups"]))
    figure = Figure(figsize=(1.2 + 2.6 * len(groups), 4.2))
    axes = np.atleast_1d(figure.subplots(1, len(groups), sharey=True))
    jitter = np.random.default_rng(0)
    for ax, group in zip(axes, groups, strict=True):
        for column, method in enumerate(methods.values()):
            f1 = [row["f1"] for row in method["domains"].values() if row["group"] == group]
            if group not in method["groups"]:
                continue
            ax.plot(column + jitter.uniform(-0.18, 0.18, len(f1)), f1, ".", color=f"C{column}", alpha=0.6)
            part = method["groups"][group]
            ax.plot([column - 0.3, column + 0.3], [part["mean"]] * 2, color="black", linewidth=1.6)
            ax.plot([column - 0.3, column + 0.3], [part["worst_decile"]] * 2, color="black", linewidth=0.8)
        ax.set_title(group, fontsize=9)
        ax.set_xticks(range(len(methods)), list(methods), rotation=60, ha="right", fontsize=7)
        ax.set_ylim(0, 1)
    axes[0].set_ylabel("F1 at the fixed threshold")
    figure.tight_layout()
    FigureCanvasAgg(figure)
    write_atomic(Path(path), lambda file: figure.savefig(file, format="png", dpi=110))
