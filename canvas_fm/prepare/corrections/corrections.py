"""Corrections of every plane of a channel before it is written: flat field, stripes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Num

from canvas_fm.prepare.corrections.destripe import Destriper
from canvas_fm.prepare.corrections.flat_field.flat_field import FlatField


@dataclass(frozen=True)
class Correction:
    """Flat-field first, then stripes; either can be left out."""

    flat_field: FlatField | None = None
    destriper: Destriper | None = None

    @property
    def is_there(self) -> bool:
        return self.flat_field is not None or self.destriper is not None

    @property
    def memory_planes(self) -> int:
        """Planes of 32 bits that correcting one holds at once."""
        return 12 if self.destriper is not None else 3 if self.flat_field is not None else 0

    def apply(self, plane: Num[np.ndarray, "y x"]) -> Num[np.ndarray, "y x"]:
        """The corrected plane in its own type: rounded and clipped where that is an integer."""
        values = plane.astype(np.float32)
        if self.flat_field is not None:
            values = self.flat_field.divide(values)
        if self.destriper is not None:
            values = self.destriper.remove(values)
        if plane.dtype.kind == "f":
            return values.astype(plane.dtype)
        limits = np.iinfo(plane.dtype)
        values = values.astype(np.float64) if plane.dtype.itemsize > 2 else values  # 2³² − 1 is no float32
        return np.clip(np.rint(values), limits.min, limits.max).astype(plane.dtype)
