"""Request and response bodies as pydantic models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from canvas_fm.data.volume.options import VolumeOptions
from canvas_fm.inference.detect.options import BoxOptions, CellOptions, DetectOptions
from canvas_fm.inference.options import Output, Pool
from serving.protocol.settings import Limits

Number = Annotated[float, Field(strict=True)]  # "1.5" and true are no numbers
Row = Annotated[list[Number], Field(fail_fast=True)]
Rows = Annotated[list[Row], Field(fail_fast=True)]
"""Lists of numbers; the first mistake ends the check: millions of them would hold all requests up."""
Ids = Annotated[list[str | int], Field(fail_fast=True)]
Step = Annotated[int, Field(strict=True, ge=1, le=2**31)]


class PointsRequest(BaseModel):
    """Body of `/v1/embed/points`: points in z, y, x voxels of level 0 of a registered volume."""

    model_config = ConfigDict(extra="forbid")

    volume: str
    points_zyx: Rows
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
    """Body of `/v1/embed` as JSON: crops and options."""

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
    t: int | None
    c: int | None
    """Time point and channel that were chosen, where there are several."""
    bad_chunks: int
    """Damaged chunks that were read as zeros so far, with `on_bad_chunk: skip`."""


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


class DetectorInfo(BaseModel):
    """A served detector, for `/v1/detect` and for refiners that look at what it sees."""

    name: str
    sha256: str
    voxel_um: tuple[float, float, float]
    window_rule: dict[str, object]
    channels: int
    """1, or 2 where it reads a background volume too."""
    threshold: float
    min_distance_um: float
    card: str | None


class ServiceInfo(BaseModel):
    """`GET /v1/info` of a service of detectors alone: all that is served."""

    models: list[str] = []
    """Encoders."""
    detectors: dict[str, DetectorInfo] = {}
    volumes: dict[str, VolumeInfo]
    indexes: dict[str, IndexInfo] = {}
    refiners: dict[str, RefinerInfo] = {}
    limits: Limits
    device: str
    version: str


class Info(ModelInfo, ServiceInfo):
    """`GET /v1/info`: the default model, and what else is served."""


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
BelowRoot = Annotated[str, Field(min_length=1, max_length=1000)]


class Addition(BaseModel):
    """Body of `POST /v1/models`: a name, and a path below an allow-listed folder."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    path: BelowRoot


class VolumeAddition(VolumeOptions):
    """Body of `POST /v1/volumes`: the same, and how the volume is opened."""

    model_config = ConfigDict(strict=True)

    name: Name
    path: BelowRoot


class DetectRequest(CellOptions, BoxOptions):
    """Body of `/v1/detect`: where cells are looked for in a registered volume."""

    model_config = ConfigDict(strict=True)

    volume: str
    background: str | None = Field(
        None, description="registered volume of the background channel, for a detector that reads one"
    )
    detector: str | None = Field(None, description="name or sha256; default the only one")

    @property
    def options(self) -> dict[str, Any]:
        """Those of `canvas_fm.detect` that were stated."""
        return {name: value for name, value in self.given.items() if name in DetectOptions.model_fields}


class DetectReply(BaseModel):
    """Cells in z, y, x order with their score, sha256 and threshold of the detector that found them."""

    points_zyx: list[tuple[float, float, float]]
    score: list[float]
    detector: str
    threshold: float
    warnings: list[str]
    """Why the threshold may not carry to this volume."""


class RefineRequest(BaseModel):
    """Body of `/v1/refine`: points of a registered volume, or crops."""

    model_config = ConfigDict(extra="forbid")

    refiner: str | None = None
    """Name or sha256; the only one where that is not given."""
    volume: str | None = None
    points_zyx: Rows | None = None
    background: str | None = None
    """The registered volume of the background channel, where the refiner's detector reads one."""
    crops: EncodedCrops | None = None
    window: tuple[Number, Number] | None = None
    all_candidates: bool = False
    """These are all of the brain's candidates, by which a refiner with a correction corrects it."""


class RefineReply(BaseModel):
    """P(cell) of each row, and whether it reaches the threshold; sha256 of the models behind it."""

    p_cell: list[float]
    is_cell: list[bool]
    threshold: float
    refiner: str
    encoder: str | None
    detector: str | None


class JobRequest(BaseModel):
    """Body of `POST /v1/jobs`: kind of job and points of a registered volume."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["embed", "refine"]
    volume: str
    points_zyx: Rows | None = None
    points_csv: str | None = None
    """The text of a CSV with columns z, y, x; further columns are kept."""
    grid: tuple[Step, Step, Step] | None = None
    """Embed the whole volume, at points so many voxels apart."""
    model: str | None = None
    pool: Output | None = None
    layer: int | None = None
    refiner: str | None = None
    background: str | None = None


class JobInfo(BaseModel):
    """A job: kind, sha256 of its models, progress."""

    id: str
    kind: Literal["embed", "refine"]
    volume: str
    encoder: str | None
    pool: str | None
    layer: int | None
    refiner: str | None
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    done: int
    total: int
    error: str | None
    created: str
    ended: str | None
    result: str | None
    """Where the result is fetched, once it is there."""


class SearchRequest(BaseModel):
    """Body of `/v1/search`: query vectors, or cells by id, or examples and counter-examples."""

    model_config = ConfigDict(extra="forbid")

    index: str | None = None
    vectors: Rows | None = None
    encoder: str | None = None
    """sha256 of the encoder that made the vectors; compared with the index's."""
    ids: Ids | None = None
    like: Ids | None = None
    unlike: Ids = []
    k: Annotated[int, Field(ge=1)] = 10
    where: Annotated[list[str], Field(fail_fast=True)] = []
    thumbnails: bool = False
    """Give each hit the registered `volume` that it lies in, and a `thumbnail`: a PNG as base64."""


class SearchReply(BaseModel):
    """Hits, nearest first, with `query` and `rank` from 1; novelty of each query, if known."""

    index: str
    encoder: str
    hits: list[dict[str, object]]
    novelty: list[float] | None


class MapColumn(BaseModel):
    """`number`, or `text` with the words that codes of `/v1/map/column` mean; -1 is none, -2 another one."""

    kind: Literal["number", "text"]
    words: list[str] | None


class MapInfo(BaseModel):
    """A map of an index: number of its cells, and their columns."""

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
    rows: Annotated[list[Annotated[int, Field(strict=True)]], Field(fail_fast=True)] | None = None
    ids: Ids | None = None
    thumbnails: bool = False


class CellsReply(BaseModel):
    """One dictionary a cell, in the order of the rows; `volume` is its registered volume."""

    index: str
    cells: list[dict[str, object]]
