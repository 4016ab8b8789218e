"""Options of `detect`, by a trained detector or by the Laplacian of a Gaussian."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from canvas_fm.files.option_sets import AnySequence, Flag, Options, Positive, Size
from canvas_fm.inference.run_flags import DetectorRun

BOX = ("Z0", "Y0", "X0", "Z1", "Y1", "X1")


class BoxOptions(Options):
    """The box of the volume in which cells are detected."""

    box: Annotated[tuple[int, int, int, int, int, int] | None, AnySequence, Flag(BOX)] = Field(
        None, description="only this box, in voxels of level 0"
    )
    subvoxel: bool = Field(False, description="positions between voxels, by a parabola")


class TileOptions(BoxOptions):
    """Box of the volume to detect in, and its tiling."""

    tile_zyx: Annotated[
        tuple[Positive, Positive, Positive] | None, AnySequence, Flag(("Z", "Y", "X"), name="--tile")
    ] = Field(
        None,
        description="voxels of a tile; default: what reads the fewest voxels twice in about 1.5 GB",
    )


class CellOptions(Options):
    """Which maxima of a heat map are cells: threshold and least distance."""

    threshold: Annotated[float | None, Flag("T")] = Field(
        None, description="lowest score of a cell; default: the model's; for log 0.2"
    )
    min_distance_um: Annotated[Size | None, Flag("D")] = Field(
        None,
        description="of two nearer than this only the better is a cell; default: the model's; for log 10",
    )


class DetectOptions(CellOptions, TileOptions, DetectorRun):
    """Options of detection by a trained detector."""


class LogOptions(TileOptions):
    """Options of detection by the Laplacian of a Gaussian, which needs no model."""

    sigma_um: Annotated[Size, Flag("S")] = Field(5.0, description="of the Gaussian of log; default 5")
    threshold: Size = Field(0.2, description="lowest response of a cell")
    min_distance_um: Size = Field(10.0, description="of two nearer than this only the better is a cell")
