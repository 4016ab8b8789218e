"""Pictures of the service's page for the documentation: `make screenshots` writes docs/images/page-*.png.

A service of `base-5` with the shipped sample of microglia, a Chromium of 1280 × 800, and the cells that
`detector-microglia` finds. Another processor or font gives other pixels, so no test compares the pictures.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from PIL import Image

import canvas_fm as cf
from tests.serving.conftest import Served
from tests.ui.browser import Browser, Page, find_chromium
from tests.ui.conftest import ABSENT
from tests.ui.views import VIEWS, look_at

IMAGES = Path(__file__).parents[2] / "docs" / "images"
COLOURS = 96  # of a picture: a third of the bytes, and no difference to the eye
PAGES = ("volume",)  # views of the page that the documentation shows


def cells(folder: Path) -> Path:
    """The cells of the sample as the shipped detector finds them."""
    brain = cf.Volume.open("sample:microglia")
    path = folder / "cells.csv"
    cf.detect(cf.load("detector-microglia"), brain, out=path, show=False)
    return path


def taken(page: Page, url: str, name: str, table: Path) -> None:
    """Open a view and bring it to what is worth showing."""
    if name != "volume":
        look_at(page, url, name)
        return
    page.go(f"{url}/ui/#volume?volume=microglia&z=32&y=80&x=80")
    page.wait(VIEWS[name])
    page.upload("#volume-side input[type=file]", table)
    page.wait("document.querySelector('#volume-counts').innerText.includes('Kept')")
    page.click("[aria-label='Zoom out']")
    page.tab.wait_for_load_state("networkidle")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=IMAGES)
    parser.add_argument("--only", nargs="+", choices=PAGES, default=list(PAGES))
    args = parser.parse_args()
    program = find_chromium()
    if program is None:
        raise SystemExit(ABSENT)
    with tempfile.TemporaryDirectory() as folder:
        table = cells(Path(folder))
        sample = cf.Volume.open("sample:microglia").path
        served = Served(["base-5", "--volume", f"microglia={sample}", "--port", "0"], Path(folder))
        browser = Browser(program)
        try:
            url = served.url()
            for name in args.only:
                with browser.page() as page:
                    taken(page, url, name, table)
                    path = args.out / f"page-{name}.png"
                    page.screenshot(path)
                    assert page.problems == [], page.problems
                Image.open(path).convert("RGB").quantize(COLOURS).save(path, optimize=True)
                print(path, f"{path.stat().st_size / 1000:.0f} kB")
        finally:
            browser.close()
            served.stop()


if __name__ == "__main__":
    main()
