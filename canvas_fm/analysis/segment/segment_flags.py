"""Options of the threshold watershed."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from canvas_fm.files.option_sets import Options, Size


class SegmentOptions(Options):
    """Options for growing a cell from its seed."""

    level: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.5, description="where a cell ends, as a share of the way from the background to its seed"
    )
    max_radius_um: Size = Field(15.0, description="farthest voxel of a cell from its seed, in µm")
    smooth_um: Annotated[float, Field(ge=0)] = Field(
        1.0, description="width of the Gaussian before thresholding, in µm"
    )
    clip_percentile: Annotated[float, Field(gt=50, le=100)] = Field(
        99.5, description="intensities are clipped at this percentile of the volume"
    )
    branches: bool = Field(False, description="also count ends and branching points of each cell's skeleton")


class PretrainedOptions(Options):
    """Options for running a pretrained segmenter of the user's."""

    model_type: str | None = Field(
        None, description="architecture of the weights; default vit_b of sam, vit_b_lm of micro-sam"
    )
    decoder: str | None = Field(
        None, description="micro-sam: weights of its decoder, without which it segments as SAM does"
    )
    torch_device: str = Field("cpu", description="device of the segmenter, such as cuda")
    clip_percentile: Annotated[float, Field(gt=50, le=100)] = Field(
        99.5, description="intensities are clipped at this percentile of the volume"
    )
    max_radius_um: Size = Field(
        15.0, description="sam: larger masks of a plane, such as the background, are none"
    )
    branches: bool = Field(False, description="also count ends and branching points of each cell's skeleton")
