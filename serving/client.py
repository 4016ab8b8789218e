"""A Python client of the service: arrays in, arrays out, patient where the service is busy."""

from __future__ import annotations

import io
import random
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
from jaxtyping import Float32, Real

from canvas_fm.errors import CanvasError
from serving import npy

_BUSY = (429, 503)
_LOST_TRIES = 3  # a service that is not there is soon known not to be
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Client:
    """Talks to one service; safe to use from several threads, and as a context manager.

    A busy service is asked again for up to `patience_s` seconds. Every failure is a CanvasError with the
    service's own sentence.
    """

    def __init__(
        self, url: str = "http://127.0.0.1:3000", *, timeout_s: float = 150.0, patience_s: float = 60.0
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise CanvasError(f"{url!r} is no address of a service; it looks like http://127.0.0.1:3000")
        self.url, self.patience_s = url.rstrip("/"), patience_s
        # A proxy of the environment is for the outside, never for this machine.
        self._http = httpx.Client(
            base_url=self.url, timeout=timeout_s, trust_env=parts.hostname not in _LOOPBACK
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def info(self) -> dict[str, Any]:
        """What is served: model, sha256, crop, voxel size, pooling, volumes, limits."""
        return dict(self._ask("GET", "/v1/info").json())

    def ready(self, wait_s: float = 0.0) -> bool:
        """Whether the model is loaded; waits for it up to `wait_s` seconds."""
        end = time.monotonic() + wait_s
        while True:
            try:
                if self._http.get("/readyz", timeout=5).status_code == 200:
                    return True
            except httpx.TransportError:
                pass  # not listening yet
            if time.monotonic() >= end:
                return False
            time.sleep(0.1)

    def embed(
        self,
        crops: Real[np.ndarray, "n *one z y x"],
        window: Sequence[float] | None = None,
        pool: str | None = None,
        *,
        per_request: int = 256,
    ) -> Float32[np.ndarray, "n d"]:
        """Embeddings (n, d) of crops, rows in the order given.

        `crops` are (n, z, y, x) or (n, 1, z, y, x): uint16 with the `window` (low, high) of their volume, or
        floats in [0, 1]. Sent `per_request` at a time.
        """
        array = np.asarray(crops)
        if array.ndim == 0:
            raise CanvasError("crops is a single number; give an array (n, z, y, x)")
        if array.dtype.kind == "f":
            array = array.astype(np.float32, copy=False)
        query = {} if window is None else {"window": ",".join(repr(float(end)) for end in window)}
        if pool is not None:
            query["pool"] = pool
        headers = {"Content-Type": npy.MEDIA_TYPE, "Accept": npy.MEDIA_TYPE}
        replies = [
            self._ask("POST", "/v1/embed", params=query, content=npy.dump(part), headers=headers)
            for part in _parts(array, per_request)
        ]
        return np.concatenate([_vectors(reply) for reply in replies])

    def embed_points(
        self,
        volume: str,
        points_zyx: Real[np.ndarray, "n 3"],
        pool: str | None = None,
        *,
        per_request: int = 1024,
    ) -> Float32[np.ndarray, "n d"]:
        """Embeddings (n, d) of the crops around points of a volume that the service knows by that name.

        Points are z, y, x in voxels of level 0.
        """
        points = np.asarray(points_zyx, dtype=np.float64)
        if not np.isfinite(points).all():
            raise CanvasError("points hold NaN or infinite values; give z, y, x in voxels")
        headers = {"Accept": npy.MEDIA_TYPE}
        replies = []
        for part in _parts(points, per_request):
            body = {"volume": volume, "points_zyx": part.tolist()} | ({} if pool is None else {"pool": pool})
            replies.append(self._ask("POST", "/v1/embed/points", json=body, headers=headers))
        return np.concatenate([_vectors(reply) for reply in replies])

    def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """A good reply, however many tries it takes within `patience_s`; CanvasError otherwise."""
        end, pause, lost = time.monotonic() + self.patience_s, 0.25, 0
        while True:
            try:
                reply = self._http.request(method, path, **options)
            except httpx.TimeoutException as problem:
                raise CanvasError(f"{self.url} did not answer in time; send less in one request") from problem
            except httpx.TransportError as problem:
                failure = CanvasError(f"{self.url} cannot be reached: {problem}")
                failure.__cause__ = problem
                lost, asked_s = lost + 1, 0.0
            else:
                if reply.is_success:
                    return reply
                failure = CanvasError(f"{self.url} answered {reply.status_code}: {_sentence(reply)}")
                if reply.status_code not in _BUSY:
                    raise failure
                asked_s = _retry_after(reply)
            # Spread, so that clients refused together do not come back together.
            wait = max(asked_s, pause) * (1 + random.random() / 4)
            if lost == _LOST_TRIES or time.monotonic() + wait > end:
                raise failure
            time.sleep(wait)
            pause = min(2 * pause, 8.0)


def _sentence(reply: httpx.Response) -> str:
    try:
        return str(reply.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return reply.text[:200].strip() or reply.reason_phrase


def _retry_after(reply: httpx.Response) -> float:
    given = reply.headers.get("Retry-After", "")
    return float(given) if given.isdigit() else 0.0


def _parts(array: np.ndarray, size: int) -> Iterator[np.ndarray]:
    if size < 1:
        raise CanvasError(f"per_request is {size}; it has to be at least 1")
    for start in range(0, max(len(array), 1), size):
        yield array[start : start + size]


def _vectors(reply: httpx.Response) -> np.ndarray:
    return np.load(io.BytesIO(reply.content), allow_pickle=False)
