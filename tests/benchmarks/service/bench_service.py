"""The service under load, each figure beside the limit that it is held to in the same run on the same cores.

    python -m tests.benchmarks.service.bench_service --encoder FOLDER --backend openvino --precision bf16

Throughput of 32 clients with 64 crops a request beside the same encoder and backend in Python; the wait of 8
clients with one crop a request beside the time of a batch of 8; raw `.npy` beside JSON arrays at 256 crops,
on an encoder so small that sending is what takes the time; and points by name beside sending their crops.
The load generator shares the cores with the service, and turns are taken with Python, so that a noisy
machine is noisy to both. Without an encoder it is one of the paper's size with random weights.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from canvas_fm.data.volume.volume import Volume
from canvas_fm.inference.embed.embed import embed_crops
from canvas_fm.inference.embed.encoder_runner import device_for
from canvas_fm.models.encoder.mae import DecoderConfig, MaskedAutoencoder
from canvas_fm.models.encoder.vit import EncoderConfig
from canvas_fm.models.load_model import Encoder, load, save_encoder
from serving.protocol import npy
from tests.benchmarks.timing import show

WINDOW = (0.0, 4000.0)
ROUNDS = 3
Row = tuple[str, str, str]


class Service:
    """A `canvas-fm serve` in processes of its own, and lean connections to it."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self.host, self.port = parts.hostname, parts.port
        self._mine = threading.local()

    def post(self, path: str, body: bytes, kind: str) -> bytes:
        """One request on this thread's own connection."""
        if not hasattr(self._mine, "connection"):
            self._mine.connection = http.client.HTTPConnection(self.host or "", self.port, timeout=600)
            self._mine.connection.connect()
        self._mine.connection.request("POST", path, body, {"Content-Type": kind})
        reply = self._mine.connection.getresponse()
        data: bytes = reply.read()
        assert reply.status == 200, data[:300]
        return data

    def npy(self, body: bytes, window: tuple[float, float] | None = WINDOW) -> bytes:
        query = "" if window is None else f"?window={window[0]:g},{window[1]:g}"
        return self.post(f"/v1/embed{query}", body, npy.MEDIA_TYPE)


@contextmanager
def serve(folder: Path, *arguments: str) -> Iterator[Service]:
    """Started with these arguments and stopped again."""
    log = Path(tempfile.mkstemp(dir=folder, suffix=".txt")[1])
    command = [sys.executable, "-m", "canvas_fm.cli", "serve", *arguments, "--port", "0", "--spares", "0"]
    with log.open("w") as errors:
        process = subprocess.Popen(command, stderr=errors, stdout=subprocess.DEVNULL)
    try:
        while "serving on " not in (said := log.read_text()):
            assert process.poll() is None, said
            time.sleep(0.1)
        yield Service(said.partition("serving on ")[2].split()[0])
    finally:
        process.terminate()
        process.wait()


def for_seconds(seconds: float, work: Callable[[], object]) -> list[float]:
    """Seconds that each call took, called until the time is over."""
    taken, end = [], time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        work()
        taken.append(time.perf_counter() - began)
    return taken


def at_once(clients: int, seconds: float, work: Callable[[], object]) -> tuple[list[float], float]:
    """The same by so many clients; all their times, and how long it took until the last had its answer."""
    taken: list[list[float]] = []
    threads = [
        threading.Thread(target=lambda: taken.append(for_seconds(seconds, work))) for _ in range(clients)
    ]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [each for some in taken for each in some], time.perf_counter() - began


def throughput(
    service: Service, python: Callable[[np.ndarray], object], raw: np.ndarray, seconds: float
) -> Row:
    """32 clients with 64 crops a request."""
    some = raw[:64]
    body = npy.dump(some)
    inside, outside = [], []
    at_once(2, 0.1, lambda: service.npy(body))
    for_seconds(0.1, lambda: python(some))
    for _ in range(ROUNDS):
        taken = for_seconds(seconds, lambda: python(some))
        inside.append(64 * len(taken) / sum(taken))
        answers, whole = at_once(32, seconds, lambda: service.npy(body))
        outside.append(64 * len(answers) / whole)
    a, b = statistics.median(inside), statistics.median(outside)
    return ("32 clients × 64 crops", f"{b:,.0f} crops/s", f"{b / a:.2f} of Python's {a:,.0f} (goal .85)")


