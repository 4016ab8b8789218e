"""Options for opening a volume."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from canvas_fm.data.zyx import ZyxUm, check_voxel_um
from canvas_fm.errors import CanvasError
from canvas_fm.files.option_sets import Flag, Options


def _voxel_um(value: Any) -> ZyxUm | None:
    if value is None:
        return None
    try:
        return check_voxel_um(value)
    except CanvasError as problem:
        raise ValueError(str(problem)) from problem


VoxelUm = Annotated[ZyxUm | None, BeforeValidator(_voxel_um)]


class VolumeOptions(Options):
    """Options for opening a volume."""

    voxel_um: VoxelUm = Field(
        None, description="voxel size in micrometres, where the store does not state it"
    )
    t: Annotated[int | None, Flag("INDEX")] = Field(
        None, description="time point, where there is more than one"
    )
    c: Annotated[int | None, Flag("INDEX")] = Field(None, description="channel, where there is more than one")
    marker: Annotated[str | None, Flag("NAME")] = Field(
        None, description="the marker, where neither store nor meta.json names it"
    )
    on_bad_chunk: Literal["error", "skip"] = Field(
        "error", description="a damaged chunk stops the work (error), or is read as zeros and reported (skip)"
    )
    missing_chunks: Literal["error", "empty"] = Field(
        "error",
        description="in a store without a manifest: a chunk that is not there is damage (error) or empty "
        "(empty)",
    )
