"""Limits of a request's body, kept while it is read: size, decompressed size, timeouts."""

from __future__ import annotations

import asyncio
import io
import time
import zlib
from collections.abc import Callable
from typing import NoReturn

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from serving.api.middleware.json_limits import JsonScanner
from serving.protocol.errors import Refusal
from serving.protocol.settings import Limits

MB = 2**20
STEP = 2**20  # bytes that are unpacked at a time
_SCANNED = 2**18  # bytes of JSON that are looked at before others get their turn


class Body:
    """A request's body, at most `most_mb`; after a refusal all reads are refused.

    `add_inflight_bytes` is given the bytes that came, and returns the sum over all requests.
    """

    def __init__(
        self,
        receive_raw: Receive,
        headers: Headers,
        limits: Limits,
        most_mb: float,
        add_inflight_bytes: Callable[[int], int],
    ) -> None:
        self._receive_raw, self._limits, self._most_mb = receive_raw, limits, most_mb
        self._add_inflight_bytes = add_inflight_bytes
        self.media_type = media_type_of(headers)
        self.taken = 0  # bytes that came
        # Whether it is all there.
        self._stated = headers.get("content-length", "0")
        self.whole = self._stated == "0" and "transfer-encoding" not in headers
        self._packed = Gunzip() if headers.get("content-encoding", "").lower() == "gzip" else None
        self._unpacked, self._packed_bytes = False, 0
        self._deadline = time.monotonic() + limits.body_s
        self.refusal: Refusal | None = None

    def check_stated_size(self) -> None:
        """Refuse a body whose Content-Length is above the limit, before any of it is read."""
        if self._stated.isdigit() and int(self._stated) > self._most_mb * MB:
            raise too_large(self._most_mb)

    async def receive(self) -> Message:
        """Next part of the body, decompressed and counted; JSON as a whole once it passed its limits."""
        if self.media_type != "application/json" or self.whole:
            return await self._piece()
        body, scanner = io.BytesIO(), JsonScanner(self._limits.max_json_values)
        while True:
            message = await self._piece()
            if message["type"] != "http.request":
                return message
            piece = message.get("body", b"")
            body.write(piece)
            try:
                for start in range(0, len(piece), _SCANNED):
                    scanner.feed(piece[start : start + _SCANNED])
                    await asyncio.sleep(0)  # others are answered meanwhile
            except Refusal as refusal:
                self._give_up(refusal)
            if not message.get("more_body", False):
                break
        # Not a copy, which would take 30 ms for 32 MB: a BytesIO shares what it holds.
        return {"type": "http.request", "body": body.getvalue(), "more_body": False}

    async def _piece(self) -> Message:
        if self._packed is None or self._unpacked:
            return await self._receive()
        try:
            while not (out := self._packed.next()):
                if self.whole:
                    self._packed.check_end()
                    self._unpacked = True
                    return {"type": "http.request", "body": b"", "more_body": False}
                message = await self._receive()
                if message["type"] != "http.request":
                    return message
                self._packed.feed(message.get("body", b""))
        except Refusal as refusal:
            self._give_up(refusal)
        self._count(len(out))
        return {"type": "http.request", "body": out, "more_body": True}

    async def _receive(self) -> Message:
        if self.refusal is not None:
            raise self.refusal
        if self.whole:
            return await self._receive_raw()
        try:
            async with asyncio.timeout(min(self._limits.stall_s, self._deadline - time.monotonic())):
                message = await self._receive_raw()
        except TimeoutError:
            late = time.monotonic() >= self._deadline
            reason = f"was not all there after {self._limits.body_s:g} s" if late else ""
            self._give_up(
                Refusal(408, f"the body {reason or f'brought nothing for {self._limits.stall_s:g} s'}")
            )
        if message["type"] == "http.request":
            self.whole = not message.get("more_body", False)
            size = len(message.get("body", b""))
            if self._packed is None:
                self._count(size)
            else:  # what it unpacks to is counted; a stream of nothing is held to the same size
                self._packed_bytes += size
                if self._packed_bytes > self._most_mb * MB:
                    self._give_up(too_large(self._most_mb))
        else:
            self.whole = True  # the client left: nothing more will come
        return message

    def _count(self, size: int) -> None:
        self.taken += size
        inflight = self._add_inflight_bytes(size)
        if self.taken > self._most_mb * MB:
            self._give_up(too_large(self._most_mb))
        if inflight > self._limits.max_inflight_mb * MB:
            self._give_up(
                Refusal(429, "too much is being worked on at the moment; come back in 1 s", retry_after_s=1)
            )

    def _give_up(self, refusal: Refusal) -> NoReturn:
        # Remembered, because the framework inside may turn the exception into an answer of its own.
        self.refusal = refusal
        raise refusal


class Gunzip:
    """Streaming gzip decompression, at most STEP bytes at a time; Refusal (400) for invalid data."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
        self._waiting = b""

    def feed(self, data: bytes) -> None:
        """Add compressed bytes."""
        self._waiting += data

    def next(self) -> bytes:
        """Up to STEP decompressed bytes; empty if more input is needed."""
        if self._stream.eof:
            if self._waiting:
                raise Refusal(400, "something follows the end of the gzip body")
            return b""
        try:
            out = self._stream.decompress(self._waiting, STEP)
        except zlib.error as problem:
            raise Refusal(400, f"the body cannot be unpacked as gzip: {problem}") from problem
        self._waiting = self._stream.unconsumed_tail or self._stream.unused_data
        return out

    def check_end(self) -> None:
        """Refuse a truncated body."""
        if not self._stream.eof:
            raise Refusal(400, "the gzip body ends before its end")


def media_type_of(headers: Headers) -> str:
    """Media type of a request, without parameters."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def too_large(most_mb: float) -> Refusal:
    """Refusal of a body larger than so many MB."""
    return Refusal(413, f"the body is larger than {most_mb:g} MB; send it in smaller pieces")
