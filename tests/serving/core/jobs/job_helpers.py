"""Jobs as the tests of the service begin them, wait for them and hold them up."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from canvas_fm.inference.embed.embed import Runner
from tests.serving.conftest import SHAPE


def points(n: int = 90, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).random((n, 3)) * SHAPE - 0.5


def submit(client, **body: Any) -> dict[str, Any]:
    reply = client.post("/v1/jobs", json={"kind": "embed", "volume": "cube"} | body)
    assert reply.status_code == 201, reply.text
    return reply.json()


def until(client, job: dict[str, Any], *states: str, wait_s: float = 30) -> dict[str, Any]:
    end = time.monotonic() + wait_s
    while (said := client.get(f"/v1/jobs/{job['id']}").json())["state"] not in states:
        assert time.monotonic() < end, said
        time.sleep(0.02)
    return said


class Slow:
    """Holds the job's model up: `steps` batches go through, and no more until `go` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: int = 0) -> None:
        self.go, self.reached, self.crops = threading.Event(), threading.Event(), 0
        usual = Runner.__call__

        def held(runner, crops: np.ndarray) -> np.ndarray:
            if threading.current_thread().name == "jobs":
                if self.crops >= 16 * steps:
                    self.reached.set()
                    self.go.wait(30)
                self.crops += len(crops)
            return usual(runner, crops)

        monkeypatch.setattr(Runner, "__call__", held)


class as_context:
    """A client whose service ends with the block."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def __enter__(self) -> Any:
        return self.client

    def __exit__(self, *_: object) -> None:
        self.client.__exit__(None, None, None)


def raise_full() -> None:
    from canvas_fm.errors import StorageFull

    raise StorageFull("no space left on the disk while writing /tmp/jobs")
