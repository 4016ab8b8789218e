"""Matching tolerance: the largest distance between a prediction and its true cell."""

from __future__ import annotations

import difflib
from typing import NamedTuple

from canvas_fm.data.zyx import ZyxUm
from canvas_fm.errors import CanvasError

# Table 2 of the CANVAS paper, in voxels of 4 × 1.8 × 1.8 µm.
MARKER_TOLERANCE = {"NeuN": 6.0, "cFos": 6.0, "TH": 8.0, "PV": 8.0, "GFAP": 8.0, "IBA1": 5.0}


class Tolerance(NamedTuple):
    """`value` in micrometres or voxels, for distances whose axes were multiplied by `scale_zyx`."""

    value: float
    unit: str
    scale_zyx: ZyxUm
    marker: str | None = None

    def __str__(self) -> str:
        unit = "µm" if self.unit == "um" else "voxels"
        return f"{self.value:g} {unit}" + (f", as for {self.marker}" if self.marker else "")


def tolerance_of(
    voxel_um: ZyxUm | None,
    *,
    tolerance_um: float | None = None,
    tolerance_voxels: float | None = None,
    marker: str | None = None,
) -> Tolerance:
    """The one tolerance given; CanvasError for none, several, an unknown marker or no voxel size."""
    options = {"µm": tolerance_um, "voxels": tolerance_voxels, "marker": marker}
    named = [name for name, value in options.items() if value is not None]
    if len(named) != 1:
        raise CanvasError(
            f"tolerances given: {', '.join(named) or 'none'}; expected one of a marker, voxels or µm "
            "(--marker, --tolerance-voxels, --tolerance-um)"
        )
    if marker is not None:
        known = _marker(marker)
        return Tolerance(MARKER_TOLERANCE[known], "voxels", (1.0, 1.0, 1.0), known)
    if tolerance_voxels is not None:
        return Tolerance(float(tolerance_voxels), "voxels", (1.0, 1.0, 1.0))
    assert tolerance_um is not None
    if voxel_um is None:
        raise CanvasError("a tolerance in µm needs the voxel size: give --voxel-um Z Y X")
    return Tolerance(float(tolerance_um), "um", voxel_um)


def _marker(marker: str) -> str:
    """The paper's spelling of a marker: Iba1, iba-1 and IBA1 are the same."""
    plain = {name.casefold(): name for name in MARKER_TOLERANCE}
    normalised = marker.casefold().replace("-", "").replace("_", "").replace(" ", "")
    if normalised in plain:
        return plain[normalised]
    matches = difflib.get_close_matches(normalised, plain, n=1)
    hint = f"did you mean {plain[matches[0]]}?" if matches else f"known: {', '.join(MARKER_TOLERANCE)};"
    raise CanvasError(
        f"no tolerance is known for the marker {marker!r}; {hint} else give one in voxels or µm"
    )
