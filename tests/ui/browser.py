"""A headless Chromium, led over a pipe by its own protocol: no driver, no further package."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Queue
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_KEYS = {"Enter": 13, "Tab": 9, "Escape": 27, " ": 32, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39}
_KEYS |= {"ArrowDown": 40, "PageUp": 33, "PageDown": 34, "Home": 36}
_SHIFT = 8


def find_chromium() -> str | None:
    """The program: the environment variable CHROMIUM, else one on the path."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One process with a profile of its own; each `page()` is a window that shares nothing with others."""

    def __init__(self, program: str, folder: Path, *flags: str) -> None:
        to_it, from_it = os.pipe(), os.pipe()
        # The protocol's ends are 3 and 4 in the browser: moved there from numbers that cannot clash.
        ours = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (to_it[0], from_it[1])]
        usual = ["--headless=new", "--no-sandbox", "--disable-quic", "--no-first-run", "--mute-audio"]
        usual += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        usual += ["--remote-debugging-pipe", f"--user-data-dir={folder}", "--force-color-profile=srgb"]
        usual += ["--disable-features=Translate,OptimizationHints", "--hide-scrollbars"]
        become = f"import os, sys; os.dup2({ours[0]}, 3); os.dup2({ours[1]}, 4); "
        become += "os.execv(sys.argv[1], sys.argv[1:])"
        self.process = subprocess.Popen(
            [sys.executable, "-c", become, program, *usual, *flags, "about:blank"],
            pass_fds=ours,
            stdout=subprocess.DEVNULL,
            stderr=(folder.parent / "chromium.log").open("w"),
        )
        for end in (to_it[0], from_it[1], *ours):
            os.close(end)
        self._out, self._in = os.fdopen(to_it[1], "wb", 0), os.fdopen(from_it[0], "rb", 0)
        self._number = 0
        self._replies: dict[int, Queue[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        held = b""
        while piece := self._in.read(2**16):
            *messages, held = (held + piece).split(b"\0")
            for message in map(json.loads, messages):
                if "id" in message:
                    self._replies.pop(message["id"]).put(message)
                elif (page := self._pages.get(message.get("sessionId", ""))) is not None:
                    page.heard(message["method"], message["params"])

    def send(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """A command of the protocol, and its result."""
        self._number += 1
        number, reply = self._number, Queue(1)
        self._replies[number] = reply
        message = {"id": number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        self._out.write(json.dumps(message).encode() + b"\0")
        try:
            said = reply.get(timeout=60)
        except Empty:
            raise TimeoutError(f"{method} was not answered") from None
        if "error" in said:
            raise RuntimeError(f"{method}: {said['error']}")
        return dict(said["result"])

    @contextlib.contextmanager
    def page(self, width: int = 1280, height: int = 800) -> Iterator[Page]:
        """A window; closed at the end."""
        context = self.send("Target.createBrowserContext")["browserContextId"]
        target = self.send("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "DOM"):
            page.send(f"{domain}.enable")
        page.send("Network.enable", maxPostDataSize=2**22)
        page.look(width, height)
        try:
            yield page
        finally:
            self.send("Target.disposeBrowserContext", browserContextId=context)

    def close(self) -> None:
        with contextlib.suppress(OSError, RuntimeError, TimeoutError):
            self.send("Browser.close")
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()


class Page:
    """A window. Kept of it: `problems` (its console), `requests` (addresses), `posted` (with bodies)."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser, self.session = browser, session
        self.problems: list[str] = []
        self.tolerates = "\0"  # problems with this in them are expected
        self.requests: list[str] = []
        self.posted: list[tuple[str, str]] = []
        self.replies: dict[str, int] = {}
        self._pressed = 0

    def heard(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.problems.append(str(details.get("exception", {}).get("description", details["text"])))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.problems.append(" ".join(str(each.get("value")) for each in params["args"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
            self.posted.append((params["request"]["url"], params["request"].get("postData", "")))
        elif method == "Network.responseReceived":
            self.replies[params["response"]["url"]] = params["response"]["status"]

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.send(method, self.session, **params)

    def look(self, width: int, height: int, *, dark: bool = False, ratio: float = 1) -> None:
        """Size, colour scheme and pixels a CSS pixel of the window."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=ratio,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def go(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, expression: str) -> Any:
        """The value of an expression, awaited where it is a promise."""
        said = self.send(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in said:
            raise AssertionError(said["exceptionDetails"].get("exception", said["exceptionDetails"]))
        return said["result"].get("value")

    def wait(self, condition: str, within_s: float = 40) -> None:
        """Wait until an expression is true; AssertionError with the console if it never is."""
        end = time.monotonic() + within_s
        while not self.run(
            f"(() => {{ try {{ return Boolean({condition}); }} catch {{ return false; }} }})()"
        ):
            if time.monotonic() > end:
                raise AssertionError(
                    f"{condition} did not become true; {self.problems} {self.shown()[:1500]}"
                )
            time.sleep(0.03)

    def shown(self, selector: str = "body") -> str:
        """The text that is seen."""
        return str(self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """(left, top, width, height) of an element, which is scrolled into view first."""
        found = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            "e.scrollIntoView({block: 'center', inline: 'nearest'}); const b = e.getBoundingClientRect(); "
            "return [b.left, b.top, b.width, b.height]; })()"
        )
        return (found[0], found[1], found[2], found[3])

    def click(self, selector: str) -> None:
        left, top, width, height = self.box(selector)
        self.mouse("Pressed", left + width / 2, top + height / 2)
        self.mouse("Released", left + width / 2, top + height / 2)

    def mouse(self, kind: str, x: float, y: float, *, shift: bool = False, wheel: float = 0) -> None:
        """`Pressed`, `Moved` (a drag while pressed), `Released` or `Wheel` at a place of the window."""
        if kind in ("Pressed", "Released"):
            self._pressed = int(kind == "Pressed")
        more = {"deltaX": 0, "deltaY": wheel} if kind == "Wheel" else {}
        held = kind in ("Pressed", "Released") or self._pressed
        self.send(
            "Input.dispatchMouseEvent",
            type=f"mouse{kind}",
            x=x,
            y=y,
            button="left" if held else "none",
            buttons=self._pressed,
            clickCount=int(kind in ("Pressed", "Released")),
            modifiers=_SHIFT if shift else 0,
            **more,
        )

    def press(self, key: str, *, shift: bool = False) -> None:
        """One key, by the name that the page hears."""
        code = _KEYS.get(key, ord(key.upper()) if len(key) == 1 else 0)
        text = "\r" if key == "Enter" else key if len(key) == 1 else ""
        common = {"key": key, "windowsVirtualKeyCode": code, "modifiers": _SHIFT if shift else 0}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def fill(self, selector: str, value: str) -> None:
        """Put a value into a field as a person does: its `input` and `change` are heard."""
        self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            f"e.value = {json.dumps(value)}; "
            "for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind, {bubbles: true})); })()"
        )

    def upload(self, selector: str, path: Path) -> None:
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def screenshot(self, path: Path | None = None) -> bytes:
        """What is seen, as PNG."""
        data = base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])
        if path is not None:
            path.write_bytes(data)
        return data
