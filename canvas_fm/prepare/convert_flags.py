"""Options of `convert` and `stitch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from canvas_fm.data.volume.volume_flags import VoxelUm
from canvas_fm.files.option_sets import AnySequence, Flag, Options, Positive, Size

Axis = Literal["y", "x"]


class DestripeOptions(Options):
    """The FFT-wavelet hybrid filter against stripes."""

    stripes_along: Annotated[tuple[Axis, ...], AnySequence, Flag("AXIS")] = Field(
        ("x",), description="the axes that stripes run along, x, y or both; default x"
    )
    stripe_sigma: Annotated[tuple[Size, ...], AnySequence, Flag("CYCLES")] = Field(
        (0.5,),
        description="width of the damped band, in cycles a plane's width: greater for stripes that are short "
        "or lean; one for each axis of --stripes-along, or one for both; default 0.5",
    )
    stripe_level: Annotated[tuple[Annotated[int, Field(ge=0)], ...], AnySequence, Flag("LEVELS")] = Field(
        (5,),
        description="wavelet levels: stripes up to 2^LEVELS voxels wide are removed; one for each axis or "
        "one for both; 0 as many as the plane allows; default 5",
    )
    stripe_foreground: Annotated[float, Flag("K")] = Field(
        2.5,
        gt=0,
        description="voxels brighter than their surroundings by K robust deviations are foreground (cells): "
        "stripes are estimated from the background and divided out of both; default 2.5",
    )
    foreground_sigma: Annotated[tuple[Size, ...], AnySequence, Flag("CYCLES")] = Field(
        (), description="as --stripe-sigma, for the correction of the foreground; default: the same"
    )
    wavelet: Annotated[str, Flag("NAME")] = Field("sym4", description="a wavelet of PyWavelets; default sym4")

    @model_validator(mode="after")
    def _one_each(self) -> DestripeOptions:
        axes = self.stripes_along
        if not axes or len(set(axes)) != len(axes):
            raise ValueError(f"--stripes-along is {' '.join(axes) or 'empty'}; give x, y or both, each once")
        for name in ("stripe_sigma", "stripe_level", "foreground_sigma"):
            values = getattr(self, name)
            if len(values) not in (1, len(axes)) and (values or name != "foreground_sigma"):
                raise ValueError(
                    f"--{name.replace('_', '-')} has {len(values)} values for {len(axes)} axes; give one, or "
                    "one for each"
                )
        return self


class FlatFieldOptions(Options):
    """Correction of uneven illumination."""

    flat_field: bool = Field(
        False,
        description="estimate the shading of each channel from sampled planes (a smooth surface, robust "
        "against cells) and divide by it",
    )
    flat: Annotated[Path | None, Flag("IMAGE")] = Field(
        None, description="a flat image (.tif or .npy, one plane) to divide by, in place of an estimate"
    )
    dark: Annotated[Path | None, Flag("IMAGE")] = Field(
        None, description="a dark image to subtract before; default: the darkest voxels' value"
    )
    flat_method: Literal["surface", "basicpy"] = Field(
        "surface",
        description="how --flat-field estimates: a smooth polynomial surface, or BaSiC by the package "
        "BaSiCPy (extra `basicpy`); default surface",
    )
    flat_planes: Positive = Field(64, description="planes that are sampled for the estimate")
    flat_degree: Annotated[int, Field(ge=1, le=8)] = Field(
        4,
        description="degree of --flat-method surface: smoother is safer where tissue is alike in all planes",
    )


class ConvertOptions(DestripeOptions, FlatFieldOptions):
    """Options for converting an image."""

    voxel_um: VoxelUm = Field(
        None, description="voxel size in micrometres, where the source does not state it"
    )
    t: Annotated[int | None, Flag("INDEX")] = Field(
        None, description="time point, where there is more than one"
    )
    c: Annotated[tuple[int, ...], AnySequence, Flag("INDEX")] = Field(
        (), description="channels that are written, in this order; default all"
    )
    marker: Annotated[tuple[str, ...], AnySequence, Flag("NAME")] = Field(
        (), description="the marker of each channel that is written, in their order"
    )
    dataset: Annotated[str | None, Flag("PATH")] = Field(
        None, description="data set of an HDF5 file, where it holds several"
    )
    scene: Annotated[str | None, Flag("NAME")] = Field(
        None, description="image of a CZI, ND2 or LIF file, where it holds several"
    )
    on_bad_chunk: Literal["error", "skip"] = Field(
        "error",
        description="a damaged plane or chunk stops the work (error), or is read as zeros and reported "
        "(skip)",
    )
    missing_chunks: Literal["error", "empty"] = Field(
        "error",
        description="planes that a series lacks, and chunks that a store without a manifest lacks, are "
        "damage (error) or empty (empty)",
    )
    labels: bool = Field(
        False, description="the voxels are labels: coarser levels hold the most frequent one, not the mean"
    )
    ome: Literal["0.5", "0.4"] = Field(
        "0.5", description="OME-Zarr 0.5 (Zarr v3, sharded) or 0.4 (Zarr v2, a file a chunk)"
    )
    levels: Positive | None = Field(
        None, description="levels of the pyramid, the volume itself among them; default: down to 256 voxels"
    )
    chunk_zyx: Annotated[tuple[Positive, Positive, Positive], AnySequence, Flag(name="--chunk")] = Field(
        (32, 64, 64), description="voxels of a chunk; default 32 64 64, thinner where planes are huge"
    )
    memory_gb: Size = Field(1.5, description="memory to stay below; default 1.5")
    threads: Positive | None = Field(None, description="default: every core that the process may use")
    checksums: Literal["blake3", "sha256", "none"] | None = Field(
        None,
        description="checksum of each source file that is kept beside its size and time; default blake3, and "
        "sha256 where its package is not installed",
    )
    destripe: bool = Field(False, description="remove stripes plane by plane (FFT-wavelet hybrid filter)")
    verify: bool = Field(
        False, description="read back what was written and compare every voxel with the source"
    )

    @model_validator(mode="after")
    def _what_goes_together(self) -> ConvertOptions:
        if len(set(self.c)) < len(self.c):
            raise ValueError(f"--c is {' '.join(map(str, self.c))}; give each channel once")
        if self.labels and (self.destripe or self.flat_field or self.flat):
            raise ValueError("--labels are written as they are: leave --destripe and --flat-field out")
        if self.flat_field and self.flat:
            raise ValueError("--flat-field estimates what --flat gives: give one of them")
        if self.flat_method != "surface" and not self.flat_field:
            raise ValueError(f"--flat-method {self.flat_method} goes with --flat-field")
        if self.dark and not (self.flat_field or self.flat):
            raise ValueError("--dark goes with --flat or --flat-field")
        return self


class StitchOptions(ConvertOptions):
    """Options for placing and blending tiles; the rest as for a conversion."""

    positions: Annotated[Path | None, Flag("TABLE")] = Field(
        None, description="table with the columns tile, z, y, x in voxels, in place of the folders' names"
    )
    keep_positions: bool = Field(
        False, description="register nothing: tiles lie where they are stated, as for another channel"
    )
    max_shift: Annotated[int, Field(ge=1), Flag("VOXELS")] = Field(
        32, description="farthest that a tile may lie from where it is stated"
    )
    min_correlation: Annotated[float, Field(gt=0, lt=1), Flag("R")] = Field(
        0.3, description="overlaps that correlate less after registration are not trusted"
    )
    ramp: Annotated[Positive, Flag("VOXELS")] = Field(
        64, description="voxels from a tile's border over which its weight rises to 1"
    )

    @model_validator(mode="after")
    def _one_channel(self) -> StitchOptions:
        if len(self.c) > 1:
            raise ValueError(
                f"--c is {' '.join(map(str, self.c))}; stitch one channel, then the others with the "
                "positions found: --positions TABLE --keep-positions"
            )
        return self
