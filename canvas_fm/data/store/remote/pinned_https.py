"""HTTPS reads pinned to IP addresses that were resolved before: no name lookup here.

A name that is looked up again may lead elsewhere the second time. TLS is verified against the name, whatever
the address; redirects are not followed, no proxy is asked, no credentials are sent.
"""

from __future__ import annotations

import re
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import httpcore

from canvas_fm.data.store.remote.address import Address
from canvas_fm.data.store.remote.pinned_network import PinnedNetwork, RefusedCertificate
from canvas_fm.errors import Unreachable

_IDLE = 8  # connections that are kept for the next file
_NETWORK = (httpcore.NetworkError, httpcore.TimeoutException)
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
        self._host, self._port, self.timeouts = host, port, timeouts
        # httpcore is the transport of httpx: without its client nothing is redirected, decoded or asked of
        # the environment.
        self._network = PinnedNetwork(host, addresses, timeouts.connect_s)
        self._pool = httpcore.ConnectionPool(
            max_connections=None, max_keepalive_connections=_IDLE, network_backend=self._network
        )
        weakref.finalize(self, self._pool.close)

    def get(
        self, path: str, *, max_bytes: int, span: tuple[int, int] | None = None, head: bool = False
    ) -> Answer | None:
        """A file, or its bytes from `span[0]` up to `span[1]`; None if the host says it does not exist.

        Raises TooLong as soon as more than `max_bytes` are announced or received, Unreachable for any other
        failure, after retries where another attempt may help.
        """
        end = time.monotonic() + self.timeouts.whole_s
        cause = ""
        for attempt in range(self.timeouts.attempts):
            if attempt:
                time.sleep(min(self.timeouts.pause_s * 4 ** (attempt - 1), max(end - time.monotonic(), 0)))
            try:
                with self._network.until(end):
                    return self._once(path, max_bytes, span, head)
            except _TransientFailure as problem:
                cause = str(problem)
            except RefusedCertificate as problem:
                raise self._lasting(path, f"the host's certificate is refused ({problem})") from problem
            except (*_NETWORK, httpcore.ProtocolError) as problem:
                late = time.monotonic() >= end
                whole = f"no whole answer within {self.timeouts.whole_s:g} s"
                cause = whole if late else f"the connection failed ({_name(problem)})"
            self._forget()
            if time.monotonic() >= end:
                break
        raise Unreachable(f"{self._shown(path)} cannot be read: {cause}; try again later", passing=True)

    def _once(self, path: str, max_bytes: int, span: tuple[int, int] | None, head: bool) -> Answer | None:
        url = httpcore.URL(scheme="https", host=self._host, port=self._port, target=path)
        headers: dict[bytes | str, bytes | str] = {
            "Host": self._named_host(),
            "Accept-Encoding": "identity",
            "User-Agent": "canvas-fm",
        }
        if span is not None:
            headers["Range"] = f"bytes={span[0]}-{span[1] - 1}"
        times = {"read": self.timeouts.stall_s, "write": self.timeouts.stall_s}
        with self._pool.stream(
            "HEAD" if head else "GET", url, headers=headers, extensions={"timeout": times}
        ) as response:
            if response.status in (404, 410):
                _drain(response)
                return None
            self._check_status(path, response, span)
            content = b"" if head else _body(response, max_bytes)
            return Answer(content, _size(response, content, head, span), _version(response))

    def _check_status(self, path: str, response: httpcore.Response, span: tuple[int, int] | None) -> None:
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
        if _header(response, "Content-Encoding").strip().lower() not in ("identity", ""):
            raise self._lasting(path, "the host encodes it, which was not asked for")

    def _lasting(self, path: str, cause: str) -> Unreachable:
        return Unreachable(f"{self._shown(path)} cannot be read: {cause}", passing=False)

    def _shown(self, path: str) -> str:
        return str(Address(self._host, self._port, path))

    def _named_host(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return host if self._port == 443 else f"{host}:{self._port}"

    def _forget(self) -> None:
        """Close idle connections, which a fault may have broken as well."""
        for connection in self._pool.connections:
            if connection.is_idle():
                with suppress(OSError):
                    connection.close()


def _header(response: httpcore.Response, name: str) -> str:
    lowered = name.lower().encode()
    return next((value.decode("latin-1") for key, value in response.headers if key.lower() == lowered), "")


def _length(response: httpcore.Response) -> int | None:
    """The announced length, None where the response is chunked; _TransientFailure where it has neither."""
    if "chunked" in _header(response, "Transfer-Encoding").lower():
        return None
    length = _header(response, "Content-Length")
    if not re.fullmatch(r"\d{1,18}", length):
        raise _TransientFailure("the host does not say how long its answer is")
    return int(length)


def _body(response: httpcore.Response, max_bytes: int) -> bytes:
    length = _length(response)
    if length is not None and length > max_bytes:
        raise TooLong
    content = bytearray()
    try:
        for block in response.iter_stream():
            content += block
            if len(content) > max_bytes:
                raise TooLong
    except httpcore.RemoteProtocolError as problem:
        if length is None:
            raise
        raise _TransientFailure(f"the answer ends after {len(content):,} of {length:,} bytes") from problem
    return bytes(content)


def _drain(response: httpcore.Response) -> None:
    """Read the rest of a short response that is not needed, so that its connection can be used again."""
    length = _header(response, "Content-Length")
    if length.isdigit() and int(length) <= 2**16:
        response.read()


def _size(response: httpcore.Response, content: bytes, head: bool, span: tuple[int, int] | None) -> int:
    """Size of the whole file in bytes, from the headers."""
    if head:
        length = _header(response, "Content-Length")
        if not re.fullmatch(r"\d{1,18}", length):
            raise _TransientFailure("the host does not say how long the file is")
        return int(length)
    if span is None:
        return len(content)
    match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", _header(response, "Content-Range"))
    if match is None or (int(match[1]), int(match[2]) + 1) != span or len(content) != span[1] - span[0]:
        raise _TransientFailure("the host answers with another part of the file than was asked for")
    return int(match[3])


def _version(response: httpcore.Response) -> str:
    return _header(response, "ETag") or _header(response, "Last-Modified")


def _target(response: httpcore.Response) -> str:
    """Host of a redirect's target, without the rest of the address."""
    match = re.match(r"https?://([A-Za-z0-9.-]{1,253})(?=[:/?#]|$)", _header(response, "Location"))
    return f" to {match[1]}" if match else ""


def _name(problem: Exception) -> str:
    return str(problem) if isinstance(problem, _NETWORK) else type(problem).__name__
