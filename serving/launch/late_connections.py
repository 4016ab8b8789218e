"""Answers 503 to connections that arrive during shutdown.

The supervisor holds the listening sockets until all workers have ended. What connects after the last worker
stopped accepting would wait in the kernel's queue and be reset.
"""

from __future__ import annotations

import contextlib
import ctypes
import selectors
import socket
import struct
import sys
import threading
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

_STOPPING = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 5\r\nContent-Length: 0\r\n\r\n"
)
_WAIT_S = 1.0  # for a request, and for its client to read the answer
_MAX_AT_ONCE = 32
_SO_ATTACH_FILTER = 26


class LateConnections:
    """Thread that accepts on `sockets` and answers 503 until `close`."""

    def __init__(self, sockets: Collection[socket.socket]) -> None:
        self._sockets, self._end = list(sockets), threading.Event()
        self._pool = ThreadPoolExecutor(_MAX_AT_ONCE, thread_name_prefix="late connections")
        self._thread = threading.Thread(target=self._accept, name="late connections", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer connected clients, then stop listening: new connections are refused."""
        self._end.set()
        self._thread.join()
        self._pool.shutdown(wait=True)

    def _accept(self) -> None:
        with selectors.DefaultSelector() as ready:
            for listening in self._sockets:
                listening.setblocking(False)
                ready.register(listening, selectors.EVENT_READ)
            while not self._end.is_set():
                for key, _ in ready.select(0.1):
                    self._take_all(key.fileobj)  # type: ignore[arg-type]
        for listening in self._sockets:
            _drop_new(listening)
            self._take_all(listening)
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)

    def _take_all(self, listening: socket.socket) -> None:
        with contextlib.suppress(OSError):  # BlockingIOError: that was all; a worker takes some too
            while True:
                self._pool.submit(_answer, listening.accept()[0])


def _drop_new(listening: socket.socket) -> None:
    """Drop new connections, whose clients retry, so that the queue can be emptied."""
    if sys.platform == "linux":
        code = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF: return 0 bytes
        program = struct.pack("HP", 1, ctypes.addressof(code))
        with contextlib.suppress(OSError):
            listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def _answer(connection: socket.socket) -> None:
    """Read the request first: closing over unread bytes would reset the connection."""
    with contextlib.suppress(OSError), connection:
        connection.settimeout(_WAIT_S)
        connection.recv(2**16)
        connection.sendall(_STOPPING)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(2**16):
            pass
