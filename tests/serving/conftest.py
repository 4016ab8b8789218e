"""A tiny encoder, a volume, and the whole service around them: in this process, and by `canvas-fm serve`."""

from __future__ import annotations

import faulthandler
import io
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

import canvas_fm as cf
from canvas_fm.data.points.points import Points
from canvas_fm.inference.embed.embed import embed_to_store
from canvas_fm.inference.embed.store import resumable_embeddings as unfinished
from canvas_fm.models.encoder.mae import DecoderConfig, MaskedAutoencoder
from canvas_fm.models.encoder.vit import EncoderConfig
from canvas_fm.models.load_model import Encoder, load, save_encoder
from serving.protocol import npy

CROP = (8, 16, 16)
VOXEL_UM = (4.0, 1.8, 1.8)
SHAPE = (24, 60, 50)
NPY, JSON = {"Content-Type": npy.MEDIA_TYPE}, {"Content-Type": "application/json"}


def post(client, crops: np.ndarray, query: str = "", **headers: str):
    """Crops sent to be embedded."""
    return client.post(f"/v1/embed{query}", content=npy.dump(crops), headers=NPY | headers)


def transport_to(service) -> httpx.MockTransport:
    """For a client: its requests are answered by a service of this process."""

    def handle(request: httpx.Request) -> httpx.Response:
        path, headers = request.url.raw_path.decode(), dict(request.headers)
        reply = service.request(request.method, path, content=request.content, headers=headers)
        return httpx.Response(reply.status_code, headers=dict(reply.headers), content=reply.content)

    return httpx.MockTransport(handle)


def array_of(reply) -> np.ndarray:
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == npy.MEDIA_TYPE
    return np.load(io.BytesIO(reply.content), allow_pickle=False)


def refused(reply, status: int, *parts: str) -> str:
    """The sentence of a refusal, which always has the same shape and names no folder."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    error = reply.json()["error"]
    assert set(reply.json()) == {"error"}
    assert set(error) == {"code", "message"}
    for part in parts:
        assert part in error["message"]
    assert "Traceback" not in error["message"]
    assert "/tmp" not in reply.text
    return error["message"]


def same(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-6) -> None:
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    worst = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert worst.max() <= tolerance


def engine_with(change: Callable) -> Callable:
    """A loader of the usual engine whose `embed` is `change(engine, embed)`."""

    def load(settings):
        from serving.core.models.model_host import Engine

        engine = Engine.load(settings)
        engine.embed = change(engine, engine.embed)
        return engine

    return load


class Gate:
    """Holds the model up until it is opened."""

    def __init__(self) -> None:
        self.open, self.reached = threading.Event(), threading.Event()
        self.batches: list[int] = []

    def load(self, settings):
        def held(engine, embed):
            def wait(pool, crops, layer):
                self.reached.set()
                self.open.wait(20)
                self.batches.append(len(crops))
                return embed(pool, crops, layer)

            return wait

        return engine_with(held)(settings)


@pytest.fixture(scope="session", autouse=True)
def _bentoml_keeps_to_itself(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What BentoML writes goes to a folder of the tests."""
    os.environ["BENTOML_HOME"] = str(tmp_path_factory.mktemp("bentoml"))
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny encoder with random weights; its own pooling is `mean`."""
    torch.manual_seed(0)
    architecture = EncoderConfig(crop_zyx=CROP, patch_zyx=(2, 4, 4), dim=48, depth=2, heads=3)
    mae = MaskedAutoencoder(architecture, DecoderConfig(dim=24, depth=1, heads=3))
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_encoder(folder, mae, voxel_um=VOXEL_UM)
    return folder


@pytest.fixture(scope="session")
def encoder(model: Path) -> Encoder:
    return load(model)


@pytest.fixture(scope="session")
def volume_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume of noise, uint16, with a window of its own."""
    from canvas_fm.data.volume.volume import Volume

    path = tmp_path_factory.mktemp("volumes") / "cube.zarr"
    voxels = np.random.default_rng(0).integers(200, 4000, SHAPE).astype(np.uint16)
    with Volume.create(path, SHAPE, voxel_um=VOXEL_UM, chunk_zyx=(8, 16, 16)) as writer:
        writer.write((0, 0, 0), voxels)
    return path


@pytest.fixture
def crops() -> np.ndarray:
    """Five crops (n, z, y, x), float32 in [0, 1]."""
    return np.random.default_rng(1).random((5, *CROP), np.float32)


@pytest.fixture(scope="session")
def begin_service(model: Path, volume_path: Path) -> Callable:
    """`begin(stack, load=…, **limits)`: a client of the whole service, BentoML and all, in this process."""
    from starlette.testclient import TestClient

    from serving.core.core import Core, _load
    from serving.launch.bento.bento_service import make_service
    from serving.protocol.settings import Limits, ServiceSettings

    def begin(
        stack: ExitStack,
        *,
        load: Callable = _load,
        volumes: dict[str, str] | None = None,
        wait: bool = True,
        middleware: type | None = None,
        more: dict | None = None,
        headers: dict[str, str] | None = None,
        **limits,
    ) -> TestClient:
        named = {"cube": str(volume_path)} if volumes is None else volumes
        usual = {"model": str(model), "volumes": named, "limits": Limits(**limits)}
        settings = ServiceSettings(**(usual | (more or {})))
        failures: list[str] = []
        service = make_service(Core(lambda: settings, load=load, on_failure=failures.append))
        if middleware is not None:
            service.add_asgi_middleware(middleware)
        client = stack.enter_context(
            TestClient(service.to_asgi(), raise_server_exceptions=False, headers=headers)
        )
        while wait and client.get("/readyz").status_code != 200:
            assert not failures, failures
            time.sleep(0.01)
        return client

    return begin


