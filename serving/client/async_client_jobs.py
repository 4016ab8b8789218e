"""The jobs of a service, as `AsyncClient.jobs` has them: the same names, each awaited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Real

import serving.client.job_requests as wire_jobs
from canvas_fm.data.points.points import Points
from serving.client.job_requests import is_over, not_over, result_request

if TYPE_CHECKING:
    import numpy as np

    from serving.client.async_client import AsyncClient


class AsyncClientJobs:
    """What the service embeds or refines in the background; see `AsyncClient`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def submit(
        self,
        kind: str,
        volume: str,
        points: Points | Real[np.ndarray, "n 3"] | None = None,
        *,
        grid: Sequence[int] | None = None,
        model: str | None = None,
        pool: str | None = None,
        layer: int | None = None,
        refiner: str | None = None,
        background: str | None = None,
    ) -> dict[str, Any]:
        """Begin a job of `kind` embed or refine, and what the service says of it: `id`, `state`, `total`.

        `points` are z, y, x in voxels of level 0 of a registered volume, with columns that are kept; `grid`
        embeds the whole volume at points so many voxels z, y, x apart.
        """
        call = wire_jobs.submit(kind, volume, points, grid, model, pool, layer, refiner, background)
        return await self._client.do(call)

    async def list(self) -> list[dict[str, Any]]:
        """All jobs that this key may see, oldest first."""
        return await self._client.do(wire_jobs.every())

    async def get(self, identity: str) -> dict[str, Any]:
        """How far a job is: `state`, `done` of `total`, and the sentence `error` of one that failed."""
        return await self._client.do(wire_jobs.one(identity))

    async def wait(
        self, identity: str, *, wait_s: float = float("inf"), every_s: float = 2.0
    ) -> dict[str, Any]:
        """The job once it has ended; CanvasError with its sentence where it failed, and after `wait_s`."""
        end = time.monotonic() + wait_s
        while not is_over(job := await self.get(identity)):
            if time.monotonic() >= end:
                raise not_over(job, wait_s)
            await asyncio.sleep(every_s)
        return job

    async def cancel(self, identity: str) -> dict[str, Any]:
        """Take a job back, finished or not, and remove what it made."""
        return await self._client.do(wire_jobs.cancel(identity))

    async def retry(self, identity: str) -> dict[str, Any]:
        """Let a job that failed go on from where it stopped."""
        return await self._client.do(wire_jobs.retry(identity))

    async def fetch(self, identity: str, out: str | Path) -> Path:
        """Save the result as `.npy` or `.zip` (a zipped X.emb.zarr), or as `.csv` of a refinement."""
        path = Path(out)
        await self._client.save(result_request(identity, path), path)
        return path
