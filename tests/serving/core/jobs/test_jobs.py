"""Jobs: they give what the library gives, are taken back, survive restarts, and stay apart."""

from __future__ import annotations

import io
import json
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import canvas_fm as cf
from canvas_fm.data.points.points import Points
from canvas_fm.heads.features.extractor import Extractor
from canvas_fm.heads.labels.candidates import label_brains
from canvas_fm.heads.refine.fit.fit import fit_labelled
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.inference.embed.embed import Runner
from canvas_fm.inference.embed.grid_points import grid_points
from canvas_fm.inference.embed.store.embedding_store import Embeddings
from canvas_fm.models.load_model import Encoder
from serving.core.jobs import runner as job_runner
from tests.heads.conftest import make_encoder, spots
from tests.serving.conftest import refused
from tests.serving.core.jobs.job_helpers import Slow, as_context, points, submit, until


@pytest.fixture(scope="module")
def service(begin_service, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("jobs")
        yield begin_service(stack, more={"jobs": str(folder), "device": "cpu"}, max_job_points=500)


# --- what comes out


def test_an_embedding_gives_what_python_gives(service, encoder: Encoder, volume_path: Path, tmp_path) -> None:
    zyx = points()
    job = submit(service, points_zyx=zyx.tolist(), pool="centre", layer=1)
    assert (job["state"], job["total"], job["pool"], job["layer"]) == ("queued", 90, "centre", 1)
    assert job["encoder"] == encoder.sha256
    said = until(service, job, "done", "failed")
    assert (said["state"], said["done"], said["error"]) == ("done", 90, None)
    volume = cf.Volume.open(volume_path)
    expected = cf.embed(encoder, volume, zyx, pool="centre", layer=1, batch=16, device="cpu")
    reply = service.get(said["result"])
    assert reply.headers["x-model"] == encoder.sha256
    found = np.load(io.BytesIO(reply.content))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    archive = service.get(said["result"], headers={"Accept": "application/zip"})
    zipfile.ZipFile(io.BytesIO(archive.content)).extractall(tmp_path)
    opened = Embeddings.open(tmp_path / "embeddings.emb.zarr")
    assert opened.verify() > 0
    np.testing.assert_array_equal(opened.vectors, found)
    np.testing.assert_array_equal(opened.zyx, zyx)
    assert said["id"] in [each["id"] for each in service.get("/v1/jobs").json()["jobs"]]


def test_columns_of_a_csv_stay_and_a_grid_covers_the_volume(
    service, encoder: Encoder, volume_path: Path, tmp_path
) -> None:
    text = "z,y,x,score,region\n9,20,20,0.5,CTX\n12.25,30,21,0.75,HPF\n"
    said = until(service, submit(service, points_csv=text), "done")
    archive = service.get(said["result"], headers={"Accept": "application/zip"})
    zipfile.ZipFile(io.BytesIO(archive.content)).extractall(tmp_path)
    opened = Embeddings.open(tmp_path / "embeddings.emb.zarr")
    assert opened.zyx.tolist() == [[9, 20, 20], [12.25, 30, 21]]
    assert opened.columns["region"].tolist() == ["CTX", "HPF"]
    said = until(service, submit(service, grid=[8, 16, 16], pool="tokens"), "done")
    volume = cf.Volume.open(volume_path)
    zyx = grid_points(volume, encoder.config, (8, 16, 16)).zyx
    found = np.load(io.BytesIO(service.get(said["result"]).content))
    assert found.shape == (len(zyx), 64, 48)
    expected = cf.embed(encoder, volume, zyx, pool="tokens", device="cpu")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def brains(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[cf.Volume, Points]]:
    folder = tmp_path_factory.mktemp("brains")
    return [spots(folder / f"{name}.zarr", seed) for seed, name in enumerate("abc")]


def test_a_refinement_gives_what_python_gives(run, brains, tmp_path: Path) -> None:
    cells = make_encoder(tmp_path / "cells")
    extractor = Extractor(encoder=cells, pool="centre", layer=1, device="cpu")
    volumes, labelled = [volume for volume, _ in brains[:2]], [found for _, found in brains[:2]]
    trained = label_brains(volumes, labelled, labels="label")
    refiner = Refiner("mae", C=0.01, correction="centre")
    fit_labelled(refiner, trained, extractor, tmp_path / "refiner", show=False)
    volume, candidates = brains[2]
    candidates.write(tmp_path / "candidates.csv")
    more = {
        "ignore_voxel_size": True,
        "models": {"cells": str(cells.path)},
        "refiners": {"r": str(tmp_path / "refiner")},
    }
    client = run(more, volumes={"c": str(volume.path)})
    text = (tmp_path / "candidates.csv").read_text()
    said = until(client, submit(client, kind="refine", volume="c", points_csv=text), "done", "failed")
    assert said["error"] is None
    reply = client.get(said["result"])
    assert reply.headers["content-type"].startswith("text/csv")
    (tmp_path / "found.csv").write_bytes(reply.content)
    found = Points.read(tmp_path / "found.csv")
    expected = cf.refine(Refiner.load(tmp_path / "refiner"), volume, candidates, encoder=cells, device="cpu")
    np.testing.assert_allclose(found.columns["p_cell"], expected.columns["p_cell"], atol=1e-6)
    assert found.columns["note"].tolist() == candidates.columns["note"].tolist()
    out = tmp_path / "jobs" / said["id"] / "cells.csv"
    out.write_text(out.read_text().replace("1", "2", 1))
    refused(client.get(said["result"]), 500, "the result is damaged; take the job back (DELETE)")


# --- restarts, cancelling, order


def test_a_job_goes_on_after_a_restart(
    run, encoder, volume_path, small_blocks, monkeypatch, tmp_path: Path
) -> None:
    zyx, slow = points(), Slow(monkeypatch, steps=3)
    with ExitStack() as first:
        client = first.enter_context(as_context(run()))
        job = submit(client, points_zyx=zyx.tolist())
        assert slow.reached.wait(20)
        assert until(client, job, "running")["done"] >= 32
        threading.Timer(0.3, slow.go.set).start()
    mark = tmp_path / "jobs" / job["id"] / "embeddings.emb.zarr.unfinished" / "mark.json"
    assert list(json.loads(mark.read_bytes())["state"]["done"]) == ["0"]
    before = slow.crops
    client = run()
    assert client.get(f"/v1/jobs/{job['id']}").json()["state"] in ("running", "queued", "done")
    said = until(client, job, "done")
    assert slow.crops - before == 90 - 32  # what was done is not done again
    found = np.load(io.BytesIO(client.get(said["result"]).content))
    expected = cf.embed(encoder, cf.Volume.open(volume_path), zyx, batch=16, device="cpu")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_job_is_taken_back_while_it_runs_and_while_it_waits(run, monkeypatch, tmp_path: Path) -> None:
    slow, client = Slow(monkeypatch, steps=1), run()
    running, waiting, last = (submit(client, points_zyx=points(40, seed).tolist()) for seed in range(3))
    assert slow.reached.wait(20)
    for job in (running, waiting):
        said = client.delete(f"/v1/jobs/{job['id']}")
        assert (said.status_code, said.json()["state"]) == (200, "cancelled")
        refused(client.get(f"/v1/jobs/{job['id']}"), 404, "no job has the id")
        refused(client.delete(f"/v1/jobs/{job['id']}"), 404, "no job has the id")
    slow.go.set()
    until(client, last, "done")
    assert [each["id"] for each in client.get("/v1/jobs").json()["jobs"]] == [last["id"]]
    assert client.delete(f"/v1/jobs/{last['id']}").status_code == 200  # a finished one goes as well
    end = time.monotonic() + 10
    while any(path.is_dir() for path in (tmp_path / "jobs").iterdir()):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_requests_go_first(run, monkeypatch, crops) -> None:
    """While one waits, a job takes a batch only every now and then."""
    from serving.protocol import npy

    client = run()
    turns: list[bool] = []
    wanted = threading.Event()
    monkeypatch.setattr(job_runner, "_YIELD_S", 0.3)
    usual = Runner.__call__

    def slowly(runner, given: np.ndarray) -> np.ndarray:
        if threading.current_thread().name == "jobs":
            turns.append(wanted.is_set())
        else:
            time.sleep(0.5 if wanted.is_set() else 0)
        return usual(runner, given)

    monkeypatch.setattr(Runner, "__call__", slowly)
    job = submit(client, points_zyx=points(400).tolist())
    end = time.monotonic() + 10
    while not turns and time.monotonic() < end:
        time.sleep(0.001)
    wanted.set()
    reply = client.post("/v1/embed", content=npy.dump(crops), headers={"Content-Type": "application/x-npy"})
    wanted.clear()
    assert reply.status_code == 200
    assert sum(turns) <= 4
    until(client, job, "done")


# --- what cannot be meant, and too much of it


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 422, "give one of points_zyx, points_csv and grid"),
        ({"points_zyx": [[1, 2, 3]], "grid": [1, 1, 1]}, 422, "give one of points_zyx"),
        ({"points_zyx": []}, 422, "at least one row"),
        ({"points_zyx": [[1, 2]]}, 422, "expected (n, 3)"),
        ({"points_zyx": [[1, 2, 300]]}, 422, "outside the volume"),
        ({"points_zyx": [[1, 2, 3]] * 501}, 413, "501 points in one job; 500 are the most"),
        ({"points_csv": "a,b\n1,2\n"}, 422, "points_csv.csv has no column"),
        ({"points_csv": ""}, 422, "points_csv.csv"),
        ({"grid": [1, 1, 1]}, 413, "a grid of about 72000 points"),
        ({"grid": [0, 1, 1]}, 422, "grid.0"),
        ({"kind": "search", "points_zyx": [[1, 2, 3]]}, 422, "kind"),
        ({"volume": "x", "points_zyx": [[1, 2, 3]]}, 404, "no volume is registered as 'x'"),
        ({"model": "x", "points_zyx": [[1, 2, 3]]}, 404, "no model is served as 'x'"),
        ({"layer": 9, "points_zyx": [[1, 2, 3]]}, 422, "layer is 9"),
        ({"refiner": "x", "points_zyx": [[1, 2, 3]]}, 422, "refiner means nothing to a job of kind embed"),
        ({"kind": "refine", "points_zyx": [[1, 2, 3]]}, 404, "no refiner was named"),
        ({"kind": "refine", "pool": "cls", "points_zyx": [[1, 2, 3]]}, 422, "pool means nothing to a job"),
        ({"out": "/etc/passwd", "points_zyx": [[1, 2, 3]]}, 422, "out"),
    ],
)
def test_jobs_that_cannot_be_meant(service, body: dict, status: int, message: str) -> None:
    refused(service.post("/v1/jobs", json={"kind": "embed", "volume": "cube"} | body), status, message)


