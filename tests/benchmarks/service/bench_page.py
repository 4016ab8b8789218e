"""The map of /ui while it is panned: how long a frame takes, beside one in which nothing is drawn."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch

from canvas_fm.models.encoder.mae import DecoderConfig, MaskedAutoencoder
from canvas_fm.models.encoder.vit import EncoderConfig
from canvas_fm.models.load_model import save_encoder
from tests.benchmarks.timing import show
from tests.ui.browser import Browser, Page, find_chromium
from tests.ui.conftest import ABSENT, VOXEL_UM, Served, many_cells

# Drags the map for some frames and says how far apart they came, in milliseconds; `still`: nothing is drawn.
PAN = """(async (still) => {
    const canvas = document.querySelector("#map-box canvas");
    const at = (type, x, y) => canvas.dispatchEvent(new PointerEvent(type, {
        pointerId: 1, clientX: x, clientY: y, buttons: 1, bubbles: true, pointerType: "mouse"}));
    const frame = () => new Promise(requestAnimationFrame);
    const box = canvas.getBoundingClientRect();
    const middle = [box.left + box.width / 2, box.top + box.height / 2];
    canvas.setPointerCapture = () => {};
    if (!still) at("pointerdown", ...middle);
    const times = [];
    for (let step = 0; step < 70; step++) {
        const side = Math.sin(step / 8) * 160;
        if (!still) at("pointermove", middle[0] + side, middle[1] + side / 2);
        times.push(await frame());
    }
    if (!still) at("pointerup", ...middle);
    return times.slice(10).map((time, i) => time - times[i + 9]);
})"""


def pan(page: Page, *, still: bool) -> float:
    return statistics.median(page.run(f"{PAN}({'true' if still else 'false'})"))


def main(sizes: tuple[int, ...] = (100_000, 1_000_000)) -> None:
    program = find_chromium()
    if program is None:
        print(f"page: {ABSENT}")
        return
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        torch.manual_seed(0)
        architecture = EncoderConfig(crop_zyx=(8, 16, 16), patch_zyx=(2, 4, 4), dim=48, depth=2, heads=3)
        decoder = DecoderConfig(dim=24, depth=1, heads=3)
        save_encoder(folder / "tiny", MaskedAutoencoder(architecture, decoder), voxel_um=VOXEL_UM)
        named = []
        for size in sizes:
            (folder / f"n{size}").mkdir()
            named.append(f"n{size}={many_cells(folder / f'n{size}', size)}")
        limit = ["--limit", f"max_map_cells={max(sizes)}"]
        served = Served([str(folder / "tiny"), "--index", *named, "--port", "0", *limit], folder / "served")
        try:
            show("map of /ui while it is panned, on this CPU", look(program, served.url(), sizes))
        finally:
            served.stop()


def look(program: str, url: str, sizes: tuple[int, ...]) -> list[tuple[str, str, str]]:
    rows = []
    for name in ("webgl2", "pixels"):
        browser = Browser(program)
        try:
            for size in sizes:
                with browser.page(1440, 900) as page:
                    page.go(f"{url}/ui/?renderer={name}#map")
                    page.wait("document.querySelector('#legend *')", 120)
                    if size != sizes[0]:
                        page.fill("#map-controls select", f"n{size}")
                    page.wait(f"document.querySelector('#map-box canvas').dataset.cells === '{size}'", 300)
                    page.wait("document.querySelector('#legend *')", 120)
                    still, moving = pan(page, still=True), pan(page, still=False)
                    beside = f"{moving / still:.2f} times a frame in which nothing is drawn"
                    rows.append((f"{size:,} cells, {name}", f"{moving:.1f} ms a frame", beside))
        finally:
            browser.close()
    return rows
