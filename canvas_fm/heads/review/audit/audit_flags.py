"""Options of an audit: how many detections and boxes are looked at, and where."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from canvas_fm.files.option_sets import Flag, Options, Positive, Size


class AuditOptions(Options):
    """Options for drawing the sample of an audit."""

    sample: Annotated[Positive, Flag("N")] = Field(200, description="detections to look at")
    boxes: Annotated[int, Flag("N")] = Field(
        30, ge=0, description="boxes to search for missed cells; 0: precision alone, without recall or count"
    )
    strata: Annotated[Positive, Flag("N")] = Field(
        5, description="groups of detections of similar score, each sampled by itself"
    )
    box_um: Annotated[tuple[Size, Size, Size], Flag(("Z", "Y", "X"))] = Field(
        (60.0, 100.0, 100.0), description="about the size of a box in µm"
    )
    everywhere: bool = Field(
        False,
        description="sample boxes far from every detection too; by default a box without a detection in it "
        "or in one of its neighbours is taken to be outside the tissue that was detected in",
    )
    score_column: Annotated[str | None, Flag("COLUMN")] = Field(
        None,
        description="column of the score by which detections are grouped; default p_cell, score, log_score",
    )
    threshold: Annotated[float | None, Flag("T")] = Field(
        None, description="only rows with a score at or above it are detections"
    )
    seed: int = Field(0, description="of the random sample")
