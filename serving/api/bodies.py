"""Request and response bodies: JSON, `.npy` and safetensors, never pickle."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections import Counter
from collections.abc import Awaitable, Collection
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import safetensors
from pydantic import BaseModel
from safetensors.numpy import save
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from canvas_fm.errors import ModelMismatch
from canvas_fm.inference.embed.unit_length import unit_length
from serving.api.description.query import no_query
from serving.api.json_reply import json_reply
from serving.core.core import Core
from serving.core.embed.crops import Window, key_of
from serving.core.search import find_index, read_index
from serving.protocol import npy
from serving.protocol.errors import Refusal
from serving.protocol.json_process.child import digest_of, parse
from serving.protocol.json_process.frames import LongText, pieces_of
from serving.protocol.json_process.parser import is_small
from serving.protocol.request_options import EncodedCrops, ReplyOptions

if TYPE_CHECKING:
    from canvas_fm.heads.features.whiten import Whitening
    from canvas_fm.inference.search.index.index import Index
    from serving.core.models.model_host import Engine

NPY_TYPES = (npy.MEDIA_TYPE, "application/octet-stream")
SAFETENSORS = "application/x-safetensors"
_MAX_HEADER_BYTES = 100_000  # of safetensors
_LARGE = 2**20  # bytes of a reply
_TYPES = {"F32": "<f4", "U16": "<u2"}

B = TypeVar("B", bound=BaseModel)
T = TypeVar("T")


def media_type(request: Request) -> str:
    """Media type of the request body."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_model(core: Core, request: Request, kind: type[B]) -> B:
    """Parse a JSON body as its pydantic model, lists of many numbers as arrays; Refusal for invalid ones."""
    return (await _parsed(core, request, kind, digest=False))[0]


async def read_with_digest(core: Core, request: Request, kind: type[B]) -> tuple[B, str]:
    """The JSON body, and the sha256 of its content, independent of key order and spaces."""
    return await _parsed(core, request, kind, digest=True)


async def _parsed(core: Core, request: Request, kind: type[B], *, digest: bool) -> tuple[B, str]:
    no_query(request)
    body = await request.body()
    if is_small(body):
        model = parse(kind, body)
        return model, digest_of(model) if digest else ""
    return await core.json_pool.run(lambda: core.json_parser.parse(kind, body, digest=digest))


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


async def decoded(core: Core, encoded: EncodedCrops, window: Window | None, engine: Engine) -> np.ndarray:
    """Decode crops sent as base64 inside JSON; Refusal for invalid text or length."""
    dtype, shape = np.dtype(encoded.dtype).newbyteorder("<"), tuple(encoded.shape)
    total = int(np.prod(shape, dtype=object)) * dtype.itemsize
    _check_header(core, dtype, shape, total, window, engine)
    try:
        data = await asyncio.to_thread(from_base64, encoded.base64)
    except (binascii.Error, ValueError) as problem:
        raise Refusal(422, f"crops.base64 is no base64: {problem}") from problem
    if len(data) != total:
        raise Refusal(
            422, f"crops.base64 holds {len(data)} bytes; {encoded.dtype} of shape {shape} is {total}"
        )
    return np.frombuffer(data, dtype).reshape(shape)


def from_base64(text: str | LongText) -> bytearray:
    """Bytes of strict base64, decoded in pieces, between which others have their turn; ValueError."""
    out, padded = bytearray(), False
    for piece in pieces_of(text):
        if padded:
            raise ValueError("Excess data after padding")
        out += base64.b64decode(piece, validate=True)
        padded = piece.endswith("=")
    return out


def _from_safetensors(core: Core, body: bytes, window: Window | None, engine: Engine) -> np.ndarray:
    """The one tensor, `crops`, of a safetensors body."""
    if int.from_bytes(body[:8], "little") > _MAX_HEADER_BYTES:
        raise Refusal(400, f"the safetensors header is longer than {_MAX_HEADER_BYTES} bytes")
    try:
        tensors = safetensors.deserialize(body)
        if twice := _named_twice(body):
            raise Refusal(
                400, f"the safetensors header names {twice[:50]!r} twice; send one tensor, called crops"
            )
    except (safetensors.SafetensorError, ValueError, RecursionError) as problem:
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


