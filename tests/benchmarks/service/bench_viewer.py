"""Neuroglancer's client in headless Chromium over exported points: seconds to the first ones at three zooms.

`CANVAS_FM_BENCH_POINTS="1000000"` (default; several are allowed) and `CANVAS_FM_BENCH_OUT=DIR`, where
screenshots are kept. Each zoom is a new window: the client is loaded, then the points that it needs. That
they are drawn is seen by coloured pixels; drawing by software is slower than a GPU, so it is not timed.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from canvas_fm.data.points.points import Points
from canvas_fm.data.precomputed.write_annotations import write_precomputed
from canvas_fm.data.volume.volume import Volume
from canvas_fm.viewing.neuroglancer.client import Client
from canvas_fm.viewing.neuroglancer.colours import colouring_of
from canvas_fm.viewing.neuroglancer.scene import PointsLayer, Scene, VolumeLayer
from canvas_fm.viewing.neuroglancer.server import ViewServer, VolumeChunks
from canvas_fm.viewing.neuroglancer.state import state_of
from tests.benchmarks.timing import show
from tests.benchmarks.volumes.bench_points import SHAPE, UM, points
from tests.ui.browser import Browser, Page, find_chromium
from tests.ui.conftest import ABSENT

# In planes: the whole depth of points in 3D takes minutes to draw by software.
ZOOMS_UM = {"whole brain": (16_000.0, "xy-3d"), "1 mm": (1_000.0, "xy"), "100 µm": (100.0, "xy")}
_POINTS = "/points/cells/"
_FEW = 50  # coloured pixels that are points
_SIZE, _QUIET_S = (900, 600), 6.0


def fetched(page: Page, url: str) -> tuple[float, float]:
    """Seconds from an empty window until the first points are there, and until no more are requested."""
    start = time.perf_counter()
    page.go(url)
    first = last = 0.0
    known = 0
    while not first or time.perf_counter() - start < last + _QUIET_S:
        page.tab.wait_for_timeout(50)
        now = time.perf_counter() - start
        assert now < 300, page.problems
        if any(_POINTS in each and each.endswith(".shard") for each in page.replies):
            first = first or now
        if (requests := sum(_POINTS in each for each in page.requests)) != known:
            known, last = requests, now
    return first, last


def coloured(page: Page, client: Client, picture: Path) -> int:
    """Coloured pixels of the panels as the client itself draws them, once it has all that it shows.

    The browser's own screenshot never came back of a million points at 1 mm, nor did this one.
    """
    replies: list[Any] = []
    client._viewer.async_screenshot(replies.append)
    start = time.perf_counter()
    while not replies:
        page.tab.wait_for_timeout(50)
        assert time.perf_counter() - start < 200, page.problems
    picture.write_bytes(replies[0].screenshot.image)
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB"), np.int16)
    spread = pixels.max(axis=2) - pixels.min(axis=2)
    pure = ((pixels > 250).sum(axis=2) == 1) & ((pixels < 40).sum(axis=2) == 2)  # red, green, blue: axes
    return int(((spread > 8) & ~pure).sum())  # a point off the plane is drawn faintly, on grey


def look(count: int, program: str, pictures: Path) -> list[tuple[str, str, str]]:
    table, rows = points(count), []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        cells = Points(table.zyx, table.columns)
        layer = PointsLayer("cells", "points/cells", cells, colouring_of(cells, "p_cell"))
        write_precomputed(table, folder / layer.key, voxel_um=UM, shape_zyx=SHAPE)
        nothing = Volume.from_array(np.zeros((8, 8, 8), np.uint8), voxel_um=UM)
        empty = VolumeLayer("empty", "volumes/empty", "volume", nothing)
        server = ViewServer(folder, {empty.key: VolumeChunks(empty)})
        server.start()
        try:
            state = state_of(Scene((empty,), (layer,)), server.url.rstrip("/"))
            middle = np.median(table.zyx, axis=0)
            z, y, x = table.zyx[
                np.square(table.zyx - middle).sum(axis=1).argmin()
            ].tolist()  # a cell in plane
            for name, (wide_um, layout) in ZOOMS_UM.items():
                scale = wide_um / 400 / min(UM)
                state |= {"position": [x, y, z], "crossSectionScale": scale, "layout": layout}
                state |= {"projectionScale": wide_um / min(UM), "selectedLayer": {"visible": False}}
                server.show(client := Client(state))  # whose state the page takes, not the one of an address
                browser = Browser(program)  # each with an empty cache
                try:
                    with browser.page(*_SIZE) as page:
                        first, last = fetched(page, client.url)
                        requests = sum(_POINTS in url for url in page.requests)
                        seconds = f"first points after {first:.1f} s, all after {last:.1f} s"
                        print(name, seconds, requests, flush=True)
                        pixels = coloured(
                            page, client, pictures / f"points_{count}_{name.replace(' ', '_')}.png"
                        )
                        assert pixels > _FEW, (name, pixels, page.problems)
                        rows.append((f"{count:,} points, {name}", seconds, f"{requests} requests"))
                finally:
                    browser.close()
        finally:
            server.close()
    return rows


def main() -> None:
    program = find_chromium()
    if program is None:
        print(f"viewer: {ABSENT}")
        return
    pictures = Path(os.environ.get("CANVAS_FM_BENCH_OUT") or tempfile.mkdtemp())
    for count in os.environ.get("CANVAS_FM_BENCH_POINTS", "1000000").split():
        show("Points in Neuroglancer's client", look(int(count), program, pictures))
    print(f"screenshots in {pictures}; load of the machine {os.getloadavg()[0]:.0f}")


if __name__ == "__main__":
    main()