@pytest.mark.parametrize("identity", ["0" * 32, "x", "..", "%2e%2e%2fjobs", "0" * 31 + "%00"])
def test_ids_that_are_none(service, identity: str) -> None:
    for method, tail in (("GET", ""), ("DELETE", ""), ("POST", "/retry"), ("GET", "/result")):
        reply = service.request(method, f"/v1/jobs/{identity}{tail}")
        assert reply.status_code in (404, 405), reply.text
        assert "/tmp" not in reply.text


def test_a_service_without_a_folder_of_jobs_says_so(client) -> None:
    asked = {"kind": "embed", "volume": "cube", "points_zyx": [[1, 2, 3]]}
    refused(client.post("/v1/jobs", json=asked), 403, "started without --jobs FOLDER")
    for method, path in (("GET", "/v1/jobs"), ("GET", "/v1/jobs/x"), ("DELETE", "/v1/jobs/x")):
        refused(client.request(method, path), 403, "started without --jobs FOLDER")


def test_so_many_wait_and_so_many_are_kept(run, monkeypatch) -> None:
    slow, client = Slow(monkeypatch), run(max_jobs=2, max_kept_jobs=3)
    first, second = (submit(client, points_zyx=points(5, seed).tolist()) for seed in range(2))
    asked = {"kind": "embed", "volume": "cube", "points_zyx": [[1, 2, 3]]}
    reply = client.post("/v1/jobs", json=asked)
    refused(reply, 429, "2 jobs wait or run already")
    assert reply.headers["retry-after"] == "60"
    refused(client.get(f"/v1/jobs/{second['id']}/result"), 409, "the job is queued")
    slow.go.set()
    for job in (first, second, submit_later(client, asked)):
        until(client, job, "done")
    refused(client.post("/v1/jobs", json=asked), 409, "3 jobs are kept, finished ones too")
    client.delete(f"/v1/jobs/{first['id']}")
    assert client.post("/v1/jobs", json=asked).status_code == 201


