"""HTTPS reads pinned to IP addresses that were resolved before: no name lookup here.

A name that is looked up again may lead elsewhere the second time. TLS is verified against the name, whatever
the address; redirects are not followed, no proxy is asked, no credentials are sent.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from canvas_fm.data.store.address import Address
from canvas_fm.errors import Unreachable

_BLOCK = 2**20
_IDLE = 8  # connections that are kept for the next file
_LATER = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Timeouts:
    """Timeouts of a file: to connect, without a byte, and from first attempt to last byte."""

    connect_s: float = 10.0
    stall_s: float = 20.0
    whole_s: float = 60.0
    attempts: int = 3
    pause_s: float = 0.3
    """Before the second attempt, four times as long before the third."""


class Answer(NamedTuple):
    """A response: bytes (none after HEAD), size of the whole file, version."""

    content: bytes
    size: int
    version: str


class TooLong(Exception):
    """The response is longer than the file can be."""


class _TransientFailure(Exception):
    """A transient failure, worth a retry."""


class Pinned:
    """Files of one host over pinned addresses, thread-safe; see `get`."""

    def __init__(self, host: str, port: int, addresses: Sequence[str], timeouts: Timeouts) -> None:
        assert addresses
        self._host, self._port, self._addresses = host, port, list(addresses)
        self.timeouts = timeouts
        self._context = ssl.create_default_context()  # of the system, or of SSL_CERT_FILE
        self._idle: list[_Connection] = []
        self._lock = threading.Lock()
        weakref.finalize(self, _close, self._idle)

    def get(
        self, path: str, *, max_bytes: int, span: tuple[int, int] | None = None, head: bool = False
    ) -> Answer | None:
        """A file, or its bytes from `span[0]` up to `span[1]`; None if the host says it does not exist.

        Raises TooLong as soon as more than `max_bytes` are announced or received, Unreachable for any other
        failure, after retries where another attempt may help.
        """
        end = time.monotonic() + self.timeouts.whole_s
        for attempt in range(self.timeouts.attempts):
            if attempt:
                time.sleep(min(self.timeouts.pause_s * 4 ** (attempt - 1), max(end - time.monotonic(), 0)))
            try:
                return self._once(path, max_bytes, span, head, end)
            except _TransientFailure as problem:
                cause = str(problem)
            except ssl.SSLCertVerificationError as problem:
                cause = f"the host's certificate is refused ({problem.verify_message})"
                raise self._lasting(path, cause) from problem
            except (OSError, http.client.HTTPException) as problem:
                cause = f"the connection failed ({_name(problem)})"
            self._forget()
            if time.monotonic() >= end:
                break
        raise Unreachable(f"{self._shown(path)} cannot be read: {cause}; try again later", passing=True)

    def _once(
        self, path: str, max_bytes: int, span: tuple[int, int] | None, head: bool, end: float
    ) -> Answer | None:
        connection = self._take(end)
        late = threading.Event()
        timer = threading.Timer(max(end - time.monotonic(), 0.001), connection.cut, (late,))
        timer.daemon = True
        timer.start()
        done = False
        try:
            headers = {"Accept-Encoding": "identity", "User-Agent": "canvas-fm"}
            if span is not None:
                headers["Range"] = f"bytes={span[0]}-{span[1] - 1}"
            connection.request("HEAD" if head else "GET", path, headers=headers)
            with connection.getresponse() as response:
                if response.status in (404, 410):
                    answer, done = None, _drained(response)
                else:
                    self._check_status(path, response, span)
                    content = b"" if head else _body(response, max_bytes)
                    answer = Answer(content, _size(response, content, head, span), _version(response))
                    done = not response.will_close
        except (OSError, http.client.HTTPException, _TransientFailure):
            if late.is_set():
                raise _TransientFailure(f"no whole answer within {self.timeouts.whole_s:g} s") from None
            raise
        finally:
            timer.cancel()
            if done and not late.is_set():
                self._put(connection)
            else:
                connection.close()
        if late.is_set():  # what was cut off may look whole
            raise _TransientFailure(f"no whole answer within {self.timeouts.whole_s:g} s")
        return answer

    def _check_status(
        self, path: str, response: http.client.HTTPResponse, span: tuple[int, int] | None
    ) -> None:
        status = response.status
        if status in _LATER:
            raise _TransientFailure(f"the host answers {status}")
        if 300 <= status < 400:
            cause = f"the host redirects ({status}{_target(response)}), which is not followed"
            raise self._lasting(path, cause)
        if status in (401, 403):
            raise self._lasting(
                path,
                f"the host forbids it ({status}); remote stores are read without credentials, and object "
                "stores that may not be listed say so of missing files too",
            )
        if status != (200 if span is None else 206):
            what = "" if span is None else " for a part of a file"
            raise self._lasting(path, f"the host answers {status}{what}")
        if response.getheader("Content-Encoding", "identity").strip().lower() not in ("identity", ""):
            raise self._lasting(path, "the host encodes it, which was not asked for")

    def _lasting(self, path: str, cause: str) -> Unreachable:
        return Unreachable(f"{self._shown(path)} cannot be read: {cause}", passing=False)

    def _shown(self, path: str) -> str:
        return str(Address(self._host, self._port, path))

    def _take(self, end: float) -> _Connection:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        cause: OSError | None = None
        for address in list(self._addresses):
            remaining_s = min(self.timeouts.connect_s, end - time.monotonic())
            if remaining_s <= 0:
                break
            connection = _Connection(self._host, self._port, address, self._context, remaining_s)
            try:
                connection.connect()
            except ssl.SSLCertVerificationError:
                raise
            except OSError as problem:
                cause = problem
                continue
            with self._lock:  # the one that answered comes first from now on
                self._addresses.sort(key=lambda each: each != address)
            connection.wait(self.timeouts.stall_s)
            return connection
        raise _TransientFailure(f"no connection ({_name(cause) if cause else 'too late'})")

    def _put(self, connection: _Connection) -> None:
        with self._lock:
            if len(self._idle) < _IDLE:
                self._idle.append(connection)
                return
        connection.close()

    def _forget(self) -> None:
        """Close idle connections, which a fault may have broken as well."""
        with self._lock:
            idle, self._idle[:] = list(self._idle), []
        _close(idle)


class _Connection(http.client.HTTPConnection):
    """A TLS connection to a numeric address with a host's name."""

    def __init__(self, host: str, port: int, address: str, context: ssl.SSLContext, timeout_s: float) -> None:
        super().__init__(host, port, timeout=timeout_s)
        self.default_port = http.client.HTTPS_PORT  # which a Host header leaves out
        self._address, self._tls = address, context

    def connect(self) -> None:
        family = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        plain = socket.socket(family, socket.SOCK_STREAM)
        try:
            plain.settimeout(self.timeout)
            plain.connect((self._address, self.port))
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise

    def wait(self, stall_s: float) -> None:
        """Set the read timeout."""
        self.sock.settimeout(stall_s)

    def cut(self, late: threading.Event) -> None:
        """Shut it down from another thread than the reader's."""
        late.set()
        socket_ = self.sock
        if socket_ is not None:
            with contextlib.suppress(OSError):
                # Not TLS's own: after that what still lies in the buffer would be read as it is.
                socket.socket.shutdown(socket_, socket.SHUT_RDWR)


