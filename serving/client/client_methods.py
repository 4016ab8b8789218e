"""Methods of the clients as generators of requests and parsers of responses.

A generator yields a `Request`, for whose reply it goes on, or seconds to pause. It sends and waits for
nothing itself, so that the blocking and the asynchronous client share it.
"""

from __future__ import annotations

import io
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
import numpy as np
from jaxtyping import Float, Float32, Real

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume_flags import VolumeOptions
from canvas_fm.errors import CanvasError
from canvas_fm.files.option_sets import Options, takes
from serving.protocol import npy
from serving.protocol.request_options import (
    DetectRequest,
    EmbedQuery,
    ReconstructQuery,
    RefineOptions,
    ReplyOptions,
    SearchRequest,
)

T = TypeVar("T")

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Request:
    """A request with httpx `options`; `out` is the file for the response's body.

    What may not be done twice is not to `repeat` after a lost connection. Without `retry` it is sent once,
    and a failure is given back as it is.
    """

    method: str
    url: str
    options: dict[str, Any] = field(default_factory=dict)
    repeat: bool = True
    retry: bool = True
    out: Path | None = None


Steps = Generator[Request | float, Any, T]


def settings(url: str, timeout_s: float, key: str | None) -> dict[str, Any]:
    """httpx settings of both clients; CanvasError for an invalid address."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise CanvasError(f"{url!r} is no address of a service; it looks like http://127.0.0.1:3000")
    return {
        "base_url": url.rstrip("/"),
        "timeout": timeout_s,
        # A proxy of the environment is for the outside, never for this machine.
        "trust_env": parts.hostname not in _LOOPBACK,
        "headers": {} if key is None else {"Authorization": f"Bearer {key}"},
    }


def info() -> Steps[dict[str, Any]]:
    """What is served: the default model, its sha256, crop and voxel size; volumes, indexes, limits."""
    return (yield Request("GET", "/v1/info")).json()


def models() -> Steps[list[dict[str, Any]]]:
    """The served models, the default first."""
    return (yield Request("GET", "/v1/models")).json()["models"]


def add_model(name: str, path: str) -> Steps[dict[str, Any]]:
    """Serve another model, `path` below a folder that the service allows."""
    return (yield Request("POST", "/v1/models", {"json": {"name": name, "path": path}})).json()


@takes(VolumeOptions)
def add_volume(name: str, path: str, **options: Any) -> Steps[dict[str, Any]]:
    """Register another volume, `path` below a folder that the service allows."""
    body = {"name": name, "path": path, **_body(VolumeOptions.of(**options))}
    return (yield Request("POST", "/v1/volumes", {"json": body}, repeat=False)).json()


def ready(wait_s: float = 0.0) -> Steps[bool]:
    """Whether the model is loaded; waits for it up to `wait_s` seconds."""
    end = time.monotonic() + wait_s
    while True:
        reply = yield Request("GET", "/readyz", {"timeout": 5}, retry=False)
        if isinstance(reply, httpx.Response) and reply.status_code == 200:
            return True
        if time.monotonic() >= end:
            return False
        yield 0.1


@takes(EmbedQuery, omit=("window", "pool"))
def embed(
    crops: Real[np.ndarray, "n *one z y x"],
    window: Sequence[float] | None = None,
    pool: str | None = None,
    *,
    per_request: int = 256,
    **options: Any,
) -> Steps[Float[np.ndarray, "n d"]]:
    """Embeddings (n, d) of crops, rows in the order given.

    `crops` are (n, z, y, x) or (n, 1, z, y, x): uint16 with the `window` (low, high) of their volume, or
    floats in [0, 1]. Sent `per_request` at a time. `pool` may be `tokens` or `grid`: a vector for each patch.
    """
    options_of_reply = ReplyOptions.of(pool=pool, **options)
    return (yield from _concatenated(_of_crops("/v1/embed", crops, window, options_of_reply, per_request)))


@takes(ReplyOptions, omit=("pool",))
def embed_points(
    volume: str,
    points_zyx: Real[np.ndarray, "n 3"],
    pool: str | None = None,
    *,
    per_request: int = 1024,
    **options: Any,
) -> Steps[Float[np.ndarray, "n d"]]:
    """Embeddings (n, d) of the crops around points z, y, x of a registered volume.

    Points are z, y, x in voxels of level 0; the rest as in `embed`.
    """
    options_of_reply = ReplyOptions.of(pool=pool, **options)
    return (
        yield from _concatenated(
            _of_points("/v1/embed/points", volume, points_zyx, options_of_reply, per_request)
        )
    )


@takes(DetectRequest, omit=("volume",))
def detect(volume: str, **options: Any) -> Steps[Points]:
    """Cells of a registered volume, or of a box of it, by a served detector, as `canvas_fm.detect` has them.

    `meta` of the points holds sha256 and threshold of the detector, count and warnings where there are any.
    """
    body = _body(DetectRequest.of(volume=volume, **options))
    reply = yield Request("POST", "/v1/detect", {"json": body, "headers": {"Accept": "application/json"}})
    detected = reply.json()
    meta = {"detector_sha256": detected["detector"], "threshold": f"{detected['threshold']:.9g}"}
    meta |= {"warnings": " ".join(detected["warnings"])} if detected["warnings"] else {}
    if (count := detected.get("count")) is not None:  # earlier services counted none
        low, high = count["interval_90"]
        meta |= {"count_of": count["count_of"], "expected_cells": f"{count['expected_cells']:.1f}"}
        meta |= {"expected_cells_90": f"{low:.1f} {high:.1f}"}
        meta |= {"count_notes": "; ".join(count["notes"])} if count["notes"] else {}
    zyx = np.asarray(detected["points_zyx"], np.float64).reshape(-1, 3)
    return Points(zyx, {"score": np.asarray(detected["score"], np.float32)}, meta)


@takes(RefineOptions)
def refine(
    volume: str,
    points_zyx: Real[np.ndarray, "n 3"],
    *,
    background: str | None = None,
    per_request: int = 1024,
    **options: Any,
) -> Steps[Float32[np.ndarray, " n"]]:
    """P(cell) of points of a registered volume by a served refiner, as `canvas_fm.refine` has it.

    A refiner that corrects a brain by its candidates needs `all_candidates`: all of them, sent at once.
    `background` is the registered volume of the background channel.
    """
    refining = RefineOptions.of(**options)
    size = max(len(points_zyx), 1) if refining.all_candidates else per_request
    more = {"background": background}
    return (yield from _concatenated(_of_points("/v1/refine", volume, points_zyx, refining, size, more)))


@takes(RefineOptions)
def refine_crops(
    crops: Real[np.ndarray, "n *one z y x"],
    window: Sequence[float] | None = None,
    *,
    per_request: int = 256,
    **options: Any,
) -> Steps[Float32[np.ndarray, " n"]]:
    """P(cell) of crops, given as in `embed`, by a refiner that needs no detector."""
    refining = RefineOptions.of(**options)
    size = max(len(crops), 1) if refining.all_candidates else per_request
    return (yield from _concatenated(_of_crops("/v1/refine", crops, window, refining, size)))


@takes(SearchRequest, omit=("vectors",))
def search(vectors: Real[np.ndarray, "*queries d"] | None = None, **options: Any) -> Steps[dict[str, Any]]:
    """`hits` (a dictionary a cell) and `novelty` of vectors, of cells by id, or of examples.

    As `canvas_fm.Index` gives them.
    """
    rows = np.atleast_2d(vectors).tolist() if isinstance(vectors, np.ndarray) else vectors
    body = _body(SearchRequest.of(**options)) | without_none({"vectors": rows})
    return (yield Request("POST", "/v1/search", {"json": body})).json()


@takes(ReconstructQuery, omit=("window",))
def reconstruct(
    crops: Real[np.ndarray, "n *one z y x"],
    window: Sequence[float] | None = None,
    **options: Any,
) -> Steps[Float32[np.ndarray, "n 4 z y x"]]:
    """The paper's four rows of up to eight crops: original, masked, reconstruction, merged."""
    size = max(len(crops), 1)
    query = ReconstructQuery.of(**options)
    return (yield from _concatenated(_of_crops("/v1/reconstruct", crops, window, query, size)))


