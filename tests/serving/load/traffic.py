"""What the long tests of the service share: how long they are, clients that check each answer, figures."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
import numpy as np
import psutil

import canvas_fm as cf
from canvas_fm.errors import CanvasError
from canvas_fm.models.load_model import Encoder
from serving.client import Client

LENGTH = float(os.environ.get("CANVAS_FM_LENGTH", "1"))
"""Of times and numbers: 1 is what is asked for, 0.05 a try of minutes."""
CROP, SHAPE = (8, 16, 16), (24, 60, 50)  # of the fixtures


def share(number: float, least: int = 1) -> int:
    """A time in seconds or a number of requests, as long as the run is."""
    return max(least, round(number * LENGTH))


@dataclass
class Known:
    """Crops and points whose embeddings are known; `ask` sends some of them and compares the answer."""

    crops: np.ndarray
    of_crops: np.ndarray
    points: np.ndarray
    of_points: np.ndarray
    raw: np.ndarray
    of_raw: np.ndarray
    window: tuple[float, float] = (100.0, 4000.0)

    @classmethod
    def of(cls, encoder: Encoder, volume_path: object) -> Known:
        rng = np.random.default_rng(0)
        crops = rng.random((512, *CROP), np.float32)
        raw = rng.integers(0, 5000, (512, *CROP)).astype(np.uint16)
        points = rng.random((512, 3)) * SHAPE - 0.5
        volume = cf.Volume.open(volume_path)
        return cls(
            crops,
            cf.embed_crops(encoder, crops),
            points,
            cf.embed(encoder, volume, points, device="cpu"),
            raw,
            cf.embed_crops(encoder, raw, window=cls.window),
        )

    def ask(self, client: Client, rng: np.random.Generator, most: int = 64) -> int:
        """One request of a kind and size drawn by `rng`; how many rows of its answer were wrong."""
        rows = rng.choice(512, int(rng.integers(1, most + 1)), replace=False)
        kind = rng.integers(0, 3)
        if kind == 0:
            found, expected = client.embed(self.crops[rows]), self.of_crops[rows]
        elif kind == 1:
            found, expected = client.embed(self.raw[rows], self.window), self.of_raw[rows]
        else:
            found, expected = client.embed_points("cube", self.points[rows]), self.of_points[rows]
        if found.shape != expected.shape:
            return len(rows)
        off = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
        return int((~(off <= 1e-5)).sum())


@dataclass
class Told:
    """What clients met: answers, wrong rows, requests that were lost, seconds of each."""

    wrong: int = 0
    lost: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def figures(self) -> str:
        times = np.percentile(self.seconds or [0.0], [50, 99, 100])
        return (
            f"{len(self.seconds)} answers, {self.wrong} wrong, {len(self.lost)} lost; "
            f"p50 {1000 * times[0]:.0f} ms, p99 {1000 * times[1]:.0f} ms, longest {times[2]:.2f} s"
        )


class Crowd:
    """`count` clients, each in a thread, that ask `work(client, rng)` again and again until `stop`."""

    def __init__(
        self,
        url: str,
        count: int,
        work: Callable[[Client, np.random.Generator], int],
        *,
        retry_s: float = 60.0,
        pause_s: float = 0.0,
    ) -> None:
        self.told, self._stop, self._lock = Told(), threading.Event(), threading.Lock()
        self._work, self._url, self._retry_s, self._pause_s = work, url, retry_s, pause_s
        self._threads = [
            threading.Thread(target=self._run, args=(seed,), daemon=True) for seed in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        with Client(self._url, retry_s=self._retry_s) as client:
            while not self._stop.is_set():
                began = time.monotonic()
                try:
                    wrong = self._work(client, rng)
                except CanvasError as problem:
                    with self._lock:
                        self.told.lost.append(str(problem))
                    continue
                with self._lock:
                    self.told.wrong += wrong
                    self.told.seconds.append(time.monotonic() - began)
                if self._pause_s:
                    self._stop.wait(self._pause_s)

    @property
    def answers(self) -> int:
        return len(self.told.seconds)

    def stop(self) -> Told:
        """Let each client end its request, and tell."""
        self._stop.set()
        for thread in self._threads:
            thread.join(200)
            assert not thread.is_alive(), "a client hangs"
        return self.told


def worker_of(pid: int) -> psutil.Process:
    """The process that answers, of a service whose supervisor is `pid`."""
    (worker,) = psutil.Process(pid).children()
    return worker


def figure(url: str, name: str) -> float:
    """One figure of /metrics, summed over its labels."""
    with Client(url) as client:
        lines = httpx.get(f"{client.url}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def quiet_port() -> int:
    """A free port below those that any other process is given while the service is down."""
    for port in range(20_000, 30_000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("no port between 20,000 and 30,000 is free")
