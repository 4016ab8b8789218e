"""Jobs through both Python clients."""

from __future__ import annotations

import zipfile
from pathlib import Path

import httpx
import numpy as np
import pytest

import canvas_fm as cf
from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError
from canvas_fm.inference.embed.store import resumable_embeddings as unfinished
from canvas_fm.inference.embed.store.embedding_store import Embeddings
from canvas_fm.models.load_model import Encoder
from serving.client import AsyncClient, Client
from tests.serving.conftest import transport_to
from tests.serving.core.jobs.job_helpers import Slow, points, raise_full


def test_the_client_submits_waits_and_saves(run, encoder: Encoder, volume_path: Path, tmp_path: Path) -> None:
    client = Client("http://testserver", transport=transport_to(run()))
    zyx = points(30)
    job = client.jobs.submit("embed", "cube", Points(zyx, {"score": np.arange(30.0)}), pool="cls")
    said = client.jobs.wait(job["id"], wait_s=30, every_s=0.02)
    assert (said["state"], said["done"]) == ("done", 30)
    assert [each["id"] for each in client.jobs.list()] == [job["id"]]
    found = np.load(client.jobs.fetch(job["id"], tmp_path / "x.npy"))
    expected = cf.embed(encoder, cf.Volume.open(volume_path), zyx, pool="cls", device="cpu")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    with zipfile.ZipFile(client.jobs.fetch(job["id"], tmp_path / "x.zip")) as archive:
        archive.extractall(tmp_path)
    opened = Embeddings.open(tmp_path / "embeddings.emb.zarr")
    assert opened.columns["score"].tolist() == list(range(30))
    with pytest.raises(CanvasError, match=r"results are \.npy or \.zip"):
        client.jobs.fetch(job["id"], tmp_path / "x.txt")
    assert client.jobs.cancel(job["id"])["state"] == "cancelled"
    with pytest.raises(CanvasError, match="answered 404: no job has the id"):
        client.jobs.fetch(job["id"], tmp_path / "y.npy")
    assert not list(tmp_path.glob("*y.npy*"))


def test_the_client_says_why_a_job_failed_and_when_it_has_waited_enough(run, monkeypatch) -> None:
    slow = Slow(monkeypatch)
    client = Client("http://testserver", transport=transport_to(run()))
    job = client.jobs.submit("embed", "cube", grid=(8, 16, 16))
    with pytest.raises(CanvasError, match=r"is (queued|running) after 0\.1 s, 0 of \d+ done"):
        client.jobs.wait(job["id"], wait_s=0.1, every_s=0.02)
    monkeypatch.setattr(unfinished.ResumableEmbeddings, "keep", lambda *_: raise_full())
    slow.go.set()
    with pytest.raises(CanvasError, match="failed: no space left on the disk"):
        client.jobs.wait(job["id"], wait_s=30, every_s=0.02)


def test_a_job_whose_answer_was_lost_is_sent_again_and_is_one_job(run) -> None:
    service, lost = run(), []

    def handle(request: httpx.Request) -> httpx.Response:
        reply = service.request(
            request.method, request.url.path, content=request.content, headers=dict(request.headers)
        )
        if request.method == "POST" and not lost:
            lost.append(reply.json()["id"])
            raise httpx.ReadError("lost")
        return httpx.Response(reply.status_code, json=reply.json())

    client = Client("http://testserver", transport=httpx.MockTransport(handle))
    job = client.jobs.submit("embed", "cube", points(5))
    assert job["id"] == lost[0]
    assert len(client.jobs.list()) == 1


def test_the_asynchronous_client_does_the_same(run, encoder, volume_path: Path, tmp_path: Path) -> None:
    service, zyx = run(), points(10)

    async def whole() -> np.ndarray:
        transport = httpx.ASGITransport(service.app)
        async with AsyncClient("http://service.example", transport=transport) as client:
            job = await client.jobs.submit("embed", "cube", zyx)
            assert (await client.jobs.wait(job["id"], wait_s=30, every_s=0.02))["state"] == "done"
            assert len(await client.jobs.list()) == 1
            return np.load(await client.jobs.fetch(job["id"], tmp_path / "x.npy"))

    found = service.portal.call(whole)
    expected = cf.embed(encoder, cf.Volume.open(volume_path), zyx, device="cpu")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