def _body(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    length = response.length
    if length is None and not response.chunked:
        raise _TransientFailure("the host does not say how long its answer is")
    if length is not None and length > max_bytes:
        raise TooLong
    content = bytearray()
    while block := response.read(min(_BLOCK, max_bytes + 1 - len(content))):
        content += block
        if len(content) > max_bytes:
            raise TooLong
    if length is not None and len(content) != length:
        raise _TransientFailure(f"the answer ends after {len(content):,} of {length:,} bytes")
    return bytes(content)


def _drained(response: http.client.HTTPResponse) -> bool:
    """Read the rest of an unneeded response, so that its connection can be reused; False if too long."""
    if response.length is None or response.length > 2**16:
        return False
    response.read()
    return not response.will_close


def _size(
    response: http.client.HTTPResponse, content: bytes, head: bool, span: tuple[int, int] | None
) -> int:
    """Size of the whole file in bytes, from the headers."""
    if head:
        length = response.getheader("Content-Length", "")
        if not re.fullmatch(r"\d{1,18}", length):
            raise _TransientFailure("the host does not say how long the file is")
        return int(length)
    if span is None:
        return len(content)
    match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", response.getheader("Content-Range", ""))
    if match is None or (int(match[1]), int(match[2]) + 1) != span or len(content) != span[1] - span[0]:
        raise _TransientFailure("the host answers with another part of the file than was asked for")
    return int(match[3])


def _version(response: http.client.HTTPResponse) -> str:
    return response.getheader("ETag") or response.getheader("Last-Modified") or ""


def _target(response: http.client.HTTPResponse) -> str:
    """Host of a redirect's target, without the rest of the address."""
    match = re.match(r"https?://([A-Za-z0-9.-]{1,253})(?=[:/?#]|$)", response.getheader("Location", ""))
    return f" to {match[1]}" if match else ""


def _name(problem: BaseException) -> str:
    if isinstance(problem, TimeoutError):
        return "timed out"
    if isinstance(problem, OSError) and problem.strerror:
        return str(problem.strerror)
    return type(problem).__name__


def _close(connections: list[_Connection]) -> None:
    for connection in connections:
        connection.close()
