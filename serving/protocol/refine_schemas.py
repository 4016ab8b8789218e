"""What goes over the wire of `/v1/refine`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from serving.protocol.schemas import EncodedCrops, Number


class RefineRequest(BaseModel):
    """Body of `/v1/refine`: points of a registered volume, or crops."""

    model_config = ConfigDict(extra="forbid")

    refiner: str | None = None
    """Name or sha256; the only one where that is not given."""
    volume: str | None = None
    points_zyx: list[list[Number]] | None = None
    background: str | None = None
    """The registered volume of the background channel, where the refiner's detector reads one."""
    crops: EncodedCrops | None = None
    window: tuple[Number, Number] | None = None
    all_candidates: bool = False
    """These are all of the brain's candidates, by which a refiner with a correction corrects it."""


class RefineReply(BaseModel):
    """P(cell) of each row, and whether it reaches the threshold; sha256 of the models behind it."""

    p_cell: list[float]
    is_cell: list[bool]
    threshold: float
    refiner: str
    encoder: str | None
    detector: str | None
