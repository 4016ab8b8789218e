"""What goes over the wire and how the service is set up, as pydantic models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Pool = Literal["mean", "cls", "centre", "contrast"]
Output = Literal["mean", "cls", "centre", "contrast", "tokens", "grid"]
"""What one crop gives: a vector (d,), or a vector for each patch: (tokens, d) or (d, z, y, x)."""
Number = Annotated[float, Field(strict=True)]  # "1.5" and true are no numbers


class Limits(BaseModel):
    """How much the service takes on before it says 413, 429 or 504."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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
    max_points: int = Field(default=10_000, gt=0)
    """Points of one `/v1/embed/points`."""
    max_queue_crops: int = Field(default=8192, gt=0)
    """Crops that wait; more in one request is 413, more in all is 429."""
    max_wait_s: float = Field(default=3.0, gt=0)
    """Crops that wait are also at most as many as the model takes in so long; more is 429."""
    max_batch: int | None = Field(default=None, gt=0)
    """Crops that go through the model together; by default 64 on a CPU, 1024 on a GPU."""
    wait_ms: float = Field(default=3.0, ge=0)
    """How long an idle model waits for a second request to share its batch."""
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
    stop_s: float = Field(default=30.0, gt=0)
    """What is being answered when the service is told to stop has so long; then it is given up."""
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


class Settings(BaseModel):
    """All that a worker process has to know; paths are absolute."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    volumes: dict[str, str] = {}
    """Paths, and https addresses of hosts that are pinned."""
    pinned: dict[str, tuple[str, ...]] = {}
    """IP addresses of the hosts of remote volumes, as they were when the service started."""
    device: str = "auto"
    precision: str = "fp32"
    backend: str = "torch"
    resample: bool = False
    ignore_voxel_size: bool = False
    limits: Limits = Limits()
    models: dict[str, str] = {}
    """Further models by name; detectors are there for refiners."""
    refiners: dict[str, str] = {}
    indexes: dict[str, str] = {}
    jobs: str | None = None
    """The folder that holds jobs; without one none are run."""
    roots: tuple[str, ...] = ()
    """Folders below which models and volumes may be added while the service runs."""
    keys: dict[str, str] = {}
    """sha256 of the bearer keys by name; without any nobody is asked for one."""
    origins: tuple[str, ...] = ()
    """Web pages of these origins may read the answers."""
    log: Literal["text", "json"] = "text"
    traces: str | None = None
    """Address of an OpenTelemetry collector, by OTLP over HTTP."""
    workers: int = 1
    supervisor: int | None = None
    """Process that is told when the service cannot start; a worker does not outlive it."""


class PointsRequest(BaseModel):
    """Body of `/v1/embed/points`: points in z, y, x voxels of level 0 of a registered volume."""

    model_config = ConfigDict(extra="forbid")

    volume: str
    points_zyx: list[list[Number]]
    pool: Output | None = None
    layer: int | None = None
    model: str | None = None
    normalize: bool = False
    whiten: str | None = None
    """An index, by whose vectors the embeddings are whitened."""
    dtype: Literal["float32", "float16"] = "float32"


class EncodedCrops(BaseModel):
    """Crops inside JSON: their values in C order, little-endian, as base64."""

    model_config = ConfigDict(extra="forbid")

    dtype: Literal["uint16", "float32"]
    shape: Annotated[list[Annotated[int, Field(ge=0, lt=2**40, strict=True)]], Field(max_length=8)]
    base64: str


class EmbedRequest(BaseModel):
    """Body of `/v1/embed` as JSON: what `.npy` and the address say otherwise."""

    model_config = ConfigDict(extra="forbid")

    crops: EncodedCrops
    window: tuple[Number, Number] | None = None
    pool: Output | None = None
    layer: int | None = None
    model: str | None = None
    normalize: bool = False
    whiten: str | None = None
    dtype: Literal["float32", "float16"] = "float32"


class EmbeddingsReply(BaseModel):
    """Embeddings as JSON, rows in the order of the request, and the sha256 of the encoder that made them."""

    embeddings: list[list[Any]]
    """A list of numbers a row; of `tokens` and `grid` lists in lists."""
    model: str


class VolumeInfo(BaseModel):
    shape_zyx: tuple[int, int, int]
    voxel_um: tuple[float, float, float]
    window: tuple[float, float]
    marker: str | None


class ModelInfo(BaseModel):
    """One served model: `GET /v1/models` lists them, the default first."""

    name: str
    sha256: str
    architecture: dict[str, object]
    crop_zyx: tuple[int, int, int]
    voxel_um: tuple[float, float, float]
    window_rule: dict[str, object]
    pool: Pool
    dimension: int
    layers: int
    """Blocks; `layer` may be 0 to this."""
    reconstructs: bool
    """Whether its folder was saved with a decoder."""
    reconstruction_given: str | None
    """What a reconstruction is given of hidden patches, if anything: its dB compare only with models that are
    given the same."""
    backend: str
    precision: str
    int8: dict[str, object] | None
    """What a check of int8 found for this encoder: neighbours that stay, and how far F1 moves."""
    card: str | None
    """The model card of a shipped model, in Markdown."""
    mask_ratio: float
    """The share of patches that was hidden in training; the default of `/v1/reconstruct`."""


class IndexInfo(BaseModel):
    rows: int
    metric: str
    structure: str
    encoder: str
    pool: str
    layer: int | None
    recall: dict[str, object]


class RefinerInfo(BaseModel):
    """A served refiner, the models behind its features and how they are made."""

    sha256: str
    encoder: str | None
    detector: str | None
    """sha256 of each; one with a detector judges points of a registered volume, not crops."""
    pool: str | None
    layer: int | None
    threshold: float
    correction: str
    """`none`, or how a brain is corrected by all of its candidates, which then have to come together."""
    card: str | None


class Info(ModelInfo):
    """`GET /v1/info`: the default model, and what else is served."""

    models: list[str] = []
    volumes: dict[str, VolumeInfo]
    indexes: dict[str, IndexInfo] = {}
    refiners: dict[str, RefinerInfo] = {}
    limits: Limits
    device: str
    version: str


class Addition(BaseModel):
    """Body of `POST /v1/models` and `/v1/volumes`: a name, and a path below an allow-listed folder."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    path: Annotated[str, Field(min_length=1, max_length=1000)]


