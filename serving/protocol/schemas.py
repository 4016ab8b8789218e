"""Response bodies as pydantic models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel

from canvas_fm.inference.run_flags import Pool
from serving.protocol.settings import Limits


class EmbeddingsReply(BaseModel):
    """Embeddings as JSON, rows in the order of the request, and the sha256 of the encoder that made them."""

    embeddings: list[list[Any]]
    """A list of numbers a row; of `tokens` and `grid` lists in lists."""
    model: str


class OpenAIEmbedding(BaseModel):
    """One vector of a reply in the shape of OpenAI's API."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    """Numbers, or float32 little-endian as base64."""


class OpenAIUsage(BaseModel):
    """Patches that passed through the encoder, counted as tokens."""

    prompt_tokens: int
    total_tokens: int


class OpenAIReply(BaseModel):
    """Embeddings in the shape of OpenAI's API, in the order of the request."""

    object: Literal["list"]
    data: list[OpenAIEmbedding]
    model: str
    usage: OpenAIUsage


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


class LevelInfo(BaseModel):
    shape_zyx: tuple[int, int, int]
    voxel_um: tuple[float, float, float]


class PyramidInfo(BaseModel):
    """Levels of a volume from which tiles are served: `GET /v1/pyramid`."""

    volume: str
    side: int
    """Voxels of a tile in y and x, at every level."""
    levels: list[LevelInfo]
    start_zyx: tuple[int, int, int]
    """A bright place, in voxels of level 0."""


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
    """Result of an int8 check of this encoder: neighbours that stay, and how far F1 moves."""
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
    reviewed: str | None = None
    """The volume whose candidates are reviewed on the page."""
    limits: Limits
    device: str
    version: str


class Info(ModelInfo, ServiceInfo):
    """`GET /v1/info`: the default model, and what else is served."""


class CountReply(BaseModel):
    """Expected count: of what, its 90 % interval, and what to know about it."""

    count_of: str
    expected_cells: float
    interval_90: tuple[float, float]
    notes: list[str]

    @classmethod
    def of(cls, count: Mapping[str, Any]) -> CountReply:
        """From the fields that `refine apply --json` prints."""
        return cls(**{name: count[name] for name in cls.model_fields})

    def headers(self) -> dict[str, str]:
        """The same as response headers."""
        return {
            "X-Count-Of": self.count_of,
            "X-Expected-Cells": f"{self.expected_cells:.2f}",
            "X-Interval-90": "{:.2f} {:.2f}".format(*self.interval_90),
        }


class DetectReply(BaseModel):
    """Cells in z, y, x order with their score, sha256 and threshold of the detector that found them."""

    points_zyx: list[tuple[float, float, float]]
    score: list[float]
    detector: str
    threshold: float
    warnings: list[str]
    """Why the threshold may not carry to this volume."""
    count: CountReply | None
    """Of all cells of the box, by the cells per detection on held-out brains; null for other detectors."""


class RefineReply(BaseModel):
    """P(cell) of each row, and whether it reaches the threshold; sha256 of the models behind it."""

    p_cell: list[float]
    is_cell: list[bool]
    count: CountReply
    threshold: float
    refiner: str
    encoder: str | None
    detector: str | None


class JobInfo(BaseModel):
    """A job: kind, sha256 of its models, progress."""

    id: str
    kind: Literal["embed", "refine", "detect"]
    volume: str
    encoder: str | None
    pool: str | None
    layer: int | None
    refiner: str | None
    detector: str | None
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    done: int
    total: int
    """Points, or of `detect` tiles."""
    error: str | None
    created: str
    ended: str | None
    result: str | None
    """Address of the result, once it is there."""


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
    """Methods available here: UMAP is an extra."""
    share: tuple[float, float] | None
    """Of the variance, along each axis of a PCA."""
    columns: dict[str, MapColumn]


class CellsReply(BaseModel):
    """One dictionary a cell, in the order of the rows; `volume` is its registered volume."""

    index: str
    cells: list[dict[str, object]]
