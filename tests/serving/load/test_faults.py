"""What happens to a service: its worker is killed, its clients vanish, its volumes go, it is started anew."""

from __future__ import annotations

import io
import os
import re
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

import canvas_fm as cf
from canvas_fm.errors import CanvasError
from canvas_fm.models.load_model import Encoder
from serving.client import Client
from serving.protocol import npy
from tests.serving.load.traffic import CROP, SHAPE, Crowd, Known, figure, quiet_port, share, worker_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module")
def known(encoder: Encoder, volume_path: Path) -> Known:
    return Known.of(encoder, volume_path)


@pytest.fixture(scope="module")
def served(serve_command: Callable, model: Path, volume_path: Path, tmp_path_factory) -> Iterator:
    """One service for those that leave it whole, with a volume of its own that may be harmed."""
    harmed = tmp_path_factory.mktemp("harmed") / "harmed.zarr"
    shutil.copytree(volume_path, harmed)
    volumes = [f"cube={volume_path}", f"harmed={harmed}"]
    service = serve_command(str(model), "--volume", *volumes, "--port", "0", "--limit", "max_inflight_mb=64")
    service.harmed = harmed
    service.url()
    yield service
    assert service.stop() == 0


def test_a_killed_worker_costs_time_and_no_request(served, known: Known) -> None:
    crowd = Crowd(served.url(), 8, known.ask)
    away = []
    for _ in range(share(10)):
        time.sleep(2)
        worker = worker_of(served.process.pid)
        worker.kill()
        began = time.monotonic()
        with Client(served.url()) as client:
            assert client.ready(wait_s=60)
        away.append(time.monotonic() - began)
        assert worker_of(served.process.pid).pid != worker.pid
    answers = crowd.answers
    time.sleep(3)
    assert crowd.answers > answers
    told = crowd.stop()
    print(f"\n{len(away)} kills, ready again after {np.median(away):.1f} s; {told.figures()}")
    assert (told.lost, told.wrong) == ([], 0)
    # What they had in hand is not counted as still being worked on.
    assert figure(served.url(), "canvas_fm_queue_crops") == 0
    assert figure(served.url(), "canvas_fm_requests_in_progress") == 1  # the one that asks


def test_clients_that_vanish_in_the_middle_of_a_body_leave_nothing(served, known: Known) -> None:
    address = (urlsplit(served.url()).hostname, urlsplit(served.url()).port)
    body = npy.dump(np.zeros((4000, *CROP), np.float32))  # half of what may be on its way
    lines = ["POST /v1/embed HTTP/1.1", "Host: x", "Content-Type: application/x-npy"]
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode()
    rng = np.random.default_rng(0)
    crowd = Crowd(served.url(), 4, known.ask)
    for number in range(share(1000, least=50)):
        with socket.create_connection(address, timeout=20) as connection:
            connection.sendall(head + body[: int(rng.integers(0, 300_000))])
            if number % 2:  # a reset, as of a machine that is gone
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    while crowd.answers < 8:
        time.sleep(0.05)
    told = crowd.stop()
    print(f"\n{told.figures()}")
    assert (told.lost, told.wrong) == ([], 0)
    with Client(served.url()) as client:
        assert client.embed(np.zeros((4000, *CROP), np.float32), per_request=4000).shape == (4000, 48)
    assert figure(served.url(), "canvas_fm_requests_in_progress") == 1
    assert figure(served.url(), "canvas_fm_queue_crops") == 0


