"""The client for asyncio: the face of the other one, the same answers, the same patience."""

from __future__ import annotations

import asyncio
import inspect
import time

import httpx
import numpy as np
import pytest

import canvas_fm as cf
from canvas_fm.errors import CanvasError
from canvas_fm.models.checkpoint import Encoder
from serving.client import AsyncClient, Client
from serving.client.async_client_jobs import AsyncClientJobs
from serving.client.client_jobs import ClientJobs
from tests.serving.conftest import CROP


def test_both_clients_have_the_same_face() -> None:
    def face(kind: type) -> dict[str, str]:
        public = {name for name in vars(kind) if not name.startswith("_")} | {"__init__"}
        return {name: str(inspect.signature(getattr(kind, name))) for name in public}

    for one, other in ((Client, AsyncClient), (ClientJobs, AsyncClientJobs)):
        assert face(one) == {name: said.replace("Async", "") for name, said in face(other).items()}


def test_the_asynchronous_client_through_the_service(service, encoder: Encoder, index, crops) -> None:
    async def whole() -> None:
        async with AsyncClient("http://service.example", key="some-key-of-the-lab") as client:
            client._http = httpx.AsyncClient(
                transport=httpx.ASGITransport(service.app), base_url="http://service.example"
            )
            vectors, few = await asyncio.gather(
                client.embed(crops, per_request=2), client.embed(crops, normalize=True, dtype="float16")
            )
            np.testing.assert_allclose(vectors, cf.embed_crops(encoder, crops), rtol=1e-4, atol=1e-5)
            assert few.dtype == np.float16
            hits = await client.search(index.vectors(np.array([3])), k=2, where=["score>=0"])
            assert hits["hits"][0]["row"] == 3
            assert (await client.reconstruct(crops, mask_ratio=0.5)).shape == (5, 4, *CROP)
            assert [each["name"] for each in await client.models()] == ["tiny", "small"]
            with pytest.raises(CanvasError, match=r"answered 422: crops have values"):
                await client.embed(crops * 300)

    service.portal.call(whole)


def test_the_asynchronous_client_comes_back_when_it_is_told_to() -> None:
    replies = [
        httpx.Response(429, headers={"Retry-After": "1"}, json={"error": {"message": "later"}}),
        httpx.ReadError("lost"),
        httpx.Response(200, json={"name": "tiny"}),
    ]
    times: list[float] = []
    keys: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        times.append(time.monotonic())
        keys.append(request.headers.get("authorization", ""))
        reply = replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def whole() -> None:
        client = AsyncClient("http://service.example", key="some-key-of-the-lab")
        headers = client._http.headers
        client._http = httpx.AsyncClient(
            transport=httpx.MockTransport(handle), base_url=client.url, headers=headers
        )
        assert await client.info() == {"name": "tiny"}
        await client.close()

    asyncio.run(whole())
    assert keys == ["Bearer some-key-of-the-lab"] * 3
    assert times[1] - times[0] >= 1
    assert 0.4 <= times[2] - times[1] < 3
