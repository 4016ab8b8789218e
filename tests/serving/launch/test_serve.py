"""The service as a user starts it: processes, ports, signals, what it leaves behind."""

from __future__ import annotations

import http.client
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import pytest

import canvas_fm as cf
from canvas_fm.errors import CanvasError
from canvas_fm.models.load_model import Encoder
from serving.client import Client
from serving.launch.serve import serve
from serving.protocol import npy
from tests.serving.conftest import CROP, SHAPE, same
from tests.serving.load.traffic import quiet_port


def family(process) -> list[psutil.Process]:
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def ended(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=20)
    return not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(scope="module")
def server(serve_command: Callable, model: Path, volume_path: Path, tmp_path_factory: pytest.TempPathFactory):
    """One service for the tests of this file; the one that ends it stands last among them."""
    temporary = tmp_path_factory.mktemp("temporary")
    served = serve_command(
        str(model), "--volume", f"cube={volume_path}", "--port", "0", TMPDIR=str(temporary)
    )
    served.url()
    served.temporary = temporary
    return served


# --- the one that runs


def test_python_and_the_client_agree(server, encoder: Encoder, volume_path: Path, crops) -> None:
    volume = cf.Volume.open(volume_path)
    raw = volume.read((2, 3, 4), (8, 16, 16))[None]
    points = np.random.default_rng(7).random((20, 3)) * SHAPE - 0.5
    with Client(server.url()) as client:
        same(client.embed(crops), cf.embed_crops(encoder, crops))
        same(
            client.embed(crops.astype(np.float64), pool="centre"),
            cf.embed_crops(encoder, crops, pool="centre"),
        )
        same(client.embed(raw, volume.window), cf.embed_crops(encoder, raw, window=volume.window))
        same(client.embed_points("cube", points), cf.embed(encoder, volume, points, device="cpu"))
        same(client.embed(crops, per_request=2), cf.embed_crops(encoder, crops, batch=2))
        in_parts = client.embed_points("cube", points, "cls", per_request=6)
        same(in_parts, cf.embed(encoder, volume, points, pool="cls", device="cpu"), 1e-5)
        assert client.info()["sha256"] == encoder.sha256
        assert client.ready()


def test_the_client_says_what_the_service_says(server, crops) -> None:
    with Client(server.url()) as client:
        with pytest.raises(CanvasError, match=r"answered 422: crops have values .*in \[0, 1\]"):
            client.embed(crops * 300)
        with pytest.raises(
            CanvasError, match="answered 404: no volume is registered as 'brain'; registered: cube"
        ):
            client.embed_points("brain", np.zeros((1, 3)))
        with pytest.raises(CanvasError, match="answered 422: crops have shape \\(0, 8, 16, 16\\)"):
            client.embed(crops[:0])
        with pytest.raises(CanvasError, match="NaN"):
            client.embed_points("cube", np.full((1, 3), np.nan))


def test_many_requests_at_once_are_all_answered(server, encoder: Encoder, crops) -> None:
    expected = cf.embed_crops(encoder, crops)
    with Client(server.url()) as client, ThreadPoolExecutor(24) as threads:
        for found in threads.map(lambda _: client.embed(crops), range(192)):
            same(found, expected, 1e-5)


