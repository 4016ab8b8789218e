"""A local web server of a view: files with byte ranges, and chunks of volumes made when they are requested.

It listens on this machine alone, below a path that nobody can guess, and answers no other host name.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from canvas_fm.data.precomputed.write_image import CHUNK, chunk_bytes, image_info
from canvas_fm.data.volume.levels.pyramid import open_pyramid
from canvas_fm.errors import CanvasError
from canvas_fm.files.lru_cache import LruCache
from canvas_fm.viewing.neuroglancer.client import Client
from canvas_fm.viewing.neuroglancer.scene import VolumeLayer

_log = logging.getLogger(__name__)
_CACHE_BYTES = 256 << 20
_TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css",
          ".json": "application/json", ".wasm": "application/wasm",
          ".txt": "text/plain; charset=utf-8"}  # fmt: skip
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_CHUNK = re.compile(r"level(\d+)/(\d+)-(\d+)_(\d+)-(\d+)_(\d+)-(\d+)")
_MOST_CLIENTS = 16
_LOCAL = ("127.0.0.1", "localhost")


class VolumeChunks:
    """The precomputed files of a volume, made when they are asked for; chunks are kept up to 256 MB."""

    def __init__(self, layer: VolumeLayer) -> None:
        self.info = image_info(layer.volume, layer=layer.shown_as, encoding=None)
        self._levels = open_pyramid(layer.volume, labels=layer.kind == "labels")
        self._cache: LruCache[str, bytes] = LruCache(_CACHE_BYTES, len)

    def get(self, key: str) -> bytes | None:
        """The content of `info` or of a chunk `level0/x-x_y-y_z-z`; None where there is none."""
        if key == "info":
            return json.dumps(self.info).encode()
        match = _CHUNK.fullmatch(key)
        if match is None:
            return None
        number, x, x_end, y, y_end, z, z_end = map(int, match.groups())
        if number >= len(self._levels):
            return None
        level, start = self._levels[number], (z, y, x)
        ends = tuple(min(a + CHUNK, n) for a, n in zip(start, level.shape_zyx, strict=True))
        if any(a % CHUNK for a in start) or ends != (z_end, y_end, x_end) or min(ends) <= 0:
            return None
        if any(a >= n for a, n in zip(start, level.shape_zyx, strict=True)):
            return None
        if (content := self._cache.get(key)) is None:
            content = chunk_bytes(level, start, self.info["data_type"])
            self._cache.put(key, content)
        return content


class ViewServer:
    """Serves a folder and volumes on this machine; `url` opens the page.

    Pages of another origin read nothing, but for the one of the viewer, once there is one: `viewer.json` then
    has its address and state, with `?url=` those of another, and `?state=` opens one with that state.
    """

    def __init__(self, folder: Path, volumes: Mapping[str, VolumeChunks], port: int = 0) -> None:
        self._clients: dict[str, Client] = {}
        token = secrets.token_urlsafe(16)
        root, server = folder.resolve(), self

        class Handler(_Handler):
            def allowed_origin(self) -> str | None:
                return next((client.origin for client in server._clients.values()), None)

            def content_of(self, path: str, query: str) -> Path | bytes | None:
                first, _, rest = path.partition("/")
                if first != token:
                    return None
                for key, chunks in volumes.items():
                    if rest.startswith(f"{key}/"):
                        return chunks.get(rest.removeprefix(f"{key}/"))
                if rest == "viewer.json":
                    return server._about(parse_qs(query))
                file = (root / (rest or "index.html")).resolve()
                return file if file.is_relative_to(root) and file.is_file() else None

        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        except OSError as problem:
            raise CanvasError(f"port {port} cannot be used ({problem.strerror}); give another") from problem
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/{token}/"

    def show(self, client: Client) -> None:
        """Let a viewer read the data; beyond the first a few of the last are kept."""
        self._clients[client.url] = client
        if len(self._clients) > _MOST_CLIENTS:
            del self._clients[list(self._clients)[1]]

    def _about(self, query: Mapping[str, list[str]]) -> bytes | None:
        """Address and state of a viewer; None for a state that is none, or a viewer that is not there."""
        if not self._clients:
            return b"{}"
        client: Client | None = next(iter(self._clients.values()))
        if "state" in query:
            try:
                state = json.loads(query["state"][0])
            except ValueError:
                return None
            if not isinstance(state, dict):
                return None
            self.show(client := Client(state))
        elif "url" in query:
            client = self._clients.get(query["url"][0])
        return json.dumps({"url": client.url, "state": client.state}).encode() if client else None

    def serve(self) -> None:
        """Answer requests until `close` or an interruption."""
        self._server.serve_forever(poll_interval=0.2)

    def start(self) -> None:
        """Answer requests in a thread."""
        threading.Thread(target=self.serve, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler, ABC):
    protocol_version = "HTTP/1.1"
    timeout = 60

    @abstractmethod
    def content_of(self, path: str, query: str) -> Path | bytes | None:
        """Content of a path: a file, bytes, or None where there is none."""

    @abstractmethod
    def allowed_origin(self) -> str | None:
        """Origin of the page that may read replies; None where none but the server's own may."""

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        path, _, query = self.path.partition("#")[0].partition("?")
        try:
            content = (
                self.content_of(path.removeprefix("/"), query) if host in _LOCAL else None
            )  # another name: a rebound address
        except CanvasError as problem:
            _log.warning("%s", problem)
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, str(problem).encode(), ".txt", with_body)
            return
        if content is None:
            self._send(HTTPStatus.NOT_FOUND, b"not found", ".txt", with_body)
        elif isinstance(content, bytes):
            self._send(HTTPStatus.OK, content, "", with_body)
        else:
            self._send_file(content, with_body)

    def _send_file(self, file: Path, with_body: bool) -> None:
        size = file.stat().st_size
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        first = int(match[1]) if match else 0
        last = min(int(match[2]), size - 1) if match and match[2] else size - 1
        if match and (first >= size or last < first):
            self._send(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, b"", "", with_body, f"bytes */{size}")
            return
        with file.open("rb") as content:
            content.seek(first)
            body = content.read(last - first + 1)
        if match:
            self._send(
                HTTPStatus.PARTIAL_CONTENT, body, file.suffix, with_body, f"bytes {first}-{last}/{size}"
            )
        else:
            self._send(HTTPStatus.OK, body, file.suffix, with_body)

    def _send(
        self, status: HTTPStatus, body: bytes, suffix: str, with_body: bool, part: str | None = None
    ) -> None:
        self.send_response(status)
        headers: dict[str, Any] = {
            "Content-Type": _TYPES.get(suffix, "application/octet-stream"),
            "Content-Length": len(body),
            "Accept-Ranges": "bytes",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        if (origin := self.allowed_origin()) is not None:
            headers |= {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
        if part is not None:
            headers["Content-Range"] = part
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        _log.debug(format, *args)
