"""Points from a pandas DataFrame and back."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64

from canvas_fm.data.points.coordinate_columns import axis_of
from canvas_fm.errors import CanvasError, MissingExtra


def columns_of(
    frame: Any, voxel_um: tuple[float, float, float] | None
) -> tuple[Float64[np.ndarray, "n 3"], dict[str, np.ndarray]]:
    """Positions z, y, x in voxels and the other columns of a DataFrame.

    Columns z, y, x in any case and order, with a unit (`z_um`) where there is one: µm become voxels by
    `voxel_um`. Numbers stay numbers, all else is text, a missing text is blank.
    """
    axes: dict[str, tuple[Hashable, bool]] = {}
    others: dict[str, np.ndarray] = {}
    for name in frame.columns:
        stated = axis_of(str(name))
        if stated is None or stated.axis.lower() in axes:
            others[str(name)] = _values(frame[name])
        else:
            axes[stated.axis.lower()] = (name, _in_um(stated.unit))
    if missing := [axis for axis in "zyx" if axis not in axes]:
        raise CanvasError(
            f"the table has no column {', '.join(missing)}; its columns are "
            f"{', '.join(map(str, frame.columns))}: rename those of the positions to z, y and x"
        )
    zyx = np.stack([frame[axes[axis][0]].to_numpy(np.float64) for axis in "zyx"], axis=1)
    if any(in_um for _, in_um in axes.values()):
        if voxel_um is None:
            raise CanvasError("the table's positions are in µm; give voxel_um=(z, y, x) to have voxels")
        zyx = zyx / np.where([axes[axis][1] for axis in "zyx"], np.asarray(voxel_um), 1.0)
    return zyx, others


def frame_of(zyx: np.ndarray, columns: Mapping[str, np.ndarray], meta: Mapping[str, str]) -> Any:
    """A DataFrame with z, y, x, then the columns; `meta` is in its `attrs`."""
    try:
        import pandas as pd
    except ImportError as problem:
        raise MissingExtra("pandas", "pandas", "Points.to_dataframe") from problem
    frame = pd.DataFrame({**dict(zip("zyx", zyx.T, strict=True)), **columns})
    frame.attrs.update(meta)
    return frame


def _in_um(unit: str | None) -> bool:
    text = (unit or "").lower().rstrip("s")
    if text in ("nm", "nanometer", "nanometre", "mm", "millimeter", "millimetre"):
        raise CanvasError(f"the table's positions are in {unit}; give them in voxels or µm")
    return bool(text) and not text.startswith(("px", "pixel", "vox"))


def _values(series: Any) -> np.ndarray:
    if series.dtype.kind in "biuf":  # pandas' own numbers with gaps too
        values: np.ndarray = (
            series.to_numpy() if series.notna().all() else series.to_numpy(np.float64, na_value=np.nan)
        )
        return np.asarray(values, values.dtype if values.dtype.kind in "biuf" else np.float64)
    return np.asarray(
        ["" if gap else str(value) for value, gap in zip(series, series.isna(), strict=True)], dtype=str
    )
