"""Requests of the review: an answer, what takes it back, a missed cell, and which candidates are wanted."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from canvas_fm.files.option_sets import Options
from canvas_fm.heads.review.order import Order

MOST_ROWS = 64
Identity = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\w.:-]+$")]
Axis = Annotated[float, Field(ge=-1, le=1e7, allow_inf_nan=False)]
Label = Annotated[int, Field(ge=-1, le=1)]
Row = Annotated[int, Field(ge=0)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    id: Identity


class Answer(_Body):
    """A label of some rows, or of each of a grid's rows."""

    rows: Annotated[list[Row], Field(min_length=1, max_length=MOST_ROWS)]
    label: Label
    wrong: Annotated[list[Row], Field(max_length=MOST_ROWS)] = []


class Back(_Body):
    """Take the last answer back."""


class MissedCell(_Body):
    """A cell without a candidate at z, y, x, or one to be removed."""

    zyx: Annotated[list[Axis], Field(min_length=3, max_length=3)] | None = None
    remove: Identity | None = None


class QueueQuery(Options):
    """Parameters of `/v1/review/queue`, `/answers` and `/back`."""

    order: Order | None = Field(None, description="which candidate comes first; default the review's")


class BatchQuery(Options):
    """Parameters of `/v1/review/batch`."""

    label: Annotated[int, Field(ge=0, le=1)] = Field(description="1 for likely cells, 0 for others")
    count: Annotated[int, Field(ge=1, le=MOST_ROWS)] = Field(description="candidates of the grid")


class CropsQuery(Options):
    """Parameters of `/v1/review/crops`."""

    rows: str = Field(description="numbers of candidates, as 3,17", examples=["0"])


class PlaceQuery(Options):
    """Parameters of `/v1/review/plane` and `/near`."""

    z: float = Field(description="give z, y and x in voxels of level 0", examples=[9])
    y: float = Field(description="give z, y and x in voxels of level 0", examples=[9])
    x: float = Field(description="give z, y and x in voxels of level 0", examples=[9])
