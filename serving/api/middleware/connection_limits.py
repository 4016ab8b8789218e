"""Connection limits: number of connections, header timeout, timeout of unread responses.

uvicorn limits none of them: a client that sends a header a minute holds a connection for ever, and one that
does not read its reply holds the reply too.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http import auto, h11_impl

_LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
)

_FIRST_REQUEST_S = 1.0  # that a connection without a request has when the service stops
_LEAST = 64 * 2**10  # bytes of a reply that have to be read within `write_s`, unless it is all

# Never httptools, which uvicorn takes where some other package brought it: it lets requests with two hosts
# pass, or with a transfer coding that nobody undoes, which a proxy may read otherwise.
_usual: Any = h11_impl.H11Protocol


class TimeoutHTTPProtocol(_usual):
    """uvicorn protocol with a header timeout, from the connection or the first byte on."""

    header_s = 10.0
    write_s = 30.0
    most = 2048  # these are set by the service's limits
    _ending = False  # the service was told to stop
    _timer: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None  # looks whether the client reads

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.most:  # this one is counted already
            transport.write(_FULL)
            transport.close()
        else:
            self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            if self._ending:
                self.cycle.keep_alive = False
            self._done()  # the headers are whole: from here on the request middleware watches the body
        elif self._timer is None:
            self._wait()  # the next request of a connection that is kept

    def shutdown(self) -> None:
        if self.cycle is None and not self._ending:  # its first request is on its way
            self._ending = True
            self.loop.call_later(_FIRST_REQUEST_S, self.shutdown)
        else:
            super().shutdown()

    def on_response_complete(self) -> None:
        self._done()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._done()
        self._all_read()
        super().connection_lost(exc)

    def _should_upgrade(self) -> bool:
        # There is no websocket here, and uvicorn forgets to let go of one whose client left at once: it would
        # wait for it when it is told to stop.
        return False

    def pause_writing(self) -> None:
        super().pause_writing()
        self._look_later(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._all_read()
        super().resume_writing()

    def _look_later(self, unread: int) -> None:
        self._reading = self.loop.call_later(self.write_s, self._look, unread)

    def _look(self, unread: int) -> None:
        left = self.transport.get_write_buffer_size()
        if left > unread - _LEAST:
            self.transport.abort()  # closing would wait until all of it is read
        else:
            self._look_later(left)

    def _all_read(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _wait(self) -> None:
        self._timer = self.loop.call_later(self.header_s, self._late)

    def _done(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.write(_LATE)
            self.transport.close()


def install() -> None:
    """Make uvicorn use this protocol, however it is started in this process."""
    auto.AutoHTTPProtocol = TimeoutHTTPProtocol
