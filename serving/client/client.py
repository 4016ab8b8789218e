"""A Python client of the service: arrays in, arrays out, patient where the service is busy."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx
import numpy as np
from jaxtyping import Float, Float32, Real

import serving.client.requests as wire
from serving.client.client_jobs import ClientJobs
from serving.client.job_requests import whole_file
from serving.client.requests import Asked, Call
from serving.client.retry import RetryPolicy

T = TypeVar("T")


class Client:
    """Talks to one service; safe to use from several threads, and as a context manager.

    A busy service, and one that answered before and starts anew, is asked again for up to `patience_s`
    seconds, after pauses that double and are spread, or as long as it says. Every failure is a CanvasError
    with the service's own sentence. `key` is the bearer key of a service that asks for one.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:3000",
        *,
        timeout_s: float = 150.0,
        patience_s: float = 60.0,
        key: str | None = None,
    ) -> None:
        self._http = httpx.Client(**wire.settings(url, timeout_s, key))
        self.url, self.patience_s = url.rstrip("/"), patience_s
        self._met = False  # whether the service ever answered
        self.jobs = ClientJobs(self)

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
        """What is served: the default model, its sha256, crop and voxel size; volumes, indexes, limits."""
        return self.do(wire.info())

    def models(self) -> list[dict[str, Any]]:
        """The served models, the default first."""
        return self.do(wire.models())

    def add_model(self, name: str, path: str) -> dict[str, Any]:
        """Serve one more model, `path` below a folder that the service allows."""
        return self.do(wire.add_model(name, path))

    def add_volume(self, name: str, path: str) -> dict[str, Any]:
        """Register one more volume, `path` below a folder that the service allows."""
        return self.do(wire.add_volume(name, path))

    def ready(self, wait_s: float = 0.0) -> bool:
        """Whether the model is loaded; waits for it up to `wait_s` seconds."""
        end = time.monotonic() + wait_s
        while True:
            try:
                if (self._http.get("/readyz", timeout=5)).status_code == 200:
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
        layer: int | None = None,
        model: str | None = None,
        normalize: bool = False,
        whiten: str | None = None,
        dtype: str = "float32",
        per_request: int = 256,
    ) -> Float[np.ndarray, "n d"]:
        """Embeddings (n, d) of crops, rows in the order given.

        `crops` are (n, z, y, x) or (n, 1, z, y, x): uint16 with the `window` (low, high) of their volume, or
        floats in [0, 1]. Sent `per_request` at a time. `layer` is after how many blocks, `model` a name or
        sha256, `dtype` float32 or float16; `normalize` gives vectors of length 1, `whiten` names an index by
        whose cells they are whitened. `pool` may be `tokens` or `grid`: a vector for each patch.
        """
        return self.do(wire.embed(crops, window, pool, layer, model, normalize, whiten, dtype, per_request))

    def embed_points(
        self,
        volume: str,
        points_zyx: Real[np.ndarray, "n 3"],
        pool: str | None = None,
        *,
        layer: int | None = None,
        model: str | None = None,
        normalize: bool = False,
        whiten: str | None = None,
        dtype: str = "float32",
        per_request: int = 1024,
    ) -> Float[np.ndarray, "n d"]:
        """Embeddings (n, d) of the crops around points of a volume that the service knows by that name.

        Points are z, y, x in voxels of level 0; the rest as in `embed`.
        """
        return self.do(
            wire.embed_points(volume, points_zyx, pool, layer, model, normalize, whiten, dtype, per_request)
        )

    def refine(
        self,
        volume: str,
        points_zyx: Real[np.ndarray, "n 3"],
        *,
        refiner: str | None = None,
        background: str | None = None,
        all_candidates: bool = False,
        per_request: int = 1024,
    ) -> Float32[np.ndarray, " n"]:
        """P(cell) of points of a registered volume by a served refiner, as `canvas_fm.refine` has it.

        A refiner that corrects a brain by its candidates needs `all_candidates`: all of them, sent at once.
        """
        return self.do(wire.refine(volume, points_zyx, refiner, background, all_candidates, per_request))

    def refine_crops(
        self,
        crops: Real[np.ndarray, "n *one z y x"],
        window: Sequence[float] | None = None,
        *,
        refiner: str | None = None,
        all_candidates: bool = False,
        per_request: int = 256,
    ) -> Float32[np.ndarray, " n"]:
        """P(cell) of crops, given as in `embed`, by a refiner that needs no detector."""
        return self.do(wire.refine_crops(crops, window, refiner, all_candidates, per_request))

    def search(
        self,
        vectors: Real[np.ndarray, "*queries d"] | None = None,
        *,
        ids: Sequence[str | int] | None = None,
        like: Sequence[str | int] | None = None,
        unlike: Sequence[str | int] = (),
        k: int = 10,
        where: Sequence[str] = (),
        index: str | None = None,
        encoder: str | None = None,
        thumbnails: bool = False,
    ) -> dict[str, Any]:
        """`hits` (a dictionary a cell) and `novelty` of vectors, of cells by id, or of examples.

        As `canvas_fm.Index` gives them; `encoder` is the sha256 of the encoder that made the vectors,
        `thumbnails` adds a picture to each hit, a PNG as base64.
        """
        return self.do(wire.search(vectors, ids, like, unlike, k, where, index, encoder, thumbnails))

    def reconstruct(
        self,
        crops: Real[np.ndarray, "n *one z y x"],
        window: Sequence[float] | None = None,
        *,
        mask_ratio: float | None = None,
        seed: int = 0,
        model: str | None = None,
    ) -> Float32[np.ndarray, "n 4 z y x"]:
        """The paper's four rows of up to eight crops: original, masked, reconstruction, merged."""
        return self.do(wire.reconstruct(crops, window, mask_ratio, seed, model))

    def do(self, call: Call[T]) -> T:
        """What a call brings, request after request."""
        return call.join([call.read(self.ask(each, repeat=call.repeat)) for each in call.requests])

    def ask(self, asked: Asked, *, repeat: bool = True) -> httpx.Response:
        """A good reply, however many tries it takes within `patience_s`; CanvasError otherwise.

        `asked` is what httpx takes; what may not be done twice is not to `repeat`.
        """
        policy = RetryPolicy(self.url, self.patience_s, self._met, repeat)
        while True:
            try:
                reply = self._http.request(**asked)
            except httpx.TransportError as problem:
                wait = policy.after_loss(problem)
            else:
                self._met = True
                if not (wait := policy.after_reply(reply)):
                    return reply
            time.sleep(wait)

    def save(self, asked: Asked, path: Path) -> None:
        """A good reply's body as a file, whole or not at all, however large it is."""
        policy = RetryPolicy(self.url, self.patience_s, self._met)
        while True:
            try:
                with self._http.stream(**asked) as reply:
                    self._met = True
                    if not reply.is_success:
                        reply.read()
                    if not (wait := policy.after_reply(reply)):
                        with whole_file(path) as file:
                            for piece in reply.iter_bytes():
                                file.write(piece)
                        return
            except httpx.TransportError as problem:
                wait = policy.after_loss(problem)
            time.sleep(wait)
