"""`POST /embed_json`: a few crops as nested lists.

Not an endpoint of BentoML: that parses on the event loop, and reads forms too.
"""

from __future__ import annotations

import asyncio

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from serving.api.bodies import read_model
from serving.api.description.endpoint import JSON, Endpoint
from serving.api.json_reply import json_reply
from serving.core.core import Core
from serving.protocol.errors import Refusal
from serving.protocol.request_options import CropsRequest
from serving.protocol.schemas import EmbeddingsReply


async def embed_json(core: Core, request: Request) -> Response:
    """Embeddings of a few crops as nested lists; for more, send .npy to /v1/embed."""
    body = await read_model(core, request, CropsRequest)
    crops = await asyncio.to_thread(_array, core, body)
    vectors = await core.embed(core.engine, crops, None, body.pool, None)
    return await json_reply({"embeddings": vectors, "model": core.engine.sha256})


def _array(core: Core, body: CropsRequest) -> np.ndarray:
    crops, most = body.crops, core.limits.max_json_crops
    if len(crops) > most:
        raise Refusal(413, f"{len(crops)} crops as JSON; {most} are the most here, send .npy to /v1/embed")
    try:
        return np.array(crops, dtype=np.float32)
    except (ValueError, OverflowError) as problem:
        raise Refusal(
            422, "the crops are ragged lists; all have to have the same shape (n, z, y, x)"
        ) from problem


ROUTE = Endpoint("POST", "/embed_json", embed_json, {JSON: EmbeddingsReply}, bodies={JSON: CropsRequest})
