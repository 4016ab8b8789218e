"""Starting the review's page: on this machine alone, behind a random key for each annotator."""

from __future__ import annotations

import hashlib
import logging
import secrets
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.heads.review.audit.session import AuditSession
from canvas_fm.heads.review.review_flags import ReviewOptions
from canvas_fm.heads.review.session import ReviewSession
from canvas_fm.pipeline.adapt_to_answers import ReviewedDetector, adapted_folder
from canvas_fm.pipeline.background_learner import BackgroundLearner, open_review
from serving.api.middleware import connection_limits
from serving.api.review.routes import create_review
from serving.launch.serve import free_port
from serving.observe.access_log import access

HOST = "127.0.0.1"


def serve_review(
    volume: Volume,
    candidates: Points,
    out: str | Path,
    options: ReviewOptions,
    *,
    port: int = 0,
    announce: Callable[[str, str], None],
) -> None:
    """Serve a review until SIGTERM or Ctrl-C; `announce` is called with each annotator's name and link.

    The key is in the link's fragment, which no server and no log gets to see. Every answer is on the disk
    before the page goes on; the file of labels is written every few seconds and at the end.
    """
    detector = None
    if options.adapt is not None:
        folder = adapted_folder(Path(out))
        detector = ReviewedDetector.of(options.adapt, volume, candidates, folder, seed=options.seed)
    session, features = open_review(volume, candidates, out, options)
    _serve(session, volume, port, announce, BackgroundLearner(session, features, detector))


def serve_audit(
    volume: Volume,
    table: Points,
    cells: Points,
    out: str | Path,
    *,
    announce: Callable[[str, str], None],
) -> None:
    """Serve the review page for an audit's table, in which the answers are filled in."""
    _serve(AuditSession(table, cells, out), volume, 0, announce, None)


def _serve(
    session: ReviewSession,
    volume: Volume,
    port: int,
    announce: Callable[[str, str], None],
    learner: BackgroundLearner | None,
) -> None:
    try:
        keys = {name: secrets.token_urlsafe(24) for name in session.annotators}
        digests = {name: hashlib.sha256(key.encode()).hexdigest() for name, key in keys.items()}
        chosen = free_port(HOST, port)
        connection_limits.install()
        config = uvicorn.Config(
            create_review(session, volume, digests), host=HOST, port=chosen, log_level="warning",
            lifespan="off", access_log=False, timeout_graceful_shutdown=5, server_header=False,
        )  # fmt: skip

        def announce_all() -> None:
            for name, key in keys.items():
                announce(name, f"http://{HOST}:{chosen}/ui/review/review.html#key={key}")

        server = _Announcing(config, announce_all)
        # uvicorn raises the signal that ended it once more; the labels are still to be written.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        logging.getLogger(access.name).setLevel(logging.WARNING)
        if learner is not None:
            learner.start()
        server.run()
    finally:
        if learner is not None:
            learner.stop()
        session.close()


class _Announcing(uvicorn.Server):
    """A server that says when it listens."""

    def __init__(self, config: uvicorn.Config, listening: Callable[[], object]) -> None:
        super().__init__(config)
        self._listening = listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._listening()
