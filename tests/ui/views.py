"""The views of the page as the tests open and look at them."""

from __future__ import annotations

import io

import httpx
import numpy as np
from PIL import Image

from tests.ui.browser import Page

VIEWS = {
    "volume": "document.querySelector('#volume-box canvas').width > 300 && "
    "document.querySelector('#volume-side output').textContent",
    "map": "document.querySelector('#legend input')",
    "crop": "document.querySelector('#near li') && document.querySelector('#reconstruction canvas')",
    "search": "document.querySelector('#search-form button')",
    "model": "document.querySelector('#model-cards table')",
}


def look_at(page: Page, url: str, view: str) -> None:
    """Open a view and wait until it shows what it has."""
    page.go(f"{url}/ui/#{view}")
    page.wait(VIEWS[view])


def picture(page: Page) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).astype(int)


def map_of(url: str, name: str) -> np.ndarray:
    reply = httpx.get(f"{url}/v1/map/points?index={name}", timeout=120)
    return np.load(io.BytesIO(reply.content))
