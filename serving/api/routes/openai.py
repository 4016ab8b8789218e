"""`POST /v1/embeddings`: crops in the shape in which OpenAI's clients send texts."""

from __future__ import annotations

import asyncio
import base64
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from serving.api.bodies import from_base64, read_model, while_connected
from serving.api.description.endpoint import JSON, Endpoint
from serving.api.json_reply import json_reply
from serving.core.core import Core
from serving.protocol.errors import Refusal
from serving.protocol.request_options import OpenAIRequest
from serving.protocol.schemas import OpenAIReply

if TYPE_CHECKING:
    from serving.core.models.model_host import Engine


async def embeddings(core: Core, request: Request) -> Response:
    """Embeddings in the shape of OpenAI's API: each `input` is the base64 of one crop's values.

    float32 in [0, 1] or uint16 with `window`, little-endian in C order: the length says which. `usage` counts
    patches as tokens.
    """
    body = await read_model(core, request, OpenAIRequest)
    engine = core.engine_for(body.model)
    dim = engine.encoder.dim
    if body.dimensions not in (None, dim):
        raise Refusal(422, f"dimensions is {body.dimensions}; {engine.name} gives {dim}: leave it out")
    if body.pool in ("tokens", "grid"):
        raise Refusal(422, f"pool {body.pool} gives many vectors a crop; send its crops to /v1/embed")
    crops = await asyncio.to_thread(_joined, body, engine)
    work = core.embed(engine, crops, body.window, body.pool, body.layer)
    vectors = await while_connected(request, work)
    data = await asyncio.to_thread(_data, vectors, body.encoding_format)
    tokens = len(vectors) * engine.encoder.config.architecture.tokens
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    content = {"object": "list", "data": data, "model": engine.name, "usage": usage}
    return await json_reply(content, headers={"X-Model": engine.sha256})


def _joined(body: OpenAIRequest, engine: Engine) -> np.ndarray:
    """The inputs as one array; Refusal where one is of no crop's length."""
    texts = body.input if isinstance(body.input, list) else [body.input]
    shape = engine.crop_shape
    voxels = math.prod(shape)
    dtype = "float32" if body.window is None else "uint16"
    size = voxels * np.dtype(dtype).itemsize
    parts = []
    for number, text in enumerate(texts):
        try:
            data = from_base64(text)
        except ValueError as problem:
            raise Refusal(422, f"input {number} is no base64: {problem}") from problem
        if len(data) != size:
            raise Refusal(
                422,
                f"input {number} holds {len(data)} bytes; a crop {shape} is {voxels * 4} of float32 in "
                f"[0, 1], or with window=[low, high] {voxels * 2} of uint16",
            )
        parts.append(data)
    values = np.frombuffer(b"".join(parts), np.dtype(dtype).newbyteorder("<"))
    return values.reshape(len(parts), *shape)


def _data(vectors: np.ndarray, encoding: str) -> list[dict[str, Any]]:
    if encoding == "base64":
        rows: Any = (base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors)
    else:
        rows = (row.tolist() for row in vectors)
    return [{"object": "embedding", "index": at, "embedding": row} for at, row in enumerate(rows)]


ROUTES = [Endpoint("POST", "/embeddings", embeddings, {JSON: OpenAIReply}, bodies={JSON: OpenAIRequest})]
