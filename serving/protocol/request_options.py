"""Options of requests: query parameters, JSON bodies, OpenAPI and arguments of clients come from them.

A query gives values as text; what its text stands for where pydantic would not know is said by a `Text`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from canvas_fm.data.volume.volume_flags import VolumeOptions
from canvas_fm.files.option_sets import AnySequence, Options
from canvas_fm.inference.detect.detect_flags import BoxOptions, CellOptions, DetectOptions
from canvas_fm.inference.run_flags import Pool, VectorOptions
from serving.protocol.request_values import (
    BelowRoot,
    Conditions,
    Ids,
    Name,
    Place,
    Planes,
    Rows,
    SizeZyx,
    Step,
    Switch,
    Voxel,
    Window,
)


class Windowed(Options):
    """Crops as raw integers come with their volume's window."""

    window: Window | None = Field(None, description="low and high of the volume, with uint16 crops")


class EncodedCrops(Options):
    """Crops inside JSON: their values in C order, little-endian, as base64."""

    dtype: Literal["uint16", "float32"]
    shape: Annotated[list[Annotated[int, Field(ge=0, lt=2**40, strict=True)]], Field(max_length=8)]
    base64: str


class ReplyOptions(VectorOptions):
    """Options of a reply with embeddings: pooling, layer, type, normalisation."""

    model: str | None = Field(None, description="name or sha256; default the first encoder")
    normalize: Switch = Field(False, description="vectors of length 1")
    whiten: str | None = Field(None, description="an index, by whose vectors they are whitened")
    dtype: Literal["float32", "float16"] = Field("float32", description="of the reply")


class EmbedQuery(ReplyOptions, Windowed):
    """Parameters of `/v1/embed` with crops as `.npy` or safetensors."""


class EmbedRequest(EmbedQuery):
    """Body of `/v1/embed` as JSON: crops and options."""

    crops: EncodedCrops


class OpenAIRequest(VectorOptions, Windowed):
    """Body of `/v1/embeddings`, as OpenAI's clients send it: base64 of a crop's values in place of a text."""

    input: str | Annotated[list[str], Field(fail_fast=True, min_length=1)] = Field(
        description="base64 of one crop, or of several: float32, or uint16 with `window`"
    )
    model: str | None = Field(None, description="name or sha256; default the first encoder")
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="of the vectors: float32 as base64"
    )
    dimensions: Step | None = Field(None, description="of a vector; none but the encoder's own")
    user: str | None = Field(None, description="read by nobody")


class PointsRequest(ReplyOptions):
    """Body of `/v1/embed/points`: points in z, y, x voxels of level 0 of a registered volume."""

    volume: str
    points_zyx: Rows


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
        """The options of `canvas_fm.detect` that were stated."""
        return {name: value for name, value in self.explicit.items() if name in DetectOptions.model_fields}


class RefineOptions(Options):
    """Which refiner, and whether it sees all of a brain."""

    refiner: str | None = Field(None, description="name or sha256; default the only one")
    all_candidates: Switch = Field(
        False,
        description="these are all of the brain's candidates, by which a refiner may correct it",
    )


class RefineQuery(RefineOptions, Windowed):
    """Parameters of `/v1/refine` with crops as `.npy` or safetensors."""


class RefineRequest(RefineQuery):
    """Body of `/v1/refine`: points of a registered volume, or crops."""

    volume: str | None = None
    points_zyx: Rows | None = None
    background: str | None = Field(
        None, description="registered volume of the background channel, for a detector that reads one"
    )
    crops: EncodedCrops | None = None
    recall: tuple[int, int] | None = Field(
        None,
        description="[found, cells]: of so many cells looked for by eye, so many have a candidate; the count "
        "is then of all cells",
    )


class SearchOptions(Options):
    """In which index, for how many hits and among which cells."""

    index: str | None = Field(None, description="default the only one")
    k: Annotated[int, Field(ge=1)] = Field(10, description="hits of each query")
    where: Conditions = Field([], description="conditions on columns, as marker=TH or score>0.5")
    thumbnails: Switch = Field(
        False, description="give each hit the registered volume that it lies in, and a PNG of it as base64"
    )


class SearchQuery(SearchOptions, Windowed):
    """Parameters of `/v1/search` with crops as `.npy`."""


