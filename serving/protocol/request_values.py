"""Value types of requests, with the text that stands for each in a query: numbers, lists, boxes, names."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field, ValidationInfo

from canvas_fm.files.option_sets import AnySequence

_SWITCH = {"1": True, "true": True, "0": False, "false": False}


@dataclass(frozen=True)
class Text:
    """A field's form as a query parameter: an example, and whether it may be repeated."""

    example: str = ""
    several: bool = False


def _of_text(read: Callable[[str], Any]) -> BeforeValidator:
    def validate(value: Any, about: ValidationInfo) -> Any:
        try:
            return read(value) if isinstance(value, str) else value
        except ValueError as problem:
            raise ValueError(f"{about.field_name} is {value[:50]!r}; it has to be {problem}") from problem

    return BeforeValidator(validate)


def _switch(text: str) -> bool:
    if text not in _SWITCH:
        raise ValueError(f"one of {', '.join(_SWITCH)}")
    return _SWITCH[text]


def _window(text: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low, high = math.nan, math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError("LO,HI: two numbers, the lower one first")
    return low, high


def _size(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) < 8 for part in parts):
        raise ValueError("Z,Y,X: three whole numbers of voxels")
    return tuple(map(int, parts))


Number = Annotated[float, Field(strict=True)]  # "1.5" and true are no numbers
Row = Annotated[list[Number], Field(fail_fast=True)]
Rows = Annotated[list[Row], Field(fail_fast=True)]
"""Lists of numbers; the first mistake ends the check: millions of them would hold all requests up."""
ParsedRows = list[list[float]] | np.ndarray
"""`Rows` as they arrive: those of a large body are one array where all have one length."""
Planes = Annotated[list[Rows], Field(fail_fast=True)]
Ids = Annotated[list[str | int], Field(fail_fast=True)]
Voxel = Annotated[int, Field(strict=True, ge=0, le=2**31)]
Step = Annotated[int, Field(strict=True, ge=1, le=2**31)]
Switch = Annotated[bool, _of_text(_switch)]
Window = Annotated[tuple[Number, Number], AnySequence, _of_text(_window), Text("217.5,4096")]
SizeZyx = Annotated[tuple[int, int, int], AnySequence, _of_text(_size), Text("1,64,64")]
Place = Annotated[int, Field(ge=0, lt=2**31)]
Conditions = Annotated[list[str], Field(fail_fast=True), Text(several=True)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
BelowRoot = Annotated[str, Field(min_length=1, max_length=1000)]