def test_metrics_count_crops(server, crops) -> None:
    def crops_so_far() -> float:
        lines = httpx.get(f"{server.url()}/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("canvas_fm_crops_total"))

    before = crops_so_far()
    with Client(server.url()) as client:
        client.embed(crops)
    assert crops_so_far() - before == 5
    text = httpx.get(f"{server.url()}/metrics").text
    assert 'canvas_fm_requests_total{route="/v1/embed",status="200"}' in text
    assert "canvas_fm_queue_crops 0.0" in text
    httpx.get(f"{server.url()}/some/stranger")
    assert "stranger" not in httpx.get(f"{server.url()}/metrics").text


def test_a_client_that_breaks_off_does_no_harm(server, encoder: Encoder, crops) -> None:
    address = (urlsplit(server.url()).hostname, urlsplit(server.url()).port)
    body = npy.dump(np.zeros((2000, *CROP), np.float32))
    for sent in (0, 100, 200_000):
        with socket.create_connection(address) as connection:
            lines = ["POST /v1/embed HTTP/1.1", "Host: x", "Content-Type: application/x-npy"]
            head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
            connection.sendall(head.encode() + body[:sent])
    with socket.create_connection(address) as connection:
        connection.sendall(b"\x16\x03\x01 no HTTP at all\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")
    with Client(server.url()) as client:
        same(client.embed(crops), cf.embed_crops(encoder, crops))


def test_a_body_that_is_too_large_still_gets_its_answer(server) -> None:
    """The refusal comes while the client is sending; it has to arrive all the same."""
    address = urlsplit(server.url())
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=20)
    connection.putrequest("POST", "/v1/embed?window=0,1")
    connection.putheader("Content-Type", "application/x-npy")
    connection.putheader("Content-Length", str(257 * 2**20))
    connection.endheaders()
    for _ in range(40):
        connection.send(bytes(2**20))
    connection.sock.settimeout(5)
    reply = connection.getresponse()
    assert reply.status == 413
    assert json.loads(reply.read())["error"]["code"] == "too_large"
    connection.close()


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["Content-Length: 10737418240"], b"413"),  # promised, and not a byte of it sent
        (["Content-Length: -5"], b"400"),
        (["Content-Length: many"], b"400"),
        (["Content-Length: 5", "Content-Length: 6"], b"400"),
        (["Transfer-Encoding: chunked", "X: 1\r\n\r\nZZ"], b"400"),
        (["Transfer-Encoding: gzip"], b"400"),
    ],
)
def test_lengths_that_cannot_be_meant_are_answered_at_once(server, lines: list[str], status: bytes) -> None:
    address = (urlsplit(server.url()).hostname, urlsplit(server.url()).port)
    with socket.create_connection(address, timeout=20) as connection:
        head = ["POST /v1/embed HTTP/1.1", "Host: x", "Content-Type: application/x-npy", *lines, "", ""]
        connection.sendall("\r\n".join(head).encode())
        assert connection.recv(1000).split()[1] == status


def test_nothing_but_the_port_is_open_and_nothing_lies_in_the_home(server) -> None:
    port = urlsplit(server.url()).port
    processes = family(server.process)
    assert len(processes) == 2
    listening = {
        connection.laddr
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {(address.ip, address.port) for address in listening} == {("127.0.0.1", port)}
    assert list(server.home.iterdir()) == []
    assert [path.name for path in server.cwd.iterdir()] == ["serving"]
    assert processes[1].environ()["BENTOML_DO_NOT_TRACK"] == "True"
    assert server.out.read_text() == ""


@pytest.mark.slow
def test_a_port_in_use_is_a_sentence(serve_command: Callable, server, model: Path) -> None:
    port = urlsplit(server.url()).port
    second = serve_command(str(model), "--port", str(port))
    assert second.process.wait(60) == 1
    assert f"port {port} on 127.0.0.1 is in use; choose another with --port" in second.err.read_text()
    assert len(second.err.read_text().splitlines()) == 2  # that it waits for the port, and that it gave up


@pytest.mark.slow
def test_a_port_that_comes_free_is_taken_and_a_killed_supervisor_leaves_no_worker(
    serve_command: Callable, model: Path
) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", quiet_port()))
        held.listen()
        served = serve_command(str(model), "--port", str(held.getsockname()[1]))
        end = time.monotonic() + 60
        while "is in use; waiting" not in served.err.read_text():
            assert served.process.poll() is None, served.err.read_text()
            assert time.monotonic() < end
            time.sleep(0.02)
    with Client(served.url()) as client:
        assert client.ready()
    processes = family(served.process)
    assert len(processes) == 2
    os.kill(served.process.pid, signal.SIGKILL)
    served.process.wait(10)
    assert ended(processes)


def test_sigterm_answers_what_is_in_flight_ends_every_process_and_leaves_nothing(
    server, encoder: Encoder
) -> None:
    processes = family(server.process)
    assert len(processes) == 2
    assert list(server.temporary.iterdir())
    many = np.random.default_rng(8).random((2000, *CROP), np.float32)
    with Client(server.url()) as client, ThreadPoolExecutor(1) as threads:
        answer = threads.submit(client.embed, many, per_request=len(many))
        while queued(server.url()) < 500:
            assert not answer.done()
        server.process.terminate()
        same(answer.result(), cf.embed_crops(encoder, many), 1e-5)
    assert server.process.wait(30) == 0
    assert ended(processes)
    assert list(server.temporary.iterdir()) == []
    assert "Traceback" not in server.err.read_text()


def queued(url: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.split()[1]) for line in lines if line.startswith("canvas_fm_queue_crops "))


