"""Figure of G and L: observed, and mean and 95 % envelope of the null model."""

from __future__ import annotations

from pathlib import Path

from canvas_fm.analysis.proximity.proximity import Proximity
from canvas_fm.files.atomic import write_atomic


def proximity_figure(proximity: Proximity, path: str | Path) -> None:
    """Write a PNG with one panel a function."""
    from matplotlib.figure import Figure

    names = [name for name in ("G", "L") if name in proximity.curves]
    figure = Figure(figsize=(4.2 * len(names), 3.4), layout="constrained")
    for name, axes in zip(names, figure.subplots(1, len(names), squeeze=False)[0], strict=True):
        curve = proximity.curves[name]
        axes.fill_between(proximity.radii_um, curve["low"], curve["high"], color="#c9d6e3", lw=0)
        axes.plot(
            proximity.radii_um, curve["mean"], "--", color="#5b6b7a", label=f"null model ({proximity.model})"
        )
        axes.plot(proximity.radii_um, curve["observed"], color="#0b67c2", label="observed")
        axes.set_xlabel("distance in µm")
        axes.set_title(f"{name}   p = {proximity.p_value[name]:.3g}", loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False)
    write_atomic(Path(path), lambda temporary: figure.savefig(temporary, format="png", dpi=150))
