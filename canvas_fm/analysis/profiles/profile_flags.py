"""Options of profiles of cells between groups: of `profiles` and of a study's section."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from canvas_fm.files.option_sets import Flag, Options, Positive


class ProfileOptions(Options):
    """Options for comparing cell profiles per region between groups."""

    reference: Annotated[str | None, Flag("GROUP")] = Field(
        None, description="the control group; default: that of the first brain"
    )
    clusters: Positive = Field(12, description="k of k-means over all cells")
    min_cells: Positive = Field(20, description="cells of a region in every brain to test it")
    max_cells: Positive = Field(50_000, description="cells of a brain to compare, drawn at random")
    seed: int = Field(0, description="of draws and clusters")