def end_shared(stack: ExitStack) -> None:
    """Stop a service that many tests shared; one that does not stop shows where its threads are.

    The portal's own end waits without limit and swallows what interrupts it, so it is waited for beside.
    That a service stops is tested where a test has its own, and on `canvas-fm serve`.
    """
    ending = threading.Thread(target=stack.close, name="end of the shared service", daemon=True)
    ending.start()
    ending.join(60)
    if ending.is_alive():
        assert sys.__stderr__ is not None
        faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
        warnings.warn("a service shared by tests has not stopped within 60 s", stacklevel=1)


@pytest.fixture(scope="session")
def client(begin_service: Callable) -> Iterator:
    """The service with its usual limits, shared by the tests that only ask."""
    stack = ExitStack()
    yield begin_service(stack)
    end_shared(stack)


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """A second encoder, of other crops and another voxel size."""
    torch.manual_seed(1)
    architecture = EncoderConfig(crop_zyx=(4, 8, 8), patch_zyx=(1, 2, 2), dim=24, depth=1, heads=2)
    mae = MaskedAutoencoder(architecture, DecoderConfig(dim=12, depth=1, heads=2))
    return save_encoder(tmp_path_factory.mktemp("others") / "small", mae, voxel_um=(8.0, 3.6, 3.6))


@pytest.fixture(scope="session")
def index(encoder: Encoder, volume_path: Path, tmp_path_factory: pytest.TempPathFactory) -> cf.Index:
    """Sixty cells of the served volume."""
    folder = tmp_path_factory.mktemp("index")
    rng = np.random.default_rng(0)
    points = Points(rng.random((60, 3)) * SHAPE - 0.5, {"score": np.linspace(0, 1, 60)})
    volume = cf.Volume.open(volume_path)
    made = embed_to_store(encoder, volume, points, folder / "cells.emb.zarr", device="cpu")
    return cf.Index.build(made, folder / "cells.index")


@pytest.fixture(scope="session")
def service(begin_service: Callable, other: Encoder, index: cf.Index) -> Iterator:
    """The service with a second model and an index, shared by the tests that only ask."""
    more = {"models": {"small": str(other.path)}, "indexes": {"cells": str(index.path)}}
    stack = ExitStack()
    yield begin_service(stack, more=more)
    end_shared(stack)


@pytest.fixture
def start(begin_service: Callable) -> Iterator[Callable]:
    """`start(**limits)`: a service of the test's own."""
    with ExitStack() as stack:
        yield lambda **options: begin_service(stack, **options)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


@pytest.fixture
def run(begin_service, tmp_path: Path) -> Iterator[Callable]:
    """`run(**limits)` starts a service, one after the other, whose jobs lie in a folder of the test."""
    with ExitStack() as stack:

        def begin(more: dict | None = None, **options: Any) -> Any:
            return begin_service(
                stack, more={"jobs": str(tmp_path / "jobs"), "device": "cpu"} | (more or {}), **options
            )

        yield begin


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfinished, "BLOCK", 32)


class Served:
    """A `canvas-fm serve` that runs: its address, its process, what it wrote."""

    def __init__(self, arguments: list[str], folder: Path, **environment: str) -> None:
        self.home, self.cwd = folder / "home", folder / "cwd"
        for each in (self.home, self.cwd):
            each.mkdir(parents=True)
        # A folder that would be found first if the current one were searched for the service's code.
        (self.cwd / "serving").mkdir()
        (self.cwd / "serving" / "__init__.py").write_text("raise RuntimeError('the wrong serving')\n")
        self.out, self.err = folder / "out.txt", folder / "err.txt"
        arguments = arguments if "--spares" in arguments else [*arguments, "--spares", "0"]
        command = [str(Path(sys.executable).parent / "canvas-fm"), "serve", *arguments]
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                command,
                cwd=self.cwd,
                stdout=out,
                stderr=err,
                env=os.environ | {"HOME": str(self.home), "OMP_NUM_THREADS": "1"} | environment,
            )

    def url(self, wait_s: float = 240) -> str:
        """The address, once it is announced, which is when the model is loaded."""
        end = time.monotonic() + wait_s
        mark = "serving on "
        while mark not in (said := self.err.read_text()):
            assert self.process.poll() is None, said
            assert time.monotonic() < end, said
            time.sleep(0.05)
        return said.partition(mark)[2].split()[0]

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(45)  # `stop_s`, for what is in flight, and the end of the processes


@pytest.fixture(scope="session")
def serve_command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Served]]:
    """`serve_command(*arguments)` starts `canvas-fm serve`; what still runs at the end is ended."""
    started: list[Served] = []

    def begin(*arguments: str, **environment: str) -> Served:
        started.append(Served(list(arguments), tmp_path_factory.mktemp("serve"), **environment))
        return started[-1]

    yield begin
    for served in started:
        if served.process.poll() is None:
            served.stop()
