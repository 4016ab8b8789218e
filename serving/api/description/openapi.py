"""The OpenAPI document, made from the routes, their docstrings and the models of requests and replies."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from canvas_fm.files.option_sets import Options
from canvas_fm.version import __version__
from serving.api.description.endpoint import JSON, NPY, SAFE, Content, Endpoint
from serving.api.description.query import text_of

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_REF = "#/components/schemas/{model}"
_PLAIN = str.maketrans("/.", "__", "{}")
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
_ONCE = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "sent twice with the same key, a job is made once",
    "schema": {"type": "string", "minLength": 8, "maxLength": 200},
}
_ERROR = {
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


def document(mounted: Iterable[Endpoint], others: Iterable[Endpoint]) -> dict[str, Any]:
    """OpenAPI 3.1 of the routes mounted at `/v1` and of others, whose path is whole."""
    endpoints = [*((f"/v1{each.path}", each) for each in mounted), *((each.path, each) for each in others)]
    kinds = dict.fromkeys(
        kind for _, each in endpoints for content in (each.bodies, each.replies) for kind in _models(content)
    )
    _, schemas = models_json_schema([(kind, "validation") for kind in kinds], ref_template=_REF)
    paths: dict[str, Any] = {}
    for path, each in endpoints:
        paths.setdefault(path, {})[each.method.lower()] = _operation(path, each)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "canvas-fm",
            "version": __version__,
            "description": "Cells, embeddings, search, reconstructions of whole-brain light-sheet volumes.",
        },
        "paths": paths,
        "components": {
            "schemas": {**schemas["$defs"], "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def parameters(kind: type[Options]) -> list[dict[str, Any]]:
    """The fields of a model as parameters of a query."""
    properties = kind.model_json_schema(ref_template=_REF).get("properties", {})
    return [
        {
            "name": name,
            "in": "query",
            "description": field.description or "",
            "schema": _as_text(text_of(field).example) or _schema(properties[name]),
            **({"required": True} if field.is_required() else {}),
            **({"explode": True} if text_of(field).several else {}),
        }
        for name, field in kind.model_fields.items()
    ]


def _as_text(example: str) -> dict[str, Any]:
    return {"type": "string", "example": example} if example else {}


def _schema(model_schema: dict[str, Any]) -> dict[str, Any]:
    """Schema of a field by pydantic, without None: in an address it is then left out."""
    schema = {key: value for key, value in model_schema.items() if key not in ("title", "description")}
    if schema.get("default", 0) is None:
        del schema["default"]
    choices = [each for each in schema.pop("anyOf", []) if each != {"type": "null"}]
    assert len(choices) < 2, model_schema
    return schema | (choices[0] if choices else {})


def _operation(path: str, endpoint: Endpoint) -> dict[str, Any]:
    failed = {"content": {JSON: {"schema": {"$ref": _REF.format(model="Error")}}}}
    summary, _, rest = endpoint.about.partition("\n")
    out: dict[str, Any] = {
        "summary": summary.rstrip("."),
        "operationId": f"{endpoint.method.lower()}_{path.strip('/').translate(_PLAIN)}",
        "responses": {
            str(endpoint.status): {"description": "as asked", "content": _contents(endpoint.replies)},
            **{str(code): {"description": meaning, **failed} for code, meaning in _ERRORS.items()},
        },
    }
    if rest.strip():
        out["description"] = " ".join(rest.split())
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", path)
    ]
    if all_parameters := [
        *in_path,
        *parameters(endpoint.query),
        *([_ONCE] if endpoint.idempotency_key else []),
    ]:
        out["parameters"] = all_parameters
    if endpoint.bodies:
        out["requestBody"] = {"required": True, "content": _contents(endpoint.bodies)}
    return out


def _contents(content: Content) -> dict[str, Any]:
    return {media: _content(media, kind) for media, kind in content.items()}


def _content(media: str, kind: type[BaseModel] | dict[str, type[BaseModel]] | None) -> dict[str, Any]:
    if kind is None:
        return _BINARY if media in (NPY, SAFE, "application/zip", "image/png") else {"schema": {}}
    if isinstance(kind, dict):
        listed = {name: {"type": "array", "items": _reference(each)} for name, each in kind.items()}
        return {"schema": {"type": "object", "properties": listed}}
    return {"schema": _reference(kind)}


def _reference(kind: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REF.format(model=kind.__name__)}


def _models(content: Content) -> list[type[BaseModel]]:
    out: list[type[BaseModel]] = []
    for kind in content.values():
        out += kind.values() if isinstance(kind, dict) else [] if kind is None else [kind]
    return out
