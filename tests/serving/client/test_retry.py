"""A client waits for a service that is busy or away, and says so at the end."""

from __future__ import annotations

import time

import httpx
import numpy as np
import pytest

from canvas_fm.errors import CanvasError
from serving.client import Client
from serving.client.retry import RetryPolicy


def answers(*replies: httpx.Response | Exception) -> tuple[httpx.MockTransport, list[float]]:
    """A transport that answers so, one by one, and when it was asked."""
    waiting, times = list(replies), []

    def handle(request: httpx.Request) -> httpx.Response:
        times.append(time.monotonic())
        reply = waiting.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    return httpx.MockTransport(handle), times


def client_with(transport: httpx.MockTransport, **options) -> Client:
    return Client("http://service.example:3000", transport=transport, **options)


def busy(status: int, retry_after: str | None = None) -> httpx.Response:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return httpx.Response(status, headers=headers, json={"error": {"code": "busy", "message": "later"}})


def test_the_client_comes_back_when_it_is_told_to() -> None:
    transport, times = answers(busy(429, "1"), busy(503), httpx.Response(200, json={"name": "tiny"}))
    assert client_with(transport).info() == {"name": "tiny"}
    assert 1.0 <= times[1] - times[0] < 2
    assert 0.4 <= times[2] - times[1] < 1.5  # twice the first pause


def test_the_client_gives_up_at_the_end_of_its_patience() -> None:
    transport, times = answers(*[busy(429, "60")] * 3)
    with pytest.raises(CanvasError, match="answered 429: later"):
        client_with(transport, retry_s=1.0).info()
    assert len(times) == 1


def test_a_service_that_starts_anew_is_looked_for_often() -> None:
    """Once a second, however long it is away: after a kill it may be back for a moment only."""
    policy = RetryPolicy("http://there", 600.0, met=True)
    waits = [policy.after_loss(httpx.ConnectError("refused")) for _ in range(8)]
    assert waits[0] < 0.4
    assert all(1.0 <= wait <= 1.25 for wait in waits[3:])
    assert 8.0 <= policy.after_reply(busy(429)) <= 10.0


def test_the_client_does_not_repeat_what_was_refused() -> None:
    transport, times = answers(busy(422), busy(422))
    with pytest.raises(CanvasError, match="answered 422: later"):
        client_with(transport).info()
    assert len(times) == 1


def test_a_lost_connection_is_tried_again_and_an_absent_service_is_a_sentence() -> None:
    transport, _ = answers(httpx.ReadError("lost"), httpx.Response(200, json={"name": "tiny"}))
    assert client_with(transport).info() == {"name": "tiny"}
    with Client("http://127.0.0.1:9") as client, pytest.raises(CanvasError, match="cannot be reached"):
        client.info()
    with Client("http://127.0.0.1:9") as client:
        assert not client.ready()
    with pytest.raises(CanvasError, match="no address of a service"):
        Client("127.0.0.1:3000")


def test_a_service_that_starts_anew_is_waited_for() -> None:
    refused = [httpx.ConnectError("refused") for _ in range(4)]
    named = httpx.Response(200, json={"name": "tiny"})
    transport, times = answers(named, *refused, named)
    client = client_with(transport)
    client.info()
    assert client.info() == {"name": "tiny"}
    assert len(times) == 6
    pauses = np.diff(times[1:])
    assert (pauses > [0.2, 0.4, 0.8, 0.8]).all()  # they double up to a second


def test_what_may_not_be_done_twice_is_not_sent_again() -> None:
    policy = RetryPolicy("http://x", 60, met=True, repeat=False)
    assert policy.after_loss(httpx.ConnectError("refused")) > 0  # it never arrived
    with pytest.raises(CanvasError, match="cannot be reached: lost"):
        policy.after_loss(httpx.ReadError("lost"))
    assert RetryPolicy("http://x", 60, repeat=False).after_reply(busy(503)) > 0


def test_a_slow_answer_is_a_sentence() -> None:
    transport, times = answers(httpx.ReadTimeout("slow"))
    with pytest.raises(CanvasError, match="did not answer in time"):
        client_with(transport).info()
    assert len(times) == 1
