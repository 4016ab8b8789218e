"""Options for running models: device, precision, backend, batch, voxel size."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from canvas_fm.files.option_sets import Flag, Options, Positive

Pool = Literal["mean", "cls", "centre", "contrast"]
Output = Literal["mean", "cls", "centre", "contrast", "tokens", "grid"]
"""Output of one crop: a vector (d,), or a vector for each patch: (tokens, d) or (d, z, y, x)."""


def _as_text(value: object) -> object:
    """Name of a torch.device."""
    return value if value is None else str(value)


class DeviceOptions(Options):
    """Device of a model."""

    device: Annotated[str, BeforeValidator(_as_text), Flag("DEVICE")] = Field(
        "auto", description="auto (a GPU where there is one), cpu, cuda or cuda:N"
    )


class VoxelOptions(Options):
    """What to do where model and volume differ by more than 5 % in voxel size; without either they are
    refused."""

    resample: bool = Field(
        False, description="read crops at the model's physical size and resample them to its voxels"
    )
    ignore_voxel_size: bool = Field(False, description="use the voxels as they are, whatever their size")

    @model_validator(mode="after")
    def _one_of_the_two(self) -> VoxelOptions:
        if self.resample and self.ignore_voxel_size:
            raise ValueError("--resample and --ignore-voxel-size exclude each other: give one of them")
        return self


class DetectorRun(DeviceOptions, VoxelOptions):
    """Options for running a detector."""

    precision: Literal["fp32", "bf16", "auto"] = Field(
        "auto", description="auto is bf16 where the device has it, else fp32; default auto"
    )


class EncoderRun(DeviceOptions, VoxelOptions):
    """Options for running an encoder."""

    precision: Literal["fp32", "bf16", "int8", "auto"] = Field(
        "auto",
        description="auto is bf16 where the device has it, else fp32; default auto; int8 of openvino, where "
        "`canvas-fm quantise` admitted it",
    )
    backend: Literal["torch", "cuda-graphs", "openvino"] = Field(
        "torch",
        description="what the encoder runs on: openvino is for the CPU (extra `cpu`), cuda-graphs for an "
        "NVIDIA GPU",
    )


class BatchedRun(EncoderRun):
    """Options for running an encoder in batches of crops."""

    batch: Positive = Field(64, description="crops at once")


class VectorOptions(Options):
    """Which embedding of a crop: pooling, and number of encoder blocks."""

    pool: Output | None = Field(
        None, description="default: what the encoder's config names; tokens and grid: a vector for each patch"
    )
    layer: Annotated[int, Field(ge=0)] | None = Field(
        None, description="after how many blocks; default: after all"
    )


class EmbedOptions(VectorOptions, BatchedRun):
    """Options for embedding crops around points."""
