"""Errors of the batcher: full, too many rows, deadline passed, stopped."""

from __future__ import annotations


class QueueFull(Exception):
    """The queue is full; `retry_after_s` estimates when there is room."""

    def __init__(self, waiting: str, retry_after_s: int) -> None:
        super().__init__(f"{waiting}; come back in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class TooManyRows(Exception):
    """One request has more rows than the queue can hold."""


class DeadlinePassed(Exception):
    """The request timed out."""


class Stopped(Exception):
    """The batcher has stopped."""
