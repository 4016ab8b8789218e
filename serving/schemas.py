"""What goes over the wire and how the service is set up, as pydantic models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Pool = Literal["mean", "cls", "centre"]
Number = Annotated[float, Field(strict=True)]  # "1.5" and true are no numbers


class Limits(BaseModel):
    """How much the service takes on before it says 413, 429 or 504."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_body_mb: float = Field(default=256, gt=0)
    """Largest body of `/v1/embed`."""
    max_json_mb: float = Field(default=32, gt=0)
    """Largest JSON body."""
    max_inflight_mb: float = Field(default=1024, gt=0)
    """Bodies of all requests that are being worked on together."""
    max_json_crops: int = Field(default=64, gt=0)
    """Crops of one `/embed_json`: nested lists are 30 to 60 times slower than `.npy`."""
    max_points: int = Field(default=10_000, gt=0)
    """Points of one `/v1/embed/points`."""
    max_queue_crops: int = Field(default=8192, gt=0)
    """Crops that wait; more in one request is 413, more in all is 429."""
    max_batch: int | None = Field(default=None, gt=0)
    """Crops that go through the model together; by default 64 on a CPU, 1024 on a GPU."""
    wait_ms: float = Field(default=3.0, ge=0)
    """How long an idle model waits for a second request to share its batch."""
    deadline_s: float = Field(default=120.0, gt=0, le=540)
    """From a complete request to its answer."""
    stall_s: float = Field(default=30.0, gt=0)
    """A body that brings no byte for so long is given up."""


class Settings(BaseModel):
    """All that a worker process has to know; paths are absolute."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    volumes: dict[str, str] = {}
    device: str = "auto"
    precision: str = "fp32"
    resample: bool = False
    any_voxel: bool = False
    limits: Limits = Limits()
    supervisor: int | None = None
    """Process that is told when the service cannot start; a worker does not outlive it."""


class PointsRequest(BaseModel):
    """Body of `/v1/embed/points`: points in z, y, x voxels of level 0 of a registered volume."""

    model_config = ConfigDict(extra="forbid")

    volume: str
    points_zyx: list[list[Number]]
    pool: Pool | None = None


class EmbeddingsReply(BaseModel):
    """Embeddings as JSON, rows in the order of the request, and the sha256 of the encoder that made them."""

    embeddings: list[list[float]]
    model: str


class VolumeInfo(BaseModel):
    shape_zyx: tuple[int, int, int]
    voxel_um: tuple[float, float, float]
    window: tuple[float, float]
    marker: str | None


class Info(BaseModel):
    """`GET /v1/info`."""

    name: str
    sha256: str
    architecture: dict[str, object]
    crop_zyx: tuple[int, int, int]
    voxel_um: tuple[float, float, float]
    window_rule: dict[str, object]
    pool: Pool
    dimension: int
    volumes: dict[str, VolumeInfo]
    limits: Limits
    device: str
    precision: str
    version: str
