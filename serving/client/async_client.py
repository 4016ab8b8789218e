"""The client for asyncio: the same names and answers as `serving.client.client.Client`, each awaited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx
import numpy as np
from jaxtyping import Float, Float32, Real

import serving.client.requests as wire
from serving.client.async_client_jobs import AsyncClientJobs
from serving.client.job_requests import whole_file
from serving.client.requests import Asked, Call
from serving.client.retry import RetryPolicy

T = TypeVar("T")


class AsyncClient:
    """Talks to one service from one event loop; an asynchronous context manager.

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
        self._http = httpx.AsyncClient(**wire.settings(url, timeout_s, key))
        self.url, self.patience_s = url.rstrip("/"), patience_s
        self._met = False  # whether the service ever answered
        self.jobs = AsyncClientJobs(self)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def info(self) -> dict[str, Any]:
        """What is served: the default model, its sha256, crop and voxel size; volumes, indexes, limits."""
        return await self.do(wire.info())

    async def models(self) -> list[dict[str, Any]]:
        """The served models, the default first."""
        return await self.do(wire.models())

    async def add_model(self, name: str, path: str) -> dict[str, Any]:
        """Serve one more model, `path` below a folder that the service allows."""
        return await self.do(wire.add_model(name, path))

    async def add_volume(self, name: str, path: str) -> dict[str, Any]:
        """Register one more volume, `path` below a folder that the service allows."""
        return await self.do(wire.add_volume(name, path))

    async def ready(self, wait_s: float = 0.0) -> bool:
        """Whether the model is loaded; waits for it up to `wait_s` seconds."""
        end = time.monotonic() + wait_s
        while True:
            try:
                if (await self._http.get("/readyz", timeout=5)).status_code == 200:
                    return True
            except httpx.TransportError:
                pass  # not listening yet
            if time.monotonic() >= end:
                return False
            await asyncio.sleep(0.1)

    async def embed(
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
        return await self.do(
            wire.embed(crops, window, pool, layer, model, normalize, whiten, dtype, per_request)
        )

    async def embed_points(
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
        return await self.do(
            wire.embed_points(volume, points_zyx, pool, layer, model, normalize, whiten, dtype, per_request)
        )

    async def refine(
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
        return await self.do(
            wire.refine(volume, points_zyx, refiner, background, all_candidates, per_request)
        )

    async def refine_crops(
        self,
        crops: Real[np.ndarray, "n *one z y x"],
        window: Sequence[float] | None = None,
        *,
        refiner: str | None = None,
        all_candidates: bool = False,
        per_request: int = 256,
    ) -> Float32[np.ndarray, " n"]:
        """P(cell) of crops, given as in `embed`, by a refiner that needs no detector."""
        return await self.do(wire.refine_crops(crops, window, refiner, all_candidates, per_request))

    async def search(
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
        return await self.do(wire.search(vectors, ids, like, unlike, k, where, index, encoder, thumbnails))

    async def reconstruct(
        self,
        crops: Real[np.ndarray, "n *one z y x"],
        window: Sequence[float] | None = None,
        *,
        mask_ratio: float | None = None,
        seed: int = 0,
        model: str | None = None,
    ) -> Float32[np.ndarray, "n 4 z y x"]:
        """The paper's four rows of up to eight crops: original, masked, reconstruction, merged."""
        return await self.do(wire.reconstruct(crops, window, mask_ratio, seed, model))

    async def do(self, call: Call[T]) -> T:
        """What a call brings, request after request."""
        return call.join([call.read(await self.ask(each, repeat=call.repeat)) for each in call.requests])

    async def ask(self, asked: Asked, *, repeat: bool = True) -> httpx.Response:
        """A good reply, however many tries it takes within `patience_s`; CanvasError otherwise.

        `asked` is what httpx takes; what may not be done twice is not to `repeat`.
        """
        policy = RetryPolicy(self.url, self.patience_s, self._met, repeat)
        while True:
            try:
                reply = await self._http.request(**asked)
            except httpx.TransportError as problem:
                wait = policy.after_loss(problem)
            else:
                self._met = True
                if not (wait := policy.after_reply(reply)):
                    return reply
            await asyncio.sleep(wait)

    async def save(self, asked: Asked, path: Path) -> None:
        """A good reply's body as a file, whole or not at all, however large it is."""
        policy = RetryPolicy(self.url, self.patience_s, self._met)
        while True:
            try:
                async with self._http.stream(**asked) as reply:
                    self._met = True
                    if not reply.is_success:
                        await reply.aread()
                    if not (wait := policy.after_reply(reply)):
                        with whole_file(path) as file:
                            async for piece in reply.aiter_bytes():
                                file.write(piece)
                        return
            except httpx.TransportError as problem:
                wait = policy.after_loss(problem)
            await asyncio.sleep(wait)
