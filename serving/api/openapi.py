"""The OpenAPI document of all routes: mounted ones, the typed one, probes."""

from __future__ import annotations

from typing import Any, get_args

from pydantic.json_schema import models_json_schema

from canvas_fm.version import __version__
from serving.api.query import DTYPES, OUTPUTS
from serving.protocol.schemas import (
    Addition,
    CellsReply,
    CellsRequest,
    DetectorInfo,
    DetectReply,
    DetectRequest,
    EmbeddingsReply,
    EmbedRequest,
    Info,
    JobInfo,
    JobRequest,
    MapInfo,
    ModelInfo,
    PointsRequest,
    Pool,
    RefineReply,
    RefineRequest,
    SearchReply,
    SearchRequest,
    VolumeAddition,
    VolumeInfo,
)

_NPY, _JSON, _SAFE = "application/x-npy", "application/json", "application/x-safetensors"
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_ERRORS = {
    400: "no crop, no JSON, or cut short",
    401: "no key, or a wrong one",
    403: "not here: nothing was allowed for it at the start",
    404: "no such model, volume, refiner, index, cell or job",
    408: "the body did not come",
    409: "not in this state, or not with this index",
    413: "too much for one request",
    415: "another kind of body",
    422: "well formed, but it cannot be meant",
    429: "busy: Retry-After says when to come back",
    500: "the service's own fault",
    503: "not ready",
    504: "not done in time",
    507: "the disk is full",
}


def _parameter(name: str, about: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": about, "schema": schema}


_WINDOW = _parameter("window", "LO,HI of the volume, with uint16 crops", type="string", example="217.5,4096")
_MODEL = _parameter("model", "name or sha256; default the first", type="string")
_EMBED = [
    _WINDOW,
    _MODEL,
    _parameter("pool", "default the model's own", type="string", enum=list(OUTPUTS)),
    _parameter("layer", "after how many blocks; default all", type="integer", minimum=0),
    _parameter("normalize", "vectors of length 1", type="boolean", default=False),
    _parameter("whiten", "an index, by whose vectors they are whitened", type="string"),
    _parameter("dtype", "of the reply", type="string", enum=list(DTYPES), default="float32"),
]
_REFINE = [
    _parameter("refiner", "name or sha256; default the only one", type="string"),
    _WINDOW,
    _parameter("all_candidates", "these are all of the brain's", type="boolean", default=False),
]
_FOUND = [
    _parameter("index", "default the only one", type="string"),
    _parameter("k", "hits for each crop", type="integer", minimum=1, default=10),
    _WINDOW,
    {**_parameter("where", "conditions", type="array", items={"type": "string"}), "explode": True},
    _parameter("thumbnails", "a picture of each hit", type="boolean", default=False),
]
_MAP = [
    _parameter("index", "default the only one", type="string"),
    _parameter("method", "of the layout", type="string", enum=["pca", "umap"], default="pca"),
]
_NAME = {**_parameter("name", "a column that GET /v1/map lists", type="string"), "required": True}
_PLACE = [
    {**_parameter("volume", "name of a registered volume", type="string"), "required": True},
    *(
        {**_parameter(axis, "voxels of level 0", type="number", example=9), "required": True}
        for axis in ("z", "y", "x")
    ),
    _parameter("size", "Z,Y,X voxels; default the model's crop", type="string", example="1,64,64"),
    _MODEL,
]
_ID = {"name": "id", "in": "path", "required": True, "description": "of a job", "schema": {"type": "string"}}
_ONCE = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "sent twice with the same key, a job is made once",
    "schema": {"type": "string", "minLength": 8, "maxLength": 200},
}
_MASK = [
    _WINDOW,
    _MODEL,
    _parameter("mask_ratio", "default as in training", type="number", minimum=0.02, maximum=0.98),
    _parameter("seed", "draws the mask", type="integer", minimum=0, default=0),
]

