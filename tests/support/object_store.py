"""An object store of the tests' own: the files of a folder by https, by an authority of their own."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import trustme

NAME = "objects.test"


class Objects:
    """What is served: `folder`, faults by the end of a path, and what was asked for."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.faults: dict[str, int | Callable[[BaseHTTPRequestHandler, bytes], None]] = {}
        self.asked: list[tuple[str, str, str | None]] = []  # method, path, range
        self.hosts: set[str] = set()
        self.versions = True  # whether files carry an ETag
        self.connections: list[ssl.SSLSocket] = []

    def address(self, path: str) -> str:
        return f"https://{NAME}:{self.port}/{path}"

    def hang_up(self) -> None:
        """End all connections, as a server does with idle ones."""
        for connection in self.connections:
            with suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def fault_of(self, path: str) -> int | Callable[[BaseHTTPRequestHandler, bytes], None] | None:
        return next((fault for end, fault in self.faults.items() if path.endswith(end)), None)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path, asked = handler.path, handler.headers.get("Range")
        self.asked.append((handler.command, path, asked))
        self.hosts.add(handler.headers["Host"])
        file = self.folder / path.lstrip("/")
        content = file.read_bytes() if file.is_file() else None
        fault = self.fault_of(path)
        if callable(fault):
            return fault(handler, content or b"")
        if fault is not None or content is None:
            return reply(handler, fault or 404, b"no", Location="https://elsewhere.test/secret?key=1")
        headers = {"ETag": f'"{hash(content)}"'} if self.versions else {}
        if asked is None:
            return reply(handler, 200, content, **headers)
        low, high = (int(each) for each in asked.removeprefix("bytes=").split("-"))
        headers["Content-Range"] = f"bytes {low}-{high}/{len(content)}"
        return reply(handler, 206, content[low : high + 1], **headers)


def reply(
    handler: BaseHTTPRequestHandler, status: int, content: bytes, length: int | None = None, **headers: str
) -> None:
    """An answer, of another length than it states where one is given."""
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(content) if length is None else length))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(content)


@contextmanager
def serving(folder: Path, authority: trustme.CA, *names: str, at: str = "127.0.0.1") -> Iterator[Objects]:
    """Serve a folder under these names (`objects.test`) on a loopback address until the end."""
    objects = Objects(folder, 0)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*(names or (NAME,))).configure_cert(context)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 20

        def do_GET(self) -> None:
            objects.answer(self)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # clients that hang up are part of the tests

        def finish_request(self, request, client_address) -> None:
            # In the connection's own thread: a client that refuses the certificate holds up nobody else.
            with context.wrap_socket(request, server_side=True) as secured:
                objects.connections.append(secured)
                super().finish_request(secured, client_address)

    with Server((at, 0), Handler) as server:
        objects.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield objects
        finally:
            server.shutdown()
            thread.join()