def test_a_volume_that_is_damaged_or_gone_fails_alone_and_comes_back(served, known: Known) -> None:
    crowd = Crowd(served.url(), 4, known.ask)
    whole = served.harmed.with_name("whole.zarr")
    shutil.copytree(served.harmed, whole)
    points = known.points[:40]
    with Client(served.url()) as client:
        chunks = [path for path in served.harmed.rglob("*") if path.is_file() and path.name != "zarr.json"]
        largest = max(chunks, key=lambda path: path.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:100])
        with pytest.raises(
            CanvasError, match="answered 500: the volume 'harmed' cannot be read: array"
        ) as said:
            client.embed_points("harmed", points)
        assert str(served.harmed.parent) not in str(said.value)
        shutil.rmtree(served.harmed)
        with pytest.raises(CanvasError, match="answered 500: the volume 'harmed' cannot be read") as said:
            client.embed_points("harmed", points)
        assert str(served.harmed.parent) not in str(said.value)
        whole.rename(served.harmed)
        found = client.embed_points("harmed", points)
    np.testing.assert_allclose(found, known.of_points[:40], rtol=1e-4, atol=1e-5)
    told = crowd.stop()
    assert (told.lost, told.wrong) == ([], 0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of half a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_job_that_fills_the_disk_fails_alone_and_goes_on_when_there_is_room(
    serve_command: Callable, model: Path, encoder: Encoder, volume_path: Path, known: Known, small_disk: Path
) -> None:
    service = serve_command(
        *(str(model), "--volume", f"cube={volume_path}", "--port", "0", "--jobs", str(small_disk))
    )
    crowd = Crowd(service.url(), 2, known.ask)
    points = np.random.default_rng(9).random((6000, 3)) * SHAPE - 0.5  # a megabyte of vectors
    with httpx.Client(base_url=service.url(), timeout=30, trust_env=False) as client:

        def until(*states: str) -> dict:
            end = time.monotonic() + 120
            while (said := client.get(f"/v1/jobs/{job}").json())["state"] not in states:
                assert time.monotonic() < end, said
                time.sleep(0.1)
            return said

        asked = {"kind": "embed", "volume": "cube", "points_zyx": points.tolist()}
        reply = client.post("/v1/jobs", json=asked)
        assert reply.status_code == 201, reply.text
        job = reply.json()["id"]
        said = until("failed", "done")
        assert said["state"] == "failed"
        assert re.search("no space left on the disk|MB left; free some space", said["error"])
        assert str(small_disk) not in said["error"]
        subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
        assert client.post(f"/v1/jobs/{job}/retry").status_code == 200
        assert until("failed", "done")["state"] == "done"
        found = np.load(io.BytesIO(client.get(f"/v1/jobs/{job}/result").content), allow_pickle=False)
    expected = cf.embed(encoder, cf.Volume.open(volume_path), points, device="cpu")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    told = crowd.stop()
    assert (told.lost, told.wrong) == ([], 0)
    assert service.stop() == 0


def test_a_hundred_restarts_lose_no_request(
    serve_command: Callable, model: Path, volume_path: Path, known: Known
) -> None:
    """By clients that only use their own retries; one in five is a kill of all processes at once."""
    port = quiet_port()

    def start():
        service = serve_command(str(model), "--volume", f"cube={volume_path}", "--port", str(port))
        return service, service.url()

    service, url = start()
    crowd = Crowd(url, 8, lambda client, rng: known.ask(client, rng, most=16), pause_s=0.02)
    restarts = share(100, least=3)
    away = []
    for number in range(restarts):
        time.sleep(1)
        began, answers = time.monotonic(), crowd.answers
        if number % 5 == 4:
            worker = worker_of(service.process.pid)
            service.process.kill()
            worker.kill()
            service.process.wait(20)
        else:
            assert service.stop() == 0
        service, _ = start()
        while crowd.answers < answers + 8:
            assert time.monotonic() - began < 120
            time.sleep(0.05)
        away.append(time.monotonic() - began)
    told = crowd.stop()
    print(f"\n{restarts} restarts, {np.median(away):.1f} s each; {told.figures()}")
    assert (told.lost, told.wrong) == ([], 0)
    assert service.stop() == 0


def test_a_stop_waits_for_a_slow_upload_only_so_long(serve_command: Callable, model: Path) -> None:
    """A client that never ends its body holds no service back: after `stop_s` all processes are gone."""
    service = serve_command(str(model), "--port", "0", "--limit", "stop_s=3")
    address = (urlsplit(service.url()).hostname, urlsplit(service.url()).port)
    with socket.create_connection(address) as connection:
        lines = ["POST /v1/embed HTTP/1.1", "Host: x", "Content-Type: application/x-npy"]
        connection.sendall("\r\n".join([*lines, "Content-Length: 100000", "", ""]).encode() + b"\x93NUMPY")
        time.sleep(0.5)
        began = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - began < 15
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{service.url()}/livez")
