"""Options of `adapt`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from canvas_fm.files.option_sets import Flag, Positive, Size
from canvas_fm.inference.run_flags import DeviceOptions, VoxelOptions


class AdaptOptions(DeviceOptions, VoxelOptions):
    """Options for adapting a detector to a new brain by a few labelled cells."""

    tolerance_um: Annotated[Size | None, Flag("N")] = Field(
        None,
        description="farthest match of a detection and a cell in µm; default: the detector's least distance "
        "of two cells",
    )
    layers: Literal["none", "self", "last", "all"] = Field(
        "self",
        description="what may be trained beside the threshold, without and with blob amplitude in the score, "
        "which none tries alone: self all layers, on the labels and on confident detections elsewhere in the "
        "volume; last the last block and the head, all every layer too, on the labels; cross-validation "
        "chooses",
    )
    folds: Annotated[int, Field(ge=2, le=20), Flag("K")] = Field(
        3, description="parts of the labelled boxes, each scored by what was fitted on the others"
    )
    steps: Positive = Field(120, description="optimizer steps of each training")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of crops and resampling")