def _body(options: Options) -> dict[str, Any]:
    """The options that were stated, as JSON has them: the rest is left to the service."""
    return without_none(options.model_dump(mode="json", exclude_unset=True))


def without_none(options: dict[str, Any]) -> dict[str, Any]:
    """Parameters without those that are None, which are left to the service."""
    return {name: value for name, value in options.items() if value is not None}


def _concatenated(requests: Iterable[Request]) -> Steps[np.ndarray]:
    """Concatenate the arrays of the responses."""
    parts: list[np.ndarray] = []
    for request in requests:
        reply = yield request
        parts.append(np.load(io.BytesIO(reply.content), allow_pickle=False))
    return np.concatenate(parts)


def _of_crops(
    path: str, crops: np.ndarray, window: Sequence[float] | None, options: Options, per_request: int
) -> Iterator[Request]:
    """Requests of crops as raw `.npy`, `per_request` at a time: floats as float32, integers unchanged."""
    array = np.asarray(crops)
    if array.ndim == 0:
        raise CanvasError("crops is a single number; give an array (n, z, y, x)")
    array = array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array
    params = {} if window is None else {"window": ",".join(repr(float(end)) for end in window)}
    for name, value in _body(options).items():
        params[name] = str(value).lower() if isinstance(value, bool) else str(value)
    headers = {"Content-Type": npy.MEDIA_TYPE, "Accept": npy.MEDIA_TYPE}
    for part in _parts(array, per_request):
        yield Request("POST", path, {"params": params, "content": npy.dump(part), "headers": headers})


def _of_points(
    path: str,
    volume: str,
    points_zyx: np.ndarray,
    options: Options,
    per_request: int,
    more: dict[str, Any] | None = None,
) -> Iterator[Request]:
    """Requests of points of a registered volume, `per_request` at a time."""
    points = np.asarray(points_zyx, dtype=np.float64)
    if not np.isfinite(points).all():
        raise CanvasError("points hold NaN or infinite values; give z, y, x in voxels")
    for part in _parts(points, per_request):
        body = {"volume": volume, "points_zyx": part.tolist(), **_body(options), **without_none(more or {})}
        yield Request("POST", path, {"json": body, "headers": {"Accept": npy.MEDIA_TYPE}})


def _parts(array: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Pieces of at most `size` rows; one empty piece of an empty array, so that the service reports it."""
    if size < 1:
        raise CanvasError(f"per_request is {size}; it has to be at least 1")
    for start in range(0, max(len(array), 1), size):
        yield array[start : start + size]
