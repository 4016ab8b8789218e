"""A network backend of httpcore that only ever connects to pinned addresses, and keeps a deadline."""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpcore


class RefusedCertificate(httpcore.ConnectError):
    """The host's certificate is for another name, or signed by no trusted authority."""


class PinnedNetwork(httpcore.NetworkBackend):
    """TLS connections to pinned addresses, verified for the host's name; no name is looked up.

    Whatever a host sends, and however slowly, what a thread does inside `until` ends at its deadline.
    """

    def __init__(self, host: str, addresses: Sequence[str], connect_s: float) -> None:
        self._host, self._addresses, self._connect_s = host, list(addresses), connect_s
        self._context = ssl.create_default_context()  # of the system, or of SSL_CERT_FILE
        self._lock, self._now = threading.Lock(), threading.local()

    @contextmanager
    def until(self, end: float) -> Iterator[None]:
        """Deadline of this thread's network calls: `end`, in seconds of `time.monotonic`."""
        self._now.end = end
        try:
            yield
        finally:
            self._now.end = None

    def left(self, timeout: float | None) -> float:
        """Seconds until this thread's deadline; ReadTimeout where none are left."""
        remaining = self._now.end - time.monotonic()
        if remaining <= 0:
            raise httpcore.ReadTimeout("timed out")
        return remaining if timeout is None else min(timeout, remaining)

    def connect_tcp(self, host: str, port: int, *arguments: Any, **options: Any) -> httpcore.NetworkStream:
        """A connection, TLS included, to the first of the addresses that answers."""
        with self._lock:
            addresses = list(self._addresses)
        cause: OSError | None = None
        for address in addresses:
            timeout_s = self.left(self._connect_s)
            try:
                connection = self._connect(address, port, timeout_s)
            except ssl.SSLCertVerificationError as problem:
                raise RefusedCertificate(problem.verify_message) from problem
            except OSError as problem:
                cause = problem
                continue
            with self._lock:  # the one that answered comes first from now on
                self._addresses.sort(key=lambda each: each != address)
            return _Stream(connection, self)
        assert cause is not None
        raise httpcore.ConnectError(_reason(cause)) from cause

    def _connect(self, address: str, port: int, timeout_s: float) -> ssl.SSLSocket:
        # Not socket.create_connection: it asks for the meaning of a name, be it a number.
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        plain = socket.socket(family, socket.SOCK_STREAM)
        try:
            plain.settimeout(timeout_s)
            plain.connect((address, port))
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return self._context.wrap_socket(plain, server_hostname=self._host)
        except BaseException:
            plain.close()
            raise


class _Stream(httpcore.NetworkStream):
    """A connection whose every step keeps the deadline of the thread that takes it."""

    def __init__(self, connection: ssl.SSLSocket, network: PinnedNetwork) -> None:
        self._connection, self._network = connection, network

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self._connection.settimeout(self._network.left(timeout))
        try:
            return self._connection.recv(max_bytes)
        except TimeoutError as problem:
            raise httpcore.ReadTimeout("timed out") from problem
        except OSError as problem:
            raise httpcore.ReadError(_reason(problem)) from problem

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._connection.settimeout(self._network.left(timeout))
        try:
            self._connection.sendall(buffer)
        except TimeoutError as problem:
            raise httpcore.WriteTimeout("timed out") from problem
        except OSError as problem:
            raise httpcore.WriteError(_reason(problem)) from problem

    def close(self) -> None:
        self._connection.close()

    def start_tls(self, *arguments: Any, **options: Any) -> httpcore.NetworkStream:
        """Itself: it is verified and encrypted since it was connected."""
        return self

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # an idle connection has something to say when its host has closed it
            if self._connection.fileno() < 0:
                return True
            waiting = select.poll()
            waiting.register(self._connection, select.POLLIN)
            return bool(waiting.poll(0))
        return self._connection if info in ("socket", "ssl_object") else None


def _reason(problem: OSError) -> str:
    if isinstance(problem, TimeoutError):
        return "timed out"
    return problem.strerror or type(problem).__name__
