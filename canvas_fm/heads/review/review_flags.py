"""Options of a review: who looks at which candidates, in what order, and what is learned from."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from canvas_fm.files.option_sets import AnySequence, Flag, Options
from canvas_fm.heads.review.order import Order

Names = Annotated[tuple[str, ...], AnySequence]


class ReviewOptions(Options):
    """Options of a review."""

    order: Order = Field("uncertain", description="what is shown first; one in five is random in any order")
    annotator: Annotated[Names, Flag("NAME")] = Field(
        ("me",), description="who clicks; with several names each has a link of their own"
    )
    refiner: Annotated[str | None, Flag("MODEL")] = Field(
        None, description="a refiner whose P(cell) is the starting point"
    )
    encoder: Annotated[str | None, Flag("MODEL")] = Field(
        None, description="an encoder whose embeddings are learned from too, beside intensity and shape"
    )
    adapt: Annotated[str | None, Flag("MODEL")] = Field(
        None,
        description="the detector that found the candidates: its threshold is adapted to the answers in the "
        "background, and the detector written next to the labels, as LABELS_detector",
    )
    resample: bool = Field(False, description="read the encoder's crops at its own voxel size")
    seed: int = Field(0, description="of the random order")