def submit_later(client, asked: dict) -> dict:
    """As a patient client does."""
    while (reply := client.post("/v1/jobs", json=asked)).status_code == 429:
        time.sleep(0.05)
    return reply.json()


# --- whose job it is


def test_with_keys_a_job_is_seen_only_by_the_key_that_made_it(run) -> None:
    from serving.api.middleware.auth import _digest

    keys = {"ann": "a-key-of-ann-in-the-lab", "bob": "a-key-of-bob-in-the-lab"}
    client = run({"keys": {name: _digest(key) for name, key in keys.items()}}, wait=False)
    ann, bob = ({"Authorization": f"Bearer {key}"} for key in keys.values())
    while client.get("/readyz").status_code != 200:
        time.sleep(0.01)
    asked = {"kind": "embed", "volume": "cube", "points_zyx": [[9, 9, 9]]}
    job = client.post("/v1/jobs", json=asked, headers=ann).json()
    path = f"/v1/jobs/{job['id']}"
    assert client.get(path, headers=ann).status_code == 200
    assert client.get("/v1/jobs", headers=bob).json() == {"jobs": []}
    refused(client.get(path), 401, "a key is needed")
    for method, tail in (("GET", ""), ("DELETE", ""), ("POST", "/retry"), ("GET", "/result")):
        refused(client.request(method, path + tail, headers=bob), 404, "no job has the id")
    assert len(client.get("/v1/jobs", headers=ann).json()["jobs"]) == 1
    once = {"Idempotency-Key": "3a0f7d1e-both"}  # the same of two holders: two jobs
    of_ann, of_bob = (client.post("/v1/jobs", json=asked, headers=key | once).json() for key in (ann, bob))
    assert of_ann["id"] != of_bob["id"]
    refused(client.get(f"/v1/jobs/{of_ann['id']}", headers=bob), 404, "no job has the id")


def test_sent_twice_with_the_same_idempotency_key_it_is_one_job(service) -> None:
    asked = {"kind": "embed", "volume": "cube", "points_zyx": [[9, 9, 9]]}
    headers = {"Idempotency-Key": "3a0f7d1e-one"}
    first = service.post("/v1/jobs", json=asked, headers=headers)
    again = service.post("/v1/jobs", json=asked, headers=headers)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json()["id"] == again.json()["id"]
    other = service.post("/v1/jobs", json=asked | {"pool": "cls"}, headers=headers)
    refused(other, 409, "was sent with another job")
    refused(service.post("/v1/jobs", json=asked, headers={"Idempotency-Key": "x"}), 422, "give 8 to 200")


def test_jobs_are_counted_by_their_route(service) -> None:
    service.get(f"/v1/jobs/{'0' * 32}")
    text = service.get("/metrics").text
    assert 'canvas_fm_requests_total{route="/v1/jobs/{id}",status="404"}' in text
    assert "0" * 32 not in text