class SearchRequest(BaseModel):
    """Body of `/v1/search`: query vectors, or cells by id, or examples and counter-examples."""

    model_config = ConfigDict(extra="forbid")

    index: str | None = None
    vectors: list[list[Number]] | None = None
    encoder: str | None = None
    """sha256 of the encoder that made the vectors; compared with the index's."""
    ids: list[str | int] | None = None
    like: list[str | int] | None = None
    unlike: list[str | int] = []
    k: Annotated[int, Field(ge=1)] = 10
    where: list[str] = []
    thumbnails: bool = False
    """Give each hit the registered `volume` that it lies in, and a `thumbnail`: a PNG as base64."""


class SearchReply(BaseModel):
    """Hits, nearest first, `query` and `rank` from 1 in each; how new each query is, where that is known."""

    index: str
    encoder: str
    hits: list[dict[str, object]]
    novelty: list[float] | None


class MapColumn(BaseModel):
    """`number`, or `text` with the words that codes of `/v1/map/column` mean; -1 is none, -2 another one."""

    kind: Literal["number", "text"]
    words: list[str] | None


class MapInfo(BaseModel):
    """A map of an index: how many of its cells it shows, and what can be told of each."""

    index: str
    encoder: str
    cells: int
    shown: int
    method: str
    methods: list[str]
    """What can be asked for here: UMAP is an extra."""
    share: tuple[float, float] | None
    """Of the variance, along each axis of a PCA."""
    columns: dict[str, MapColumn]


class CellsRequest(BaseModel):
    """Body of `/v1/cells`: cells by row, as hits and the column `row` of a map give them, or by id."""

    model_config = ConfigDict(extra="forbid")

    index: str | None = None
    rows: list[Annotated[int, Field(strict=True)]] | None = None
    ids: list[str | int] | None = None
    thumbnails: bool = False


class CellsReply(BaseModel):
    """A dictionary a cell, in the order of the rows; `volume` is the registered volume that it lies in."""

    index: str
    cells: list[dict[str, object]]
