"""A headless Chromium, Debian's own, driven by Playwright; nothing is downloaded."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import playwright.sync_api as playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ("--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader", "--disable-quic", "--no-first-run")
FLAGS += ("--disable-background-networking", "--disable-component-update", "--disable-sync")
FLAGS += ("--force-color-profile=srgb",)


def find_chromium() -> str | None:
    """The program: the environment variable CHROMIUM, else one on the path."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One process with a profile of its own; each `page()` is a window that shares nothing with others."""

    def __init__(self, program: str) -> None:
        # Not at the top: collecting the tests would load it where none of these is run.
        from playwright.sync_api import sync_playwright

        self._driver = sync_playwright().start()
        self._browser = self._driver.chromium.launch(executable_path=program, headless=True, args=[*FLAGS])

    @contextlib.contextmanager
    def page(self, width: int = 1280, height: int = 800) -> Iterator[Page]:
        """A window; closed at the end."""
        with self._browser.new_context(viewport={"width": width, "height": height}) as context:
            context.set_default_timeout(60_000)
            yield Page(context.new_page())

    def close(self) -> None:
        self._browser.close()
        self._driver.stop()


class Page:
    """A window. Kept of it: `problems` (its console), `requests` (addresses), `posted` (with bodies)."""

    def __init__(self, page: playwright.Page) -> None:
        self.tab = page
        self.problems: list[str] = []
        self.tolerates = "\0"  # problems with this in them are expected
        self.requests: list[str] = []
        self.posted: list[tuple[str, str]] = []
        self.replies: dict[str, int] = {}
        page.on("pageerror", lambda problem: self.problems.append(str(problem)))
        page.on("console", self._console)
        page.on("request", self._request)
        page.on("response", lambda reply: self.replies.update({reply.url: reply.status}))

    def _console(self, message: playwright.ConsoleMessage) -> None:
        if message.type in ("error", "assert"):
            self.problems.append(f"{message.text} {message.location.get('url', '')}")

    def _request(self, request: playwright.Request) -> None:
        self.requests.append(request.url)
        self.posted.append((request.url, (request.post_data_buffer or b"").decode("utf-8", "replace")))

    def go(self, url: str) -> None:
        self.tab.goto(url)

    def run(self, expression: str) -> Any:
        """The value of an expression, awaited where it is a promise."""
        return self.tab.evaluate(expression)

    def wait(self, condition: str, within_s: float = 40) -> None:
        """Wait until an expression is true; AssertionError with the console if it never is."""
        end = time.monotonic() + within_s
        while not self._holds(condition):
            if time.monotonic() > end:
                raise AssertionError(
                    f"{condition} did not become true; {self.problems} {self.shown()[:1500]}"
                )
            self.tab.wait_for_timeout(30)

    def _holds(self, condition: str) -> bool:
        from playwright.sync_api import Error

        script = f"(() => {{ try {{ return Boolean({condition}); }} catch {{ return false; }} }})()"
        try:
            return bool(self.run(script))
        except Error:  # another page is being opened
            return False

    def shown(self, selector: str = "body") -> str:
        """The text that is seen."""
        return str(self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """(left, top, width, height) of an element, which is scrolled into view first."""
        left, top, width, height = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            "e.scrollIntoView({block: 'center', inline: 'nearest'}); const b = e.getBoundingClientRect(); "
            "return [b.left, b.top, b.width, b.height]; })()"
        )
        return left, top, width, height

    def click(self, selector: str) -> None:
        left, top, width, height = self.box(selector)
        self.tab.mouse.click(left + width / 2, top + height / 2)

    def mouse(self, kind: str, x: float, y: float, *, shift: bool = False, wheel: float = 0) -> None:
        """`Pressed`, `Moved` (a drag while pressed), `Released` or `Wheel` at a place of the window."""
        pointer, keys = self.tab.mouse, self.tab.keyboard
        if shift:
            keys.down("Shift")
        pointer.move(x, y)
        if kind == "Pressed":
            pointer.down()
        elif kind == "Released":
            pointer.up()
        elif kind == "Wheel":
            pointer.wheel(0, wheel)
        if shift:
            keys.up("Shift")

    def press(self, key: str, *, shift: bool = False) -> None:
        """One key, by the name that the page hears."""
        self.tab.keyboard.press(f"Shift+{key}" if shift else key)

    def type(self, text: str) -> None:
        self.tab.keyboard.insert_text(text)

    def fill(self, selector: str, value: str) -> None:
        """Put a value into a field as a person does: its `input` and `change` are heard."""
        self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            f"e.value = {json.dumps(value)}; "
            "for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind, {bubbles: true})); })()"
        )

    def upload(self, selector: str, path: Path) -> None:
        self.tab.set_input_files(selector, path)

    def screenshot(self, path: Path | None = None) -> bytes:
        """What is seen, as PNG."""
        return self.tab.screenshot(path=path)