# --- others that end


@pytest.mark.slow  # a whole start; its two halves are tested below
def test_a_model_that_the_worker_cannot_load_ends_the_service(
    serve_command: Callable, model: Path, tmp_path: Path
) -> None:
    """The worker loads it after the supervisor has started, whose exit code and last line tell of it."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_bytes((model / "config.json").read_bytes())
    served = serve_command(str(broken), "--port", "0")
    processes = family(served.process)
    assert served.process.wait(240) == 1
    assert ended(processes)
    assert "model.safetensors is missing" in served.err.read_text().splitlines()[-1]


# --- what is known at once


@pytest.fixture
def never_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.launch.serve._run", lambda *given: pytest.fail("it was started"))


@pytest.mark.usefixtures("never_started")
def test_what_cannot_be_served_is_refused_before_anything_starts(model: Path, tmp_path: Path) -> None:
    with pytest.raises(CanvasError, match="no model at"):
        serve(tmp_path / "nothing", port=0)
    with pytest.raises(CanvasError, match="the volume cube is not there"):
        serve(model, {"cube": tmp_path / "nothing.zarr"}, port=0)
    with pytest.raises(CanvasError, match="none is shipped by that name; shipped: cfos, microglia"):
        serve(model, {"cube": "sample:nothing"}, port=0)
    with pytest.raises(CanvasError, match="may hold letters"):
        serve(model, {"../cube": tmp_path}, port=0)
    with pytest.raises(CanvasError, match=r"host 'no\.such\.host\.invalid' is unknown"):
        serve(model, host="no.such.host.invalid", port=0)
    with pytest.raises(CanvasError, match="port 70000 is out of range"):
        serve(model, port=70000)
    with pytest.raises(CanvasError, match=r"cannot listen on 192\.0\.2\.1"):
        serve(model, host="192.0.2.1", port=0)


def test_bentoml_is_kept_from_calling_home(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bentoml._internal.utils.analytics.usage_stats import do_not_track

    import serving.launch.bento.bento_service

    seen: dict[str, str] = {}
    monkeypatch.delenv("BENTOML_DO_NOT_TRACK")
    monkeypatch.setattr(
        type(serving.launch.bento.bento_service.service),
        "serve_http",
        lambda self, **given: seen.update(os.environ),
    )
    do_not_track.cache_clear()
    serve(model, port=0)
    assert seen["BENTOML_DO_NOT_TRACK"] == "True"
    assert seen["BENTOML_HOME"].startswith("/")
    assert "BENTOML_DO_NOT_TRACK" not in os.environ
    assert not Path(seen["BENTOML_HOME"]).parent.exists()


def test_what_a_worker_reports_becomes_the_error_of_serve(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serving.launch.bento.bento_service import report_failure

    told: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: told.append((pid, number)))
    monkeypatch.setattr(os, "getppid", os.getpid)

    def worker(settings, folder: Path, *rest) -> None:
        (folder / "settings.json").write_text(settings.model_dump_json())
        monkeypatch.setenv("CANVAS_FM_SERVICE", str(folder / "settings.json"))
        report_failure("the model is damaged")

    monkeypatch.setattr("serving.launch.serve._run", worker)
    with pytest.raises(CanvasError, match="the model is damaged"):
        serve(model, port=0)
    assert told == [(os.getpid(), signal.SIGTERM)]


def test_a_long_temporary_path_does_not_matter(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address of a socket holds 107 bytes."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("long" * 30)))
    folders: list[Path] = []
    monkeypatch.setattr("serving.launch.serve._run", lambda settings, folder, *rest: folders.append(folder))
    serve(model, port=0)
    assert len(str(folders[0] / "control")) < 107


def test_the_supervisor_knows_the_service_by_its_name_alone() -> None:
    """What it imported as well, the first worker would wait for."""
    code = (
        "import sys; from serving.launch.bento.supervisor import by_name; service = by_name(3)\n"
        "print(service.import_string, service.name, service.config['workers'])\n"
        "print(sorted({'torch', 'zarr', 'serving.api', 'serving.core.core'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    named, loaded = done.stdout.splitlines()
    import_string, name, workers = named.split()
    assert (workers, loaded) == ("3", "[]")
    module, _, variable = import_string.partition(":")
    assert getattr(importlib.import_module(module), variable).name == name
