"""What the methods of the Python clients send, and what they read of the replies."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import httpx
import numpy as np

from canvas_fm.errors import CanvasError
from serving.protocol import npy

T = TypeVar("T")

_LOOPBACK = ("127.0.0.1", "localhost", "::1")

Asked = dict[str, Any]
"""`method`, `url` and what else httpx takes."""


def only(parts: list[T]) -> T:
    """What the one request of a call brought."""
    (part,) = parts
    return part


@dataclass(frozen=True)
class Call(Generic[T]):
    """One method of a client, all but the waiting: its requests, what each reply holds, and the whole of it.

    What may not be done twice is not to `repeat`.
    """

    requests: Iterable[Asked]
    read: Callable[[httpx.Response], T]
    join: Callable[[list[T]], T] = only
    repeat: bool = True


def json_of(reply: httpx.Response) -> dict[str, Any]:
    """The dictionary of a reply."""
    return dict(reply.json())


def settings(url: str, timeout_s: float, key: str | None) -> dict[str, Any]:
    """How both clients set httpx up; CanvasError for what is no address."""
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


def info() -> Call[dict[str, Any]]:
    return Call([{"method": "GET", "url": "/v1/info"}], json_of)


def models() -> Call[list[dict[str, Any]]]:
    return Call([{"method": "GET", "url": "/v1/models"}], lambda reply: list(reply.json()["models"]))


def add_model(name: str, path: str) -> Call[dict[str, Any]]:
    return Call([_post("/v1/models", json={"name": name, "path": path})], json_of)


def add_volume(name: str, path: str) -> Call[dict[str, Any]]:
    return Call([_post("/v1/volumes", json={"name": name, "path": path})], json_of, repeat=False)


def embed(
    crops: np.ndarray,
    window: Sequence[float] | None,
    pool: str | None,
    layer: int | None,
    model: str | None,
    normalize: bool,
    whiten: str | None,
    dtype: str,
    per_request: int,
) -> Call[np.ndarray]:
    """What it takes stands in the order of the clients' method, here as in all that follow."""
    options = {"pool": pool, "layer": layer, "model": model, "normalize": normalize}
    options |= {"whiten": whiten, "dtype": dtype}
    return _of_crops("/v1/embed", crops, window, options, per_request)


def embed_points(
    volume: str,
    points_zyx: np.ndarray,
    pool: str | None,
    layer: int | None,
    model: str | None,
    normalize: bool,
    whiten: str | None,
    dtype: str,
    per_request: int,
) -> Call[np.ndarray]:
    options = {"pool": pool, "layer": layer, "model": model, "normalize": normalize}
    options |= {"whiten": whiten, "dtype": dtype}
    return _of_points("/v1/embed/points", volume, points_zyx, options, per_request)


def refine(
    volume: str,
    points_zyx: np.ndarray,
    refiner: str | None,
    background: str | None,
    all_candidates: bool,
    per_request: int,
) -> Call[np.ndarray]:
    options = {"refiner": refiner, "background": background, "all_candidates": all_candidates}
    size = max(len(points_zyx), 1) if all_candidates else per_request
    return _of_points("/v1/refine", volume, points_zyx, options, size)


def refine_crops(
    crops: np.ndarray,
    window: Sequence[float] | None,
    refiner: str | None,
    all_candidates: bool,
    per_request: int,
) -> Call[np.ndarray]:
    options = {"refiner": refiner, "all_candidates": all_candidates}
    size = max(len(crops), 1) if all_candidates else per_request
    return _of_crops("/v1/refine", crops, window, options, size)


def search(
    vectors: np.ndarray | None,
    ids: Sequence[str | int] | None,
    like: Sequence[str | int] | None,
    unlike: Sequence[str | int],
    k: int,
    where: Sequence[str],
    index: str | None,
    encoder: str | None,
    thumbnails: bool,
) -> Call[dict[str, Any]]:
    body: dict[str, Any] = {"vectors": vectors, "ids": ids, "like": like, "unlike": list(unlike), "k": k}
    body |= {"where": list(where), "index": index, "encoder": encoder, "thumbnails": thumbnails}
    body = given(body)
    if isinstance(vectors, np.ndarray):
        body["vectors"] = np.atleast_2d(vectors).tolist()
    return Call([_post("/v1/search", json=body)], json_of)


def reconstruct(
    crops: np.ndarray, window: Sequence[float] | None, mask_ratio: float | None, seed: int, model: str | None
) -> Call[np.ndarray]:
    params = _params(window, {"mask_ratio": mask_ratio, "seed": seed, "model": model})
    headers, content = {"Content-Type": npy.MEDIA_TYPE}, npy.dump(_narrow(np.asarray(crops)))
    return Call([_post("/v1/reconstruct", params=params, content=content, headers=headers)], vectors_of)


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Those that were given: None is left to the service."""
    return {name: value for name, value in options.items() if value is not None}


def parts_of(array: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Pieces of at most `size` rows; of an empty array one empty piece: the service says what is wrong."""
    if size < 1:
        raise CanvasError(f"per_request is {size}; it has to be at least 1")
    for start in range(0, max(len(array), 1), size):
        yield array[start : start + size]


def vectors_of(reply: httpx.Response) -> np.ndarray:
    """The array of a reply."""
    return np.load(io.BytesIO(reply.content), allow_pickle=False)


def _of_crops(
    path: str, crops: np.ndarray, window: Sequence[float] | None, options: dict[str, Any], per_request: int
) -> Call[np.ndarray]:
    """Crops as raw `.npy`, `per_request` at a time."""

    def requests() -> Iterator[Asked]:
        array = np.asarray(crops)
        if array.ndim == 0:
            raise CanvasError("crops is a single number; give an array (n, z, y, x)")
        params = _params(window, options)
        headers = {"Content-Type": npy.MEDIA_TYPE, "Accept": npy.MEDIA_TYPE}
        for part in parts_of(_narrow(array), per_request):
            yield _post(path, params=params, content=npy.dump(part), headers=headers)

    return Call(requests(), vectors_of, np.concatenate)


def _of_points(
    path: str, volume: str, points_zyx: np.ndarray, options: dict[str, Any], per_request: int
) -> Call[np.ndarray]:
    """Points of a registered volume, `per_request` at a time."""

    def requests() -> Iterator[Asked]:
        points = np.asarray(points_zyx, dtype=np.float64)
        if not np.isfinite(points).all():
            raise CanvasError("points hold NaN or infinite values; give z, y, x in voxels")
        for part in parts_of(points, per_request):
            body = {"volume": volume, "points_zyx": part.tolist(), **given(options)}
            yield _post(path, json=body, headers={"Accept": npy.MEDIA_TYPE})

    return Call(requests(), vectors_of, np.concatenate)


def _narrow(array: np.ndarray) -> np.ndarray:
    """Floats as float32; integers, of which the service takes some, as they are."""
    return array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array


def _params(window: Sequence[float] | None, options: dict[str, Any]) -> dict[str, str]:
    params = {} if window is None else {"window": ",".join(repr(float(end)) for end in window)}
    for name, value in given(options).items():
        params[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return params


def _post(path: str, **options: Any) -> Asked:
    return {"method": "POST", "url": path, **options}