def _named_twice(body: bytes) -> str | None:
    """A duplicate name of a safetensors header, of which the library silently takes one."""
    twice: list[str] = []

    def note(pairs: list[tuple[str, object]]) -> dict[str, object]:
        counts = Counter(name for name, _ in pairs)
        twice.extend(name for name, count in counts.items() if count > 1)
        return dict(pairs)

    json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")], object_pairs_hook=note)
    return twice[0] if twice else None


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
    engine.check_kind(dtype, shape, window)


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """Result of `work`, which is cancelled where the client leaves; ClientDisconnect then."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def reply(core: Core, request: Request, vectors: np.ndarray, options: ReplyOptions) -> Response:
    """Embeddings as `.npy`, or JSON or safetensors if the client prefers it."""
    if options.whiten is not None:
        vectors = await whitened(core, vectors, options.whiten)
    return await _encoded(vectors, options, core.engine_for(options.model).sha256, accepted(request))


async def _encoded(vectors: np.ndarray, options: ReplyOptions, sha256: str, kind: str) -> Response:
    if options.normalize or vectors.dtype != options.dtype:
        vectors = await asyncio.to_thread(_finished, vectors, options)
    headers = {"X-Model": sha256}
    if kind == "application/json":
        return await json_reply({"embeddings": vectors, "model": sha256}, headers=headers)
    if kind == SAFETENSORS:
        about = {"model": sha256, "pool": options.pool or "", "layer": str(options.layer or "")}
        content = await asyncio.to_thread(save, {"embeddings": np.ascontiguousarray(vectors)}, metadata=about)
        return Response(content, media_type=kind, headers=headers)
    content = npy.dump(vectors) if vectors.nbytes < _LARGE else await asyncio.to_thread(npy.dump, vectors)
    return Response(content, media_type=npy.MEDIA_TYPE, headers=headers)


def _finished(vectors: np.ndarray, options: ReplyOptions) -> np.ndarray:
    vectors = unit_length(vectors) if options.normalize else vectors
    return vectors.astype(options.dtype, copy=False)


def accepted(request: Request) -> str:
    """The preferred one of JSON, safetensors and `.npy` by `Accept`; default `.npy`."""
    return first_accepted(request, ("application/json", SAFETENSORS, *NPY_TYPES)) or npy.MEDIA_TYPE


def first_accepted(request: Request, known: Collection[str]) -> str | None:
    """Which of the known kinds the client names first in `Accept`."""
    named = request.headers.get("accept", "").split(",")
    kinds = (entry.partition(";")[0].strip().lower() for entry in named)
    return next((kind for kind in kinds if kind in known), None)


def check_whitening(core: Core, options: ReplyOptions) -> None:
    """Refuse (404, 409, 422) an unknown index, or one of another model, pooling or layer."""
    if options.whiten is None:
        return
    name, index = find_index(core, options.whiten)
    engine = core.engine_for(options.model)
    key = key_of(engine, options.pool, options.layer)
    if len(engine.one_shape(key.pool, key.layer)) > 1:
        raise Refusal(422, f"pool is {key.pool}, a vector for each patch; an index whitens one vector a crop")
    try:
        index.check_encoder(engine.sha256)
        index.check_pool(key.pool, key.layer)
    except ModelMismatch as problem:
        raise Refusal(409, f"the index {name!r} does not whiten these: {problem}") from problem


async def whitened(core: Core, vectors: np.ndarray, name: str) -> np.ndarray:
    """Vectors (n, d) whitened by a checked index; its moments are cached."""
    name, index = find_index(core, name)

    def work() -> np.ndarray:
        from canvas_fm.heads.features.whiten import Whitening

        cached: tuple[Index, Whitening] | None = core.whitenings.get(name)
        if cached is None or cached[0] is not index:
            cached = core.whitenings[name] = (index, Whitening(index))
        return cached[1](vectors)

    return await read_index(core, name, work)
