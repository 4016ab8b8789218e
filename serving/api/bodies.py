"""Request and response bodies: JSON, `.npy` and safetensors, never pickle."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Collection
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import safetensors
from pydantic import BaseModel, ValidationError
from safetensors.numpy import save
from starlette.requests import Request
from starlette.responses import Response

from canvas_fm.errors import CanvasError
from canvas_fm.inference.embed.unit_length import unit_length
from serving.api.whitening import whitened
from serving.core.core import Core
from serving.core.embed.crops import Window
from serving.protocol import npy
from serving.protocol.errors import Refusal, describe, refused
from serving.protocol.requests import EncodedCrops, ReplyOptions

if TYPE_CHECKING:
    from serving.core.models.model_host import Engine

NPY_TYPES = (npy.MEDIA_TYPE, "application/octet-stream")
SAFETENSORS = "application/x-safetensors"
GONE = "the client went away"  # nobody reads it, but BentoML waits for an answer
_MAX_HEADER_BYTES = 100_000  # of safetensors
_TYPES = {"F32": "<f4", "U16": "<u2"}

B = TypeVar("B", bound=BaseModel)


def media_type(request: Request) -> str:
    """Media type of the request body."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_model(request: Request, kind: type[B]) -> B:
    """Parse a JSON body as its pydantic model; Refusal for invalid ones."""
    try:
        return kind.model_validate_json(await request.body())
    except ValidationError as problem:
        errors = problem.errors(include_url=False, include_input=False)
        status = 400 if errors[0]["type"] == "json_invalid" else 422
        raise Refusal(status, describe(list(errors))) from problem


async def read_crops(
    core: Core, request: Request, window: Window | None, engine: Engine, *, queued: bool = True
) -> np.ndarray:
    """Array of the body; what the header rules out is refused before the rest is read.

    So is what the queue has no room for, where the crops are `queued`.
    """
    kind = media_type(request)
    if kind == SAFETENSORS:
        return await asyncio.to_thread(_from_safetensors, core, await request.body(), window, engine)
    if kind not in NPY_TYPES:
        raise Refusal(
            415,
            f"the body is {kind or 'of no stated type'}; send .npy as {' or '.join(NPY_TYPES)}, or "
            f"safetensors as {SAFETENSORS}",
        )
    body, header = bytearray(), None
    async for chunk in request.stream():
        body += chunk
        if header is None and (header := npy.read_header(body)) is not None:
            _check_header(core, header.dtype, header.shape, header.total, window, engine)
            if queued:
                core.check_room(header.shape[0])
        if header is not None and len(body) > header.total:
            break
    if header is None:
        raise Refusal(400, f"the body ends inside the .npy header, after {len(body)} bytes")
    return npy.read_values(body, header)


async def decoded(core: Core, given: EncodedCrops, window: Window | None, engine: Engine) -> np.ndarray:
    """Decode crops sent as base64 inside JSON; Refusal for invalid text or length."""
    dtype, shape = np.dtype(given.dtype).newbyteorder("<"), tuple(given.shape)
    total = int(np.prod(shape, dtype=object)) * dtype.itemsize
    _check_header(core, dtype, shape, total, window, engine)
    try:
        data = await asyncio.to_thread(base64.b64decode, given.base64, validate=True)
    except (binascii.Error, ValueError) as problem:
        raise Refusal(422, f"crops.base64 is no base64: {problem}") from problem
    if len(data) != total:
        raise Refusal(422, f"crops.base64 holds {len(data)} bytes; {given.dtype} of shape {shape} is {total}")
    return np.frombuffer(data, dtype).reshape(shape)


def _from_safetensors(core: Core, body: bytes, window: Window | None, engine: Engine) -> np.ndarray:
    """The one tensor, `crops`, of a safetensors body."""
    if int.from_bytes(body[:8], "little") > _MAX_HEADER_BYTES:
        raise Refusal(400, f"the safetensors header is longer than {_MAX_HEADER_BYTES} bytes")
    try:
        tensors = safetensors.deserialize(body)
    except safetensors.SafetensorError as problem:
        raise Refusal(400, f"the body cannot be read as safetensors: {problem!s:.100}") from problem
    if len(tensors) != 1:
        raise Refusal(400, f"the safetensors holds {len(tensors)} tensors; send one, called crops")
    ((name, tensor),) = tensors
    kind, shape = tensor["dtype"], tuple(tensor["shape"])
    if name != "crops" or kind not in _TYPES:
        raise Refusal(422, f"the tensor is {name[:50]!r} of {kind}; send crops as F32 or U16")
    dtype = np.dtype(_TYPES[kind])
    _check_header(core, dtype, shape, len(tensor["data"]), window, engine)
    return np.frombuffer(tensor["data"], dtype).reshape(shape)


def _check_header(
    core: Core,
    dtype: np.dtype,
    shape: tuple[int, ...],
    total: int,
    window: Window | None,
    engine: Engine,
) -> None:
    if total > core.limits.max_body_mb * 2**20:
        raise Refusal(413, f"the array promises {total} bytes; {core.limits.max_body_mb:g} MB are the most")
    try:
        engine.check_kind(dtype, shape, window)
    except CanvasError as problem:
        raise refused(problem) from problem


async def disconnected(request: Request) -> None:
    """Completes when the client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def reply(core: Core, request: Request, vectors: np.ndarray | None, options: ReplyOptions) -> Response:
    """Embeddings as `.npy`, or JSON or safetensors if the client prefers it."""
    if vectors is None:
        raise Refusal(400, GONE)
    if options.whiten is not None:
        vectors = await whitened(core, vectors, options.whiten)
    if options.normalize:
        vectors = unit_length(vectors)
    vectors = vectors.astype(options.dtype, copy=False)
    sha256 = core.engine_for(options.model).encoder.sha256
    headers = {"X-Model": sha256}
    kind = accepted(request)
    if kind == "application/json":
        text = await asyncio.to_thread(
            lambda: json.dumps({"embeddings": vectors.tolist(), "model": sha256}, allow_nan=False)
        )
        return Response(text, media_type=kind, headers=headers)
    if kind == SAFETENSORS:
        about = {"model": sha256, "pool": options.pool or "", "layer": str(options.layer or "")}
        content = await asyncio.to_thread(save, {"embeddings": np.ascontiguousarray(vectors)}, metadata=about)
        return Response(content, media_type=kind, headers=headers)
    return Response(npy.dump(vectors), media_type=npy.MEDIA_TYPE, headers=headers)


def accepted(request: Request) -> str:
    """The preferred one of JSON, safetensors and `.npy` by `Accept`; default `.npy`."""
    return first_accepted(request, ("application/json", SAFETENSORS, *NPY_TYPES)) or npy.MEDIA_TYPE


def first_accepted(request: Request, known: Collection[str]) -> str | None:
    """Which of the known kinds the client names first in `Accept`."""
    named = request.headers.get("accept", "").split(",")
    kinds = (entry.partition(";")[0].strip().lower() for entry in named)
    return next((kind for kind in kinds if kind in known), None)