def latency(service: Service, python: Callable[[np.ndarray], object], raw: np.ndarray, seconds: float) -> Row:
    """8 clients with one crop a request."""
    body, eight = npy.dump(raw[:1]), raw[:8]
    for_seconds(0.1, lambda: python(eight))
    at_once(8, 0.5, lambda: service.npy(body))
    batch, answers = [], []
    for _ in range(ROUNDS):
        batch += for_seconds(seconds / 2, lambda: python(eight))
        answers += at_once(8, seconds, lambda: service.npy(body))[0]
    one, answers = statistics.median(batch), sorted(answers)
    p50, p99 = answers[len(answers) // 2], answers[int(0.99 * len(answers))]
    said = f"{p99 / (3 * one + 0.003):.2f} of 3 batches of {1000 * one:.1f} ms and a window of 3 ms (goal 1)"
    return ("8 clients × 1 crop, p50 and p99", f"{1000 * p50:.1f}, {1000 * p99:.1f} ms", said)


def points(service: Service, volume: Volume, raw: np.ndarray, seconds: float) -> Row:
    """256 points by name beside the same crops, read already, as `.npy`."""
    zyx = np.random.default_rng(1).uniform(0, np.asarray(volume.shape_zyx) - 1, (256, 3))
    asked = json.dumps({"volume": "brain", "points_zyx": zyx.tolist()}).encode()
    body = npy.dump(raw[:256])
    work = {
        "crops": lambda: service.npy(body),
        "points": lambda: service.post("/v1/embed/points", asked, "application/json"),
    }
    taken: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(1 + 2 * ROUNDS):
        for name, call in work.items():
            some = for_seconds(seconds / 2, call)
            taken[name] += some if turn else []
    crops, named = (statistics.median(taken[name]) for name in work)
    beside = f"{crops / named:.2f} times as fast as sending the crops (goal 1)"
    return ("256 points of a volume by name", f"{256 / named:,.0f} crops/s", beside)


def arrays_beside_json(service: Service, raw: np.ndarray) -> list[Row]:
    """256 crops as `.npy`, and as nested lists through the typed endpoint."""
    crops = np.round(np.clip(raw[:256] / np.float32(WINDOW[1]), 0, 1), 4)
    body, text = npy.dump(crops), json.dumps({"crops": crops.tolist()}).encode()
    work = {
        ".npy": lambda: service.npy(body, None),
        "JSON": lambda: service.post("/embed_json", text, "application/json"),
    }
    taken: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(1 + ROUNDS):
        for name, call in work.items():
            some = for_seconds(0.5, call)
            taken[name] += some if turn else []
    raw_s, json_s = (statistics.median(taken[name]) for name in work)
    return [
        ("256 crops as JSON arrays", f"{json_s:.2f} s", f"{len(text) / 1e6:.0f} MB of text"),
        ("256 crops as .npy", f"{raw_s:.3f} s", f"{json_s / raw_s:.0f} times as fast as JSON (goal 20)"),
    ]


def made(folder: Path, crop_zyx: tuple[int, int, int], voxel_um: Sequence[float], tiny: bool) -> Path:
    """An encoder of random weights: of the paper's size, or of hardly any."""
    patch = tuple(size // (2 if tiny else 4) for size in crop_zyx)
    size = {"dim": 12, "depth": 1, "heads": 1} if tiny else {}
    decoder = DecoderConfig(dim=12, depth=1, heads=1) if tiny else DecoderConfig()
    mae = MaskedAutoencoder(EncoderConfig(crop_zyx=crop_zyx, patch_zyx=patch, **size), decoder)
    save_encoder(folder, mae, voxel_um=tuple(voxel_um))
    return folder


def measure(encoder: Encoder, path: Path, asked: argparse.Namespace, folder: Path) -> list[Row]:
    crop_zyx, seconds = encoder.config.architecture.crop_zyx, asked.seconds
    raw = np.random.default_rng(0).integers(0, 4000, (256, *crop_zyx)).astype(np.uint16)
    settings = {"backend": asked.backend, "precision": asked.precision}

    def python(crops: np.ndarray) -> np.ndarray:
        return embed_crops(encoder, crops, window=WINDOW, batch=64, device=encoder.device, **settings)

    brain, shape = folder / "brain.zarr", (64, 192, 192)
    with Volume.create(brain, shape, voxel_um=encoder.config.voxel_um) as writer:
        writer.write((0, 0, 0), np.random.default_rng(1).integers(0, 4000, shape).astype(np.uint16))
    flags = ["--backend", asked.backend, "--precision", asked.precision, "--volume", f"brain={brain}"]
    flags += ["--limit", "max_wait_s=500", "deadline_s=500"]  # 2,048 crops wait, however slow the machine is
    with serve(folder, str(path), *flags) as service:
        rows = [
            throughput(service, python, raw, seconds),
            latency(service, python, raw, seconds),
            points(service, Volume.open(brain), raw, seconds),
        ]
    tiny = made(folder / "tiny", crop_zyx, encoder.config.voxel_um, tiny=True)
    wide = ["max_json_crops=256", "max_json_mb=200", "max_json_values=100000000"]
    with serve(folder, str(tiny), "--limit", *wide) as service:
        return rows + arrays_beside_json(service, raw)


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", help="an encoder's folder, or the name of a shipped one")
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each part of a round")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        path = Path(asked.encoder or made(Path(name) / "paper", (16, 32, 32), (4.0, 1.8, 1.8), tiny=False))
        encoder = load(path, device=device_for(asked.backend), kind="encoder")
        rows = measure(encoder, path, asked, Path(name))
    cores = len(os.sched_getaffinity(0))
    show(
        f"Service on {encoder.device.type}, {cores} cores, {asked.backend} {asked.precision}, {path.name}",
        rows,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
