"""Options of the comparison of groups of brains: of `groups` and of a study's section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from canvas_fm.files.option_sets import Flag, Options, Size


class GroupOptions(Options):
    """Options for comparing groups of brains region by region."""

    reference: Annotated[str | None, Flag("GROUP")] = Field(
        None, description="the control group; default: that of the first brain"
    )
    model: Literal["welch", "negative-binomial", "mixed"] = Field(
        "welch",
        description="t-test of log densities, a regression of counts, or a mixed model of --repeats",
    )
    hemisphere: Literal["both", "left", "right"] = Field("both", description="which side is compared")
    without_children: bool = Field(False, description="each region without its children")
    min_count: float = Field(
        10.0, ge=0, description="a region is tested where the mean brain has so many cells"
    )
    power_fold_change: Size = Field(1.5, description="fold change for which statistical power is computed")
