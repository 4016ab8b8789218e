"""The client for asyncio: the methods of the other one, the same answers, the same retries."""

from __future__ import annotations

import asyncio
import inspect
import time

import httpx
import numpy as np
import pytest

import canvas_fm as cf
from canvas_fm.errors import CanvasError
from canvas_fm.models.load_model import Encoder
from serving.client import AsyncClient, Client, client_methods, job_methods
from tests.serving.conftest import CROP


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_method_shows_the_signature_and_docstring_of_its_generator(kind) -> None:
    for method, generator in (
        (kind.embed, client_methods.embed),
        (kind("http://x").jobs.wait, job_methods.wait),
    ):
        parameters = [name for name in inspect.signature(method).parameters if name != "self"]
        assert parameters == list(inspect.signature(generator).parameters)
        assert method.__doc__ == generator.__doc__
    assert kind.embed.__qualname__.endswith(".embed")
    assert "Float[np.ndarray" in str(inspect.signature(kind.embed).return_annotation)


def test_a_request_that_is_not_retried_gives_its_failure_back() -> None:
    def down(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    async def whole() -> bool:
        async with AsyncClient("http://x", transport=httpx.MockTransport(down)) as client:
            return await client.ready(0.15)

    assert asyncio.run(whole()) is False
    assert Client("http://x", transport=httpx.MockTransport(down)).ready() is False


def test_the_asynchronous_client_through_the_service(service, encoder: Encoder, index, crops) -> None:
    async def whole() -> None:
        transport = httpx.ASGITransport(service.app)
        async with AsyncClient("http://x.example", key="some-key-of-the-lab", transport=transport) as client:
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
        transport = httpx.MockTransport(handle)
        client = AsyncClient("http://service.example", key="some-key-of-the-lab", transport=transport)
        assert await client.info() == {"name": "tiny"}
        await client.close()

    asyncio.run(whole())
    assert keys == ["Bearer some-key-of-the-lab"] * 3
    assert times[1] - times[0] >= 1
    assert 0.4 <= times[2] - times[1] < 3