# (method, path) → parameters, kinds of body with their schema, kinds of reply with their schema, status.
_SHAPES: dict[tuple[str, str], tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any], int]] = {
    ("GET", "/v1/info"): ([], {}, {_JSON: Info}, 200),
    ("GET", "/v1/models"): ([], {}, {_JSON: {"models": ModelInfo, "detectors": DetectorInfo}}, 200),
    ("POST", "/v1/models"): ([], {_JSON: Addition}, {_JSON: ModelInfo}, 201),
    ("POST", "/v1/volumes"): ([], {_JSON: VolumeAddition}, {_JSON: VolumeInfo}, 201),
    ("POST", "/v1/embed"): (
        _EMBED,
        {_NPY: None, _SAFE: None, _JSON: EmbedRequest},
        {_NPY: None, _JSON: EmbeddingsReply, _SAFE: None},
        200,
    ),
    ("POST", "/v1/embed/points"): (
        [],
        {_JSON: PointsRequest},
        {_NPY: None, _JSON: EmbeddingsReply, _SAFE: None},
        200,
    ),
    ("POST", "/v1/detect"): (
        [],
        {_JSON: DetectRequest},
        {_NPY: None, _JSON: DetectReply, "text/csv": {}},
        200,
    ),
    ("POST", "/v1/refine"): (
        _REFINE,
        {_JSON: RefineRequest, _NPY: None, _SAFE: None},
        {_NPY: None, _JSON: RefineReply},
        200,
    ),
    ("POST", "/v1/search"): (_FOUND, {_JSON: SearchRequest, _NPY: None}, {_JSON: SearchReply}, 200),
    ("POST", "/v1/reconstruct"): (_MASK, {_NPY: None}, {_NPY: None}, 200),
    ("POST", "/v1/jobs"): ([_ONCE], {_JSON: JobRequest}, {_JSON: JobInfo}, 201),
    ("GET", "/v1/jobs"): ([], {}, {_JSON: {"jobs": JobInfo}}, 200),
    ("GET", "/v1/jobs/{id}"): ([_ID], {}, {_JSON: JobInfo}, 200),
    ("DELETE", "/v1/jobs/{id}"): ([_ID], {}, {_JSON: JobInfo}, 200),
    ("POST", "/v1/jobs/{id}/retry"): ([_ID], {}, {_JSON: JobInfo}, 200),
    ("GET", "/v1/jobs/{id}/result"): ([_ID], {}, {_NPY: None, "application/zip": None, "text/csv": {}}, 200),
    ("GET", "/v1/map"): (_MAP, {}, {_JSON: MapInfo}, 200),
    ("GET", "/v1/map/points"): (_MAP, {}, {_NPY: None}, 200),
    ("GET", "/v1/map/column"): ([*_MAP, _NAME], {}, {_NPY: None}, 200),
    ("POST", "/v1/cells"): ([], {_JSON: CellsRequest}, {_JSON: CellsReply, "text/csv": {}}, 200),
    ("GET", "/v1/crop"): (_PLACE, {}, {_NPY: None, "image/png": None}, 200),
    ("GET", "/v1/openapi.json"): ([], {}, {_JSON: {}}, 200),
    ("GET", "/v1/metrics"): ([], {}, {"text/plain": {}}, 200),
    ("POST", "/embed_json"): ([], {_JSON: {"crops": [], "pool": "mean"}}, {_JSON: EmbeddingsReply}, 200),
    ("GET", "/livez"): ([], {}, {"text/plain": {}}, 200),
    ("GET", "/readyz"): ([], {}, {"text/plain": {}}, 200),
    ("GET", "/metrics"): ([], {}, {"text/plain": {}}, 200),
}
_KINDS = (
    *(DetectRequest, DetectReply, DetectorInfo),
    *(Info, ModelInfo, VolumeInfo, Addition, VolumeAddition, JobInfo, JobRequest),
    *(PointsRequest, EmbedRequest, EmbeddingsReply, RefineRequest, RefineReply, SearchRequest, SearchReply),
    *(MapInfo, CellsRequest, CellsReply),
)
_OTHERS = [
    ("POST", "/embed_json", "Embeddings of a few crops as nested lists"),
    ("GET", "/livez", "Whether the process is of use"),
    ("GET", "/readyz", "Whether the model is loaded"),
    ("GET", "/metrics", "Figures for Prometheus"),
]
_CROPS = {
    "type": "object",
    "required": ["crops"],
    "properties": {
        "crops": {"type": "array", "description": "(n, z, y, x) in [0, 1]", "items": {"type": "array"}},
        "pool": {"enum": [*get_args(Pool), None]},
    },
}


_PLAIN = str.maketrans("/.", "__", "{}")


def document(mounted: list[tuple[str, str, str]]) -> dict[str, Any]:
    """OpenAPI 3.1 of the routes mounted at `/v1`, as (method, path, description), and of the others."""
    _, definitions = models_json_schema(
        [(kind, "validation") for kind in _KINDS], ref_template="#/components/schemas/{model}"
    )
    error = {
        "type": "object",
        "properties": {
            "error": {
                "type": "object",
                "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
                "required": ["code", "message"],
            }
        },
        "required": ["error"],
    }
    paths: dict[str, Any] = {}
    for method, path, about in [(method, f"/v1{path}", about) for method, path, about in mounted] + _OTHERS:
        paths.setdefault(path, {})[method.lower()] = _operation(method, path, about)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "canvas-fm",
            "version": __version__,
            "description": "Embeddings, search and reconstructions of whole-brain light-sheet volumes.",
        },
        "paths": paths,
        "components": {
            "schemas": {**definitions["$defs"], "Error": error},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _operation(method: str, path: str, about: str) -> dict[str, Any]:
    parameters, bodies, replies, status = _SHAPES[method, path]
    failed = {"content": {_JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}}
    out: dict[str, Any] = {
        "summary": about.partition("\n")[0].rstrip("."),
        "operationId": f"{method.lower()}_{path.strip('/').translate(_PLAIN)}",
        "responses": {
            str(status): {
                "description": "as asked",
                "content": {kind: _content(schema) for kind, schema in replies.items()},
            },
            **{str(code): {"description": description, **failed} for code, description in _ERRORS.items()},
        },
    }
    if parameters:
        out["parameters"] = parameters
    if bodies:
        content = {kind: _content(schema) for kind, schema in bodies.items()}
        out["requestBody"] = {"required": True, "content": content}
    return out


def _content(kind: Any) -> dict[str, Any]:
    if kind is None:
        return _BINARY
    if isinstance(kind, dict):
        if "crops" in kind:
            return {"schema": _CROPS}
        listed = {name: {"type": "array", "items": _content(each)["schema"]} for name, each in kind.items()}
        return {"schema": {"type": "object", "properties": listed} if listed else {}}
    return {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}