class SearchRequest(SearchOptions):
    """Body of `/v1/search`: query vectors, or cells by id, or examples and counter-examples."""

    vectors: Rows | None = None
    encoder: str | None = Field(
        None, description="sha256 of the encoder that made the vectors; compared with the index's"
    )
    ids: Ids | None = Field(None, description="cells of the index as queries")
    like: Ids | None = Field(None, description="examples: one query of all of them")
    unlike: Ids = Field([], description="counter-examples to `like`")


class ReconstructQuery(Windowed):
    """Parameters of `/v1/reconstruct`."""

    model: str | None = Field(None, description="name or sha256; default the first encoder")
    mask_ratio: float | None = Field(
        None,
        description="share of the patches that is hidden; default as in training",
        json_schema_extra={"minimum": 0.02, "maximum": 0.98},
    )
    seed: Annotated[int, Field(ge=0, lt=10**9)] = Field(0, description="draws the mask")


class MapQuery(Options):
    """Parameters of `/v1/map` and `/v1/map/points`."""

    index: str | None = Field(None, description="default the only one")
    method: Literal["pca", "umap"] = Field("pca", description="of the layout; umap is an extra")


class ColumnQuery(MapQuery):
    """Parameters of `/v1/map/column`."""

    name: str = Field(description="give a column's name, as GET /v1/map lists them")


class CropQuery(Options):
    """Parameters of `/v1/crop`."""

    volume: str = Field(description="give volume=NAME; GET /v1/info lists those that are registered")
    z: float = Field(description="give z, y and x in voxels of level 0", examples=[9])
    y: float = Field(description="give z, y and x in voxels of level 0", examples=[9])
    x: float = Field(description="give z, y and x in voxels of level 0", examples=[9])
    size: SizeZyx | None = Field(None, description="voxels of the volume; default the encoder's crop")
    model: str | None = Field(None, description="name or sha256; default the first encoder")


class PyramidQuery(Options):
    """Parameters of `/v1/pyramid`."""

    volume: str = Field(description="give volume=NAME; GET /v1/info lists those that are registered")


class TileQuery(PyramidQuery):
    """Parameters of `/v1/tile`."""

    level: Place = Field(0, description="0 is the volume itself; GET /v1/pyramid lists them")
    z: Place = Field(description="give z, a plane of that level", examples=[0])
    row: Place = Field(description="give row, the tile's number along y", examples=[0])
    column: Place = Field(description="give column, the tile's number along x", examples=[0])
    window: Window | None = Field(None, description="low and high of the picture; default the volume's")


class CellsRequest(Options):
    """Body of `/v1/cells`: cells by row, as hits and the column `row` of a map give them, or by id."""

    index: str | None = Field(None, description="default the only one")
    rows: Annotated[list[Annotated[int, Field(strict=True)]], Field(fail_fast=True)] | None = None
    ids: Ids | None = None
    thumbnails: bool = False


class JobRequest(VectorOptions, CellOptions):
    """Body of `POST /v1/jobs`: kind of job, a registered volume, and its points or where cells are sought."""

    kind: Literal["embed", "refine", "detect"]
    volume: str
    points_zyx: Rows | None = None
    points_csv: str | None = Field(
        None, description="the text of a CSV with columns z, y, x; further columns are kept"
    )
    grid: Annotated[tuple[Step, Step, Step] | None, AnySequence] = Field(
        None, description="embed the whole volume, at points so many voxels z, y, x apart"
    )
    model: str | None = Field(None, description="name or sha256 of an encoder; default the first")
    refiner: str | None = Field(None, description="name or sha256; default the only one")
    detector: str | None = Field(None, description="of detect: name or sha256; default the only one")
    roi: Annotated[tuple[Voxel, Voxel, Voxel, Voxel, Voxel, Voxel] | None, AnySequence] = Field(
        None, description="of detect: only this box, Z0 Y0 X0 Z1 Y1 X1 in voxels of level 0"
    )
    background: str | None = Field(
        None, description="registered volume of the background channel, for a detector that reads one"
    )


class Addition(Options):
    """Body of `POST /v1/models`: a name, and a path below an allow-listed folder."""

    name: Name
    path: BelowRoot


class VolumeAddition(VolumeOptions):
    """Body of `POST /v1/volumes`: the same, and how the volume is opened."""

    model_config = ConfigDict(strict=True)

    name: Name
    path: BelowRoot


class CropsRequest(BaseModel):
    """Body of `/embed_json`: a few crops (n, z, y, x) in [0, 1] as nested lists."""

    crops: Annotated[list[Planes], Field(fail_fast=True)] = Field(
        description="(n, z, y, x) in [0, 1], after the volume's window"
    )
    pool: Pool | None = None
