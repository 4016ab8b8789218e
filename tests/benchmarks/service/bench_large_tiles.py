"""Tiles of a volume of 10¹⁰ voxels over HTTP while the service embeds: p50 and p95 beside a quiet service.

The store is sparse: a pyramid of six levels whose chunks are missing but for a column of tissue, as where a
brain was cleared of its background. Tiles are drawn at random over all levels, half in the tissue, none
twice. `CANVAS_FM_BENCH_TILES=120` is how many of each.
"""

from __future__ import annotations

import http.client
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import zarr

from canvas_fm.files.shipped import DEFAULT_ENCODER, find
from canvas_fm.models.folder.model_folder import read_kind
from serving.core.volumes.tiles import SIDE
from serving.protocol import npy
from tests.benchmarks.service.bench_service import Service, serve
from tests.benchmarks.timing import show

SHAPE, LEVELS, CHUNK, UM = (1024, 3200, 3200), 5, (64, 128, 128), (4.0, 1.8, 1.8)
TISSUE = slice(1024, 2048)  # of y and x, at level 0
GOAL_MS, MODEL = 150.0, DEFAULT_ENCODER


def write(path: Path) -> None:
    """The levels of 1.05 · 10¹⁰ voxels, with noise in every fourth layer of chunks of the tissue."""
    random = np.random.default_rng(0)
    group = zarr.create_group(path, zarr_format=3)
    datasets = []
    for level in range(LEVELS):
        factor = 2**level
        shape = tuple(max(n // factor, 1) for n in SHAPE)
        array = group.create_array(str(level), shape=shape, chunks=CHUNK, dtype="uint16", fill_value=0)
        here = slice(TISSUE.start // factor, TISSUE.stop // factor)
        side = here.stop - here.start
        for z in range(0, shape[0], CHUNK[0] * 4):
            depth = min(CHUNK[0], shape[0] - z)
            array[z : z + depth, here, here] = random.poisson(300, (depth, side, side)).astype(np.uint16)
        scale = [factor * um for um in UM]
        datasets.append(
            {"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        )
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}


def places(count: int, seed: int) -> list[str]:
    """Addresses of different tiles, every second one in tissue."""
    random, chosen = np.random.default_rng(seed), dict[str, None]()
    while len(chosen) < count:
        level = int(random.integers(LEVELS))
        planes, high, wide = (max(n // 2**level, 1) for n in SHAPE)
        low, stop = (TISSUE.start >> level, TISSUE.stop >> level) if len(chosen) % 2 else (0, min(high, wide))
        row, column = (int(random.integers(low, stop)) // SIDE for _ in range(2))
        z = int(random.integers(planes))
        chosen[f"/v1/tile?volume=big&level={level}&z={z}&row={row}&column={column}&window=0,600"] = None
    return list(chosen)


def milliseconds(service: Service, addresses: list[str]) -> np.ndarray:
    connection, taken = http.client.HTTPConnection(service.host or "", service.port, timeout=120), []
    for address in addresses:
        start = time.perf_counter()
        connection.request("GET", address)
        reply = connection.getresponse()
        body = reply.read()
        taken.append(1000 * (time.perf_counter() - start))
        assert reply.status == 200, body[:300]
    return np.array(taken)


@contextmanager
def embedding(service: Service) -> Iterator[list[int]]:
    """Two clients that send 64 crops a request without a pause; counts their replies."""
    crop_zyx = read_kind(find("model", MODEL))[1]["architecture"]["crop_zyx"]
    crops = np.random.default_rng(0).random((64, 1, *crop_zyx), np.float32)
    end, replies, body = threading.Event(), [0, 0], npy.dump(crops)

    def send(number: int) -> None:
        connection = http.client.HTTPConnection(service.host or "", service.port, timeout=600)
        while not end.is_set():
            connection.request("POST", "/v1/embed", body, {"Content-Type": npy.MEDIA_TYPE})
            reply = connection.getresponse()
            refusal = reply.read()[:300]
            assert reply.status in (200, 429), refusal
            replies[number] += reply.status == 200
            end.wait(0.5 if reply.status == 429 else 0)  # as full as it lets itself be

    threads = [threading.Thread(target=send, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield replies
    finally:
        end.set()
        for thread in threads:
            thread.join()


def row(name: str, taken: np.ndarray, more: str) -> tuple[str, str, str]:
    p50, p95 = np.quantile(taken, (0.5, 0.95)).tolist()
    return (
        name,
        f"p50 {p50:.0f} ms, p95 {p95:.0f} ms",
        f"{p95 / GOAL_MS:.2f} of the {GOAL_MS:.0f} ms goal; {more}",
    )


def main() -> None:
    count = int(os.environ.get("CANVAS_FM_BENCH_TILES", "120"))
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        write(folder / "big.zarr")
        arguments = [
            MODEL,
            "--volume",
            f"big={folder / 'big.zarr'}",
            "--missing-chunks",
            "empty",
            "--ignore-voxel-size",
        ]
        with serve(folder, *arguments) as service:
            first = milliseconds(service, ["/v1/pyramid?volume=big"])
            rows = [row("pyramid, opened once", first, "")]
            milliseconds(service, places(8, 99))
            load = f"load {os.getloadavg()[0]:.0f}"
            rows.append(row(f"{count} tiles, nothing else", milliseconds(service, places(count, 0)), load))
            with embedding(service) as replies:
                time.sleep(2)
                taken = milliseconds(service, places(count, 1))
                assert sum(replies), "nothing was embedded meanwhile"
            more = f"{64 * sum(replies)} crops embedded meanwhile, load {os.getloadavg()[0]:.0f}"
            rows.append(row(f"{count} tiles beside embedding", taken, more))
        show("Tiles of 10¹⁰ voxels over HTTP", rows)


if __name__ == "__main__":
    main()
