"""Retry policy of the Python clients: which failures are retried, after which pause, how often."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import TypeVar

import httpx

from canvas_fm.errors import CanvasError
from serving.client.client_methods import Request, Steps

T = TypeVar("T")

_BUSY = (429, 503)
_LOST_TRIES = 3  # a service that was never there is soon known not to be
_LONGEST_S = {"busy": 8.0, "away": 1.0}
"""Between two tries. A service that starts anew is back in seconds, so it is looked for often."""


@dataclass
class RetryPolicy:
    """Retries of one request on a busy service or a lost connection.

    `met` says that the service has answered before: while it restarts it is tried again for all of
    `retry_s`. What may not be done twice (not `repeat`) is sent again only where it was refused.
    """

    url: str
    retry_s: float
    met: bool = False
    repeat: bool = True
    _end: float = field(init=False)
    _pause: float = 0.25
    _lost: int = 0

    def __post_init__(self) -> None:
        self._end = time.monotonic() + self.retry_s

    def after_reply(self, reply: httpx.Response) -> float:
        """Seconds until the next attempt, 0 for success; CanvasError for a refusal or the last attempt."""
        if reply.is_success:
            return 0.0
        failure = CanvasError(f"{self.url} answered {reply.status_code}: {_sentence(reply)}")
        if reply.status_code not in _BUSY:
            raise failure
        return self._wait(_retry_after(reply), failure, "busy" if reply.status_code == 429 else "away")

    def after_loss(self, problem: httpx.TransportError) -> float:
        """Seconds until the next attempt after a lost or refused connection; CanvasError after the last."""
        connecting = isinstance(problem, httpx.ConnectError | httpx.ConnectTimeout)
        if isinstance(problem, httpx.TimeoutException) and not connecting:
            raise CanvasError(f"{self.url} did not answer in time; send less in one request") from problem
        failure = CanvasError(f"{self.url} cannot be reached: {problem}")
        failure.__cause__ = problem
        self._lost += 1
        if (self._lost == _LOST_TRIES and not self.met) or not (self.repeat or connecting):
            raise failure
        return self._wait(0.0, failure, "away")

    def _wait(self, asked_s: float, failure: CanvasError, why: str) -> float:
        # Spread, so that clients refused together do not come back together.
        wait = max(asked_s, min(self._pause, _LONGEST_S[why])) * (1 + random.random() / 4)
        if time.monotonic() + wait > self._end:
            raise failure
        self._pause = 2 * self._pause
        return wait


class Attempts:
    """Adds retries to methods; records whether the service ever answered."""

    def __init__(self, url: str, retry_s: float) -> None:
        self._url, self._retry_s, self._met = url, retry_s, False

    def of(self, steps: Steps[T]) -> Steps[T]:
        """The method's steps with each request repeated until it succeeds; CanvasError otherwise."""
        result = None
        while True:
            try:
                step = steps.send(result)
            except StopIteration as end:
                return end.value
            if isinstance(step, Request) and step.retry:
                result = yield from self._answer(step)
            else:
                result = yield step

    def _answer(self, request: Request) -> Steps[httpx.Response]:
        policy = RetryPolicy(self._url, self._retry_s, self._met, request.repeat)
        while True:
            outcome = yield request
            if isinstance(outcome, httpx.TransportError):
                yield policy.after_loss(outcome)
                continue
            self._met = True
            if not (pause := policy.after_reply(outcome)):
                return outcome
            yield pause


def _sentence(reply: httpx.Response) -> str:
    try:
        return str(reply.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return reply.text[:200].strip() or reply.reason_phrase


def _retry_after(reply: httpx.Response) -> float:
    header = reply.headers.get("Retry-After", "")
    return float(header) if header.isdigit() else 0.0
