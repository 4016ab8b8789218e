"""Jobs on full disks, on damaged and changed files, and beside another service on the same folder."""

from __future__ import annotations

import asyncio
import errno
import shutil
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

import canvas_fm as cf
from canvas_fm.data.points.points import Points
from canvas_fm.inference.embed.store import resumable_embeddings as unfinished
from serving.api.app import create_app
from serving.core.core import Core
from serving.core.jobs.store import JobSpec, JobStore
from serving.protocol.settings import ServiceSettings
from tests.serving.conftest import SHAPE, refused
from tests.serving.core.jobs.job_helpers import Slow, as_context, points, raise_full, submit, until


def test_a_full_disk_is_a_sentence_and_the_job_goes_on_later(
    run, small_blocks, monkeypatch, crops, tmp_path
) -> None:
    from serving.protocol import npy

    client, usual, full = run(), unfinished.ResumableEmbeddings.keep, threading.Event()
    full.set()

    def write(self, block: int, vectors: np.ndarray, bad_chunks: list[str]) -> None:
        from canvas_fm.files.atomic import disk_full_as_error

        if block == 1 and full.is_set():
            with disk_full_as_error(self.folder):
                raise OSError(errno.ENOSPC, "No space left on device")
        usual(self, block, vectors, bad_chunks)

    monkeypatch.setattr(unfinished.ResumableEmbeddings, "keep", write)
    job = submit(client, points_zyx=points().tolist())
    said = until(client, job, "failed", "done")
    assert said["state"] == "failed"
    assert "no space left on the disk" in said["error"]
    assert str(tmp_path) not in said["error"]
    headers = {"Content-Type": "application/x-npy"}
    assert client.post("/v1/embed", content=npy.dump(crops), headers=headers).status_code == 200
    full.clear()
    assert client.post(f"/v1/jobs/{job['id']}/retry").json()["error"] is None
    assert until(client, job, "failed", "done")["state"] == "done"
    refused(client.post(f"/v1/jobs/{job['id']}/retry"), 409, "the job is done; only one that failed goes on")


def test_a_disk_that_takes_no_state_stops_neither_jobs_nor_service(run, monkeypatch) -> None:
    from serving.core.jobs import store as job_store

    client = run()

    def nothing(path: Path, text: str) -> None:
        if path.name == "state.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        path.write_text(text)

    monkeypatch.setattr(job_store, "write_text_atomic", nothing)
    job = submit(client, points_zyx=points(20).tolist())
    assert until(client, job, "done")["done"] == 20
    monkeypatch.setattr(job_store.JobStore, "submit", lambda *_: raise_full())
    asked = {"kind": "embed", "volume": "cube", "points_zyx": [[1, 2, 3]]}
    reply = client.post("/v1/jobs", json=asked)
    refused(reply, 507, "no space left")
    assert reply.json()["error"]["code"] == "disk_full"


def test_what_changed_since_is_a_sentence(
    run, small_blocks, monkeypatch, volume_path: Path, tmp_path
) -> None:
    """The job was begun on another volume than the one that has its name now."""
    shutil.copytree(volume_path, tmp_path / "copy.zarr")
    slow = Slow(monkeypatch, steps=3)
    with ExitStack() as first:
        client = first.enter_context(as_context(run(volumes={"cube": str(volume_path)})))
        job = submit(client, points_zyx=points().tolist())
        assert slow.reached.wait(20)
        threading.Timer(0.3, slow.go.set).start()
    shutil.rmtree(tmp_path / "copy.zarr")
    with cf.Volume.create(tmp_path / "copy.zarr", SHAPE, voxel_um=(4.0, 1.8, 1.8)) as writer:
        writer.write((0, 0, 0), np.random.default_rng(9).integers(0, 999, SHAPE).astype(np.uint16))
    client = run(volumes={"cube": str(tmp_path / "copy.zarr")})
    said = until(client, job, "failed", "done")
    assert "was made from other inputs: volume" in said["error"]
    assert str(tmp_path) not in said["error"]


def test_a_damaged_state_is_worked_on_anew_and_a_damaged_job_is_passed_over(run, tmp_path: Path) -> None:
    with ExitStack() as first:
        client = first.enter_context(as_context(run()))
        job = submit(client, points_zyx=points(20).tolist())
        until(client, job, "done")
    (tmp_path / "jobs" / job["id"] / "state.json").write_text("{")
    (tmp_path / "jobs" / ("0" * 32)).mkdir()
    client = run()
    assert until(client, job, "done")["done"] == 20
    assert len(client.get("/v1/jobs").json()["jobs"]) == 1


def test_damaged_points_are_not_worked_on(run, tmp_path: Path) -> None:
    with ExitStack() as first:
        client = first.enter_context(as_context(run()))
        job = submit(client, points_zyx=points(20).tolist())
        until(client, job, "done")
    folder = tmp_path / "jobs" / job["id"]
    path = folder / "points.csv"
    path.write_text(path.read_text().replace("1", "2"))
    (folder / "state.json").unlink()
    shutil.rmtree(folder / "embeddings.emb.zarr")
    client = run()
    assert "points of the job were damaged" in until(client, job, "failed", "done")["error"]


def test_a_job_of_which_a_bit_was_flipped_is_taken_anew(tmp_path: Path) -> None:
    spec = JobSpec(kind="detect", volume="cube", points=8, detection={"threshold": 0.5}, owner="a",
                   request="r", created=1.0)  # fmt: skip
    store, identity = JobStore(tmp_path), "0" * 32
    assert store.submit(identity, spec, Points(points(3))).spec.detection == {"threshold": 0.5}
    path = tmp_path / identity / "job.json"
    content = path.read_bytes()
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert JobStore(tmp_path).find(identity, "a") is None
    assert JobStore(tmp_path).submit(identity, spec, Points(points(3))).spec.detection == {"threshold": 0.5}
    path.write_text(spec.model_dump_json())  # as earlier versions did
    earlier = JobStore(tmp_path).find(identity, "a")
    assert earlier is not None
    assert len(earlier.points()) == 3


def test_a_job_that_takes_long_to_read_is_answered_in_time(run, monkeypatch) -> None:
    monkeypatch.setattr("serving.api.routes.jobs.check_request", lambda *_: time.sleep(1))
    reply = run(deadline_s=0.2).post("/v1/jobs", json={"kind": "embed", "volume": "cube", "grid": [9, 9, 9]})
    refused(reply, 504, "the job was not read within 0.2 s")


def test_of_two_services_on_one_folder_one_runs_jobs_and_the_other_takes_over(run, monkeypatch) -> None:
    slow = Slow(monkeypatch, steps=1)
    first, second = run(), run()
    job = submit(second, points_zyx=points(40).tolist())
    assert slow.reached.wait(20)
    assert until(second, job, "running")["total"] == 40
    assert slow.crops == 16
    threading.Timer(0.3, slow.go.set).start()
    first.__exit__(None, None, None)
    until(second, job, "done")


def test_a_folder_of_jobs_that_cannot_be_used_ends_the_start(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    failures: list[str] = []

    async def whole() -> None:
        core = Core(
            lambda: ServiceSettings(model=str(model), jobs=str(tmp_path / "file")), on_failure=failures.append
        )
        app = create_app(core)
        async with app.router.lifespan_context(app):
            while not failures and not core.ready:
                await asyncio.sleep(0.01)

    asyncio.run(whole())
    assert failures == [f"the folder of jobs {tmp_path}/file cannot be used: File exists"]
