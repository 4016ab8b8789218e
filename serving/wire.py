"""What the Python clients send and read, and how long they wait for a busy service."""

from __future__ import annotations

import io
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np

from canvas_fm.errors import CanvasError
from serving import npy

_BUSY = (429, 503)
_LOST_TRIES = 3  # a service that was never there is soon known not to be
_LOOPBACK = ("127.0.0.1", "localhost", "::1")

Asked = dict[str, Any]
"""`method`, `url` and what else httpx takes."""


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


def crops_requests(
    path: str, crops: np.ndarray, window: Sequence[float] | None, options: dict[str, Any], per_request: int
) -> Iterator[Asked]:
    """Crops as raw `.npy`, `per_request` at a time."""
    array = np.asarray(crops)
    if array.ndim == 0:
        raise CanvasError("crops is a single number; give an array (n, z, y, x)")
    if array.dtype.kind == "f":
        array = array.astype(np.float32, copy=False)
    params = _params(window, options)
    headers = {"Content-Type": npy.MEDIA_TYPE, "Accept": npy.MEDIA_TYPE}
    for part in parts_of(array, per_request):
        yield _post(path, params=params, content=npy.dump(part), headers=headers)


def points_requests(
    path: str, volume: str, points_zyx: np.ndarray, options: dict[str, Any], per_request: int
) -> Iterator[Asked]:
    """Points of a registered volume, `per_request` at a time."""
    points = np.asarray(points_zyx, dtype=np.float64)
    if not np.isfinite(points).all():
        raise CanvasError("points hold NaN or infinite values; give z, y, x in voxels")
    rest = {name: value for name, value in options.items() if value is not None}
    for part in parts_of(points, per_request):
        body = {"volume": volume, "points_zyx": part.tolist(), **rest}
        yield _post(path, json=body, headers={"Accept": npy.MEDIA_TYPE})


def search_request(asked: dict[str, Any]) -> Asked:
    """A search as JSON; arrays become lists."""
    body = {name: value for name, value in asked.items() if value is not None}
    if isinstance(body.get("vectors"), np.ndarray):
        body["vectors"] = np.atleast_2d(body["vectors"]).tolist()
    return _post("/v1/search", json=body)


def reconstruct_request(crops: np.ndarray, window: Sequence[float] | None, options: dict[str, Any]) -> Asked:
    """Crops to be masked and reconstructed."""
    array = np.asarray(crops)
    array = array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array
    headers = {"Content-Type": npy.MEDIA_TYPE}
    return _post("/v1/reconstruct", params=_params(window, options), content=npy.dump(array), headers=headers)


def addition_request(path: str, name: str, where: str) -> Asked:
    """One more model or volume."""
    return _post(path, json={"name": name, "path": where})


def parts_of(array: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Pieces of at most `size` rows; of an empty array one empty piece: the service says what is wrong."""
    if size < 1:
        raise CanvasError(f"per_request is {size}; it has to be at least 1")
    for start in range(0, max(len(array), 1), size):
        yield array[start : start + size]


def vectors_of(reply: httpx.Response) -> np.ndarray:
    """The array of a reply."""
    return np.load(io.BytesIO(reply.content), allow_pickle=False)


def _params(window: Sequence[float] | None, options: dict[str, Any]) -> dict[str, str]:
    given = {} if window is None else {"window": ",".join(repr(float(end)) for end in window)}
    for name, value in options.items():
        if value is not None:
            given[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return given


def _post(path: str, **options: Any) -> Asked:
    return {"method": "POST", "url": path, **options}


@dataclass
class Patience:
    """One request's tries: what a busy service and a lost connection are worth waiting for.

    `met` says that the service has answered before: while it starts anew it is waited for to the end of the
    patience. What may not be done twice (not `repeat`) is sent again only where it was refused.
    """

    url: str
    patience_s: float
    met: bool = False
    repeat: bool = True
    _end: float = field(init=False)
    _pause: float = 0.25
    _lost: int = 0

    def __post_init__(self) -> None:
        self._end = time.monotonic() + self.patience_s

    def after_reply(self, reply: httpx.Response) -> float:
        """Seconds until the next try, 0 for a good reply; CanvasError for a refusal or at the end of it."""
        if reply.is_success:
            return 0.0
        failure = CanvasError(f"{self.url} answered {reply.status_code}: {_sentence(reply)}")
        if reply.status_code not in _BUSY:
            raise failure
        return self._wait(_retry_after(reply), failure)

    def after_loss(self, problem: httpx.TransportError) -> float:
        """The same after a connection that was lost or refused."""
        connecting = isinstance(problem, httpx.ConnectError | httpx.ConnectTimeout)
        if isinstance(problem, httpx.TimeoutException) and not connecting:
            raise CanvasError(f"{self.url} did not answer in time; send less in one request") from problem
        failure = CanvasError(f"{self.url} cannot be reached: {problem}")
        failure.__cause__ = problem
        self._lost += 1
        if (self._lost == _LOST_TRIES and not self.met) or not (self.repeat or connecting):
            raise failure
        return self._wait(0.0, failure)

    def _wait(self, asked_s: float, failure: CanvasError) -> float:
        # Spread, so that clients refused together do not come back together.
        wait = max(asked_s, self._pause) * (1 + random.random() / 4)
        if time.monotonic() + wait > self._end:
            raise failure
        self._pause = min(2 * self._pause, 8.0)
        return wait


def _sentence(reply: httpx.Response) -> str:
    try:
        return str(reply.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return reply.text[:200].strip() or reply.reason_phrase


def _retry_after(reply: httpx.Response) -> float:
    given = reply.headers.get("Retry-After", "")
    return float(given) if given.isdigit() else 0.0
