"""Limits and settings of a worker process, as frozen pydantic models."""

from __future__ import annotations

from pydantic import Field

from canvas_fm.files.option_sets import FrozenModel
from serving.protocol.serve_flags import ServedVolume, WorkerOptions


class Limits(FrozenModel):
    """Limits of the service, beyond which it answers 413, 429 or 504."""

    max_body_mb: float = Field(default=256, gt=0)
    """Largest body of `/v1/embed`."""
    max_json_mb: float = Field(default=32, gt=0)
    """Largest JSON body."""
    max_json_values: int = Field(default=2_000_000, gt=0)
    """Values of one JSON body: each takes many times the memory that its text does."""
    max_inflight_mb: float = Field(default=1024, gt=0)
    """Bodies of all requests that are being worked on together."""
    max_json_crops: int = Field(default=64, gt=0)
    """Crops of one `/embed_json`: nested lists are 30 to 60 times slower than `.npy`."""
    max_detect_mvoxels: float = Field(default=32, gt=0)
    """Million voxels of one `/v1/detect`."""
    max_points: int = Field(default=10_000, gt=0)
    """Points of one `/v1/embed/points`."""
    max_queue_crops: int = Field(default=8192, gt=0)
    """Crops that wait; more in one request is 413, more in all is 429."""
    max_wait_s: float = Field(default=3.0, gt=0)
    """Crops that wait are also at most as many as the model takes in so long; more is 429."""
    max_batch: int | None = Field(default=None, gt=0)
    """Crops that go through the model together; by default 64 on a CPU, 1024 on a GPU."""
    wait_ms: float = Field(default=3.0, ge=0)
    """Time that an idle model waits for a second request to share its batch."""
    deadline_s: float = Field(default=120.0, gt=0, le=540)
    """From a complete request to its answer."""
    header_s: float = Field(default=10.0, gt=0)
    """A connection whose headers are not all there after so long is let go."""
    max_connections: int = Field(default=2048, gt=0)
    """Connections at once; more are told 503."""
    stall_s: float = Field(default=30.0, gt=0)
    """A body that brings no byte for so long is given up, and a reply of which nothing is read."""
    body_s: float = Field(default=300.0, gt=0)
    """A body that is not all there after so long is given up."""
    rate_per_s: float | None = Field(default=None, gt=0)
    """Requests a second of one key (without keys: of one address), in each worker."""
    burst: int = Field(default=20, gt=0)
    """Requests of one key that may come at once where `rate_per_s` is set."""
    stop_s: float | None = Field(default=None, gt=0)
    """Requests in flight when the service stops may take this long; then they are ended. By default
    5 s more than `deadline_s`: every request that has come is answered."""
    cache_mb: float = Field(default=0, ge=0)
    """Embeddings kept for when the same crops come again, told by their content; 0 keeps none."""
    max_jobs: int = Field(default=16, gt=0)
    """Jobs that wait or run; more are 429."""
    max_kept_jobs: int = Field(default=200, gt=0)
    """Jobs of one key, finished ones too, until they are deleted."""
    max_job_points: int = Field(default=2_000_000, gt=0)
    """Points of one job."""
    max_hits: int = Field(default=1000, gt=0)
    """Hits of one query of `/v1/search`."""
    max_map_cells: int = Field(default=200_000, gt=0)
    """Cells that a map shows; of a larger index as many are drawn at random."""

    @property
    def stopping_s(self) -> float:
        """Seconds that the service has to end."""
        return self.deadline_s + 5 if self.stop_s is None else self.stop_s


class ServedReview(FrozenModel):
    """Candidates of a registered volume that are reviewed, and where their labels are written."""

    volume: str
    candidates: str
    labels: str


class ServiceSettings(WorkerOptions):
    """All settings of a worker process; paths are absolute."""

    model: str | None
    """Model of requests that name none; None where detectors alone are served."""
    name: str = ""
    """Of that model; empty for the name of its folder."""
    volumes: dict[str, ServedVolume] = Field(default={})
    """By path, or by https address of a host that is pinned, each with its own options of opening."""
    pinned: dict[str, tuple[str, ...]] = Field(default={})
    """IP addresses of the hosts of remote volumes, as they were when the service started."""
    limits: Limits = Limits()
    models: dict[str, str] = Field(default={})
    """Further models by name, encoders and detectors."""
    refiners: dict[str, str] = Field(default={})
    indexes: dict[str, str] = Field(default={})
    reviewed: ServedReview | None = None
    keys: dict[str, str] = Field(default={})
    """sha256 of the bearer keys by name; without any nobody is asked for one."""
    workers: int = 1
    turns: str | None = None
    """Folder of the locks by which `workers` processes answer and others wait."""
    supervisor: int | None = None
    """Process that is told when the service cannot start; a worker does not outlive it."""


NO_SETTINGS = ServiceSettings.model_validate({"model": None})
"""Before they are read: no model, no keys, the default limits."""
