"""What goes over the wire of the jobs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from serving.protocol.schemas import Number, Output

Step = Annotated[int, Field(strict=True, ge=1, le=2**31)]


class JobRequest(BaseModel):
    """Body of `POST /v1/jobs`: what to do with which points of a registered volume."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["embed", "refine"]
    volume: str
    points_zyx: list[list[Number]] | None = None
    points_csv: str | None = None
    """The text of a CSV with columns z, y, x; further columns are kept."""
    grid: tuple[Step, Step, Step] | None = None
    """Embed the whole volume, at points so many voxels apart."""
    model: str | None = None
    pool: Output | None = None
    layer: int | None = None
    refiner: str | None = None
    background: str | None = None


class JobInfo(BaseModel):
    """A job: what it does, by models of which sha256, and how many of its points are done."""

    id: str
    kind: Literal["embed", "refine"]
    volume: str
    encoder: str | None
    pool: str | None
    layer: int | None
    refiner: str | None
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    done: int
    total: int
    error: str | None
    created: str
    ended: str | None
    result: str | None
    """Where the result is fetched, once it is there."""
