"""Connections that say little, read nothing, or are too many: they are let go."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from serving.api.middleware.connection_limits import TimeoutHTTPProtocol


@contextlib.contextmanager
def listening(
    header_s: float, most: int = 4096, write_s: float = 30, reply: bytes = b"ok", read_body: bool = False
) -> Iterator[int]:
    """A server with our protocol around an app that answers at once."""

    async def app(scope, receive, send) -> None:
        while read_body and (await receive()).get("more_body"):
            pass
        length = str(len(reply)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": reply})

    protocol = type("Hasty", (TimeoutHTTPProtocol,), {"header_s": header_s, "most": most, "write_s": write_s})
    config = uvicorn.Config(app, port=0, http=protocol, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(10)


def ask(port: int, connection: socket.socket | None = None) -> bytes:
    own = connection or socket.create_connection(("127.0.0.1", port))
    own.settimeout(20)
    own.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    reply = b""
    while not reply.endswith(b"ok") and (more := own.recv(4096)):
        reply += more
    if connection is None:
        own.close()
    return reply


AMBIGUOUS = {
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "a coding that nobody undoes": b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "codings in two fields": b"Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 2\r\nContent-Length: 5\r\n\r\nababa",
    "a length with a sign": b"Content-Length: +2\r\n\r\nab",
    "a space before the colon": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a folded length": b"Content-Length: 2\r\n 0\r\n\r\nab",
    "a chunk's size in C": b"Transfer-Encoding: chunked\r\n\r\n0x2\r\nab\r\n0\r\n\r\n",
    "a chunk of another size": b"Transfer-Encoding: chunked\r\n\r\n2\r\nabXX0\r\n\r\n",
    "a chunk's size ended by LF": b"Transfer-Encoding: chunked\r\n\r\n2;a\nab\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_what_a_proxy_may_read_otherwise_is_refused_and_closed(request_bytes: bytes) -> None:
    """Whatever other package brought a faster parser: httptools lets half of these pass."""
    assert issubclass(TimeoutHTTPProtocol, H11Protocol)
    if not request_bytes.startswith(b"GET"):
        request_bytes = b"POST / HTTP/1.1\r\nHost: x\r\n" + request_bytes
    with (
        listening(header_s=3.0, read_body=True) as port,
        socket.create_connection(("127.0.0.1", port)) as own,
    ):
        own.settimeout(10)
        own.sendall(request_bytes + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        reply = b""
        while more := own.recv(4096):
            reply += more
    assert reply.startswith(b"HTTP/1.1 400")
    assert reply.count(b"HTTP/1.1 ") == 1


def test_a_thousand_slow_connections_are_let_go() -> None:
    with listening(header_s=3.0) as port:
        kept = socket.create_connection(("127.0.0.1", port))
        assert ask(port, kept).startswith(b"HTTP/1.1 200")
        slow = []
        for number in range(1000):
            slow.append(socket.create_connection(("127.0.0.1", port)))
            if number % 2:
                slow[-1].sendall(b"GET / HTTP/1.1\r\nHost:")
        assert ask(port).startswith(b"HTTP/1.1 200")  # others are answered meanwhile
        for connection in slow:
            connection.settimeout(20)
            assert connection.recv(100).startswith(b"HTTP/1.1 408")
            connection.close()
        assert ask(port).startswith(b"HTTP/1.1 200")
        kept.close()


def test_a_kept_connection_has_the_same_limit_for_its_next_request() -> None:
    with listening(header_s=0.3) as port, socket.create_connection(("127.0.0.1", port)) as connection:
        assert ask(port, connection).startswith(b"HTTP/1.1 200")
        time.sleep(0.6)
        assert ask(port, connection).startswith(
            b"HTTP/1.1 200"
        )  # silence between requests is no offence here
        connection.sendall(b"GET / HT")
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_there_is_an_end_to_connections() -> None:
    with listening(header_s=20, most=5) as port:
        held = [socket.create_connection(("127.0.0.1", port)) for _ in range(5)]
        time.sleep(0.2)
        with socket.create_connection(("127.0.0.1", port)) as late:
            late.settimeout(20)
            assert late.recv(100).startswith(b"HTTP/1.1 503")
        held.pop().close()
        time.sleep(0.2)
        assert ask(port).startswith(b"HTTP/1.1 200")
        for connection in held:
            connection.close()


def test_a_websocket_that_is_given_up_holds_no_stop_back() -> None:
    lines = ["GET / HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: x"]
    asked = "\r\n".join([*lines, "", ""]).encode()
    with listening(header_s=20) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(asked)
            assert connection.recv(100).startswith(b"HTTP/1.1 200")  # as to anybody
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(asked)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        began = time.monotonic()
    assert time.monotonic() - began < 5


def unread_by(port: int) -> socket.socket:
    """A connection that asked and takes next to nothing of its answer."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(20)
    connection.connect(("127.0.0.1", port))
    connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    return connection


def ends(connection: socket.socket, pause_s: float = 0.0) -> int:
    """Bytes until the connection ends, read in pieces of a megabyte."""
    count = 0
    with contextlib.suppress(ConnectionError):
        while more := connection.recv(2**20):
            count += len(more)
            time.sleep(pause_s)
    return count


def test_a_reply_that_nobody_reads_is_let_go() -> None:
    large = bytes(40 * 2**20)
    with listening(header_s=20, write_s=2, reply=large) as port:
        with unread_by(port) as connection:
            time.sleep(5)
            assert ends(connection) < len(large)  # what was on its way, and no more
        with unread_by(port) as slow:  # a slow reader is no offence
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)
            slow.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert ends(slow, pause_s=0.02) > 2 * len(large)


def test_a_connection_whose_request_is_on_its_way_when_the_service_stops_is_answered() -> None:
    with listening(header_s=5.0) as port:
        late = socket.create_connection(("127.0.0.1", port))
        time.sleep(0.2)  # accepted, and without a request
    # `listening` has told the server to stop and waited for it in another thread
    assert late.recv(10) == b""

    with listening(header_s=5.0) as port:
        late = socket.create_connection(("127.0.0.1", port))
        threading.Timer(0.4, late.sendall, [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"]).start()
        time.sleep(0.2)
    assert late.recv(100).startswith(b"HTTP/1.1 200")
