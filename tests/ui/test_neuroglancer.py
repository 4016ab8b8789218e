"""A converted store as Neuroglancer's own client reads it: the box is where, and as large as, it was put."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import canvas_fm as cf
from canvas_fm.viewing.neuroglancer.client import Client
from canvas_fm.viewing.neuroglancer.server import ViewServer
from tests.prepare.planes import write_planes
from tests.ui.browser import Browser, Page

pytestmark = pytest.mark.ui
SHAPE, UM = (40, 300, 420), (4.0, 2.0, 2.0)
LOW, HIGH = (30, 100, 200), (32, 160, 230)  # z, y, x: 60 voxels high, 30 wide
BAR = 45  # pixels of the client's bar above the panel
BY = {"0.5": "zarr3", "0.4": "zarr2"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stores")
    for c, most in enumerate((1000, 3000)):
        voxels = np.full(SHAPE, 100, np.uint16)
        voxels[tuple(slice(a, b) for a, b in zip(LOW, HIGH, strict=True))] = most
        write_planes(folder / "planes", voxels, f"s_C0{c}_Z{{:03d}}.tif")
    for ome in BY:
        cf.convert(folder / "planes", folder / f"one-{ome}.zarr", voxel_um=UM, c=(0,), ome=ome)
    cf.convert(folder / "planes", folder / "two-0.5.zarr", voxel_um=UM)
    return folder


def picture(browser: Browser, folder: Path, name: str, at: list[float], scale: float) -> np.ndarray:
    """The red channel of what the client draws of a store around x, y, z (and channel), a pixel `scale` m."""
    server = ViewServer(folder, {})
    server.start()
    try:
        layer: dict[str, Any] = {"type": "image", "name": "a"}
        layer["source"] = f"{BY[name[4:7]]}://{server.url}{name}"
        layer["shader"] = (
            "void main() { emitRGB(vec3(toNormalized(getDataValue()) * 65535.0 / 1000.0, 0, 0)); }"
        )
        state = {"layers": [layer], "position": at, "layout": "xy", "showAxisLines": False}
        state |= {"dimensions": {axis: [1e-6, "m"] for axis in "xyz"}, "crossSectionScale": scale / 1e-6}
        state |= {"showScaleBar": False, "showDefaultAnnotations": False}
        client = Client(state)
        server.show(client)
        with browser.page(700, 500) as page:
            page.go(client.url)
            return drawn(page, client)
    finally:
        server.close()


def drawn(page: Page, client: Client) -> np.ndarray:
    replies: list[Any] = []
    client._viewer.async_screenshot(replies.append)
    for _ in range(1200):
        if replies:
            break
        page.tab.wait_for_timeout(50)
    assert replies, page.problems
    with Image.open(io.BytesIO(replies[0].screenshot.image)) as image:
        return np.asarray(image.convert("RGB"))[..., 0].astype(int)


@pytest.mark.parametrize("name", ["one-0.5.zarr", "one-0.4.zarr", "two-0.5.zarr"])
def test_a_box_is_drawn_where_it_was_put(browser: Browser, folder: Path, name: str) -> None:
    """The middle of the box is the middle of the picture; a pixel is half a voxel."""
    z, y, x = (u * (a + b - 1) / 2 for u, a, b in zip(UM, LOW, HIGH, strict=True))
    red = picture(browser, folder, name, [x, y, z], 1e-6)
    rows, columns = np.nonzero(red > 180)
    height, width = red.shape
    assert len(rows) == pytest.approx(60 * 30 * 4, rel=0.05)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (pytest.approx(120, abs=2), pytest.approx(60, abs=2))
    assert np.mean(rows) == pytest.approx((height + BAR) / 2, abs=3)
    assert np.mean(columns) == pytest.approx(width / 2, abs=3)
    beside = picture(browser, folder, name, [x, y, UM[0] * (LOW[0] - 2)], 1e-6)
    assert 10 < beside.max() < 60
