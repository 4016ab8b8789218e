"""Connections that come while the service stops are answered or refused, never reset."""

from __future__ import annotations

import http.client
import socket
import threading
from collections import Counter

import pytest

from serving.launch.late_connections import LateConnections


def test_whoever_connects_is_answered_until_nothing_listens() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    port, seen, end = listening.getsockname()[1], Counter(), threading.Event()

    def ask() -> None:
        while not end.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            try:
                connection.connect()
            except ConnectionRefusedError:
                seen["refused"] += 1
                return
            connection.request("GET", "/v1/models")
            reply = connection.getresponse()
            seen[reply.status, reply.headers["Retry-After"]] += 1
            connection.close()

    late = LateConnections([listening])
    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    while seen[503, "5"] < 20:
        end.wait(0.01)
    late.close()
    for client in clients:
        client.join(10)
    assert set(seen) == {(503, "5"), "refused"}


def test_one_who_says_nothing_holds_no_end_back() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    late = LateConnections([listening])
    silent = socket.create_connection(listening.getsockname())
    late.close()
    silent.settimeout(5)
    assert silent.recv(10) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(listening.getsockname())
