"""Review of candidates: opening one, and learning from its clicks in the background."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from canvas_fm.data.points.points import P_CELL, Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError
from canvas_fm.heads.features.shape import shape_of_points
from canvas_fm.heads.labels.candidates import check_volume_name
from canvas_fm.heads.refine.apply.apply import refine
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.heads.review.audit.clicked_count import random_clicks
from canvas_fm.heads.review.learn_from_clicks import learn_from_clicks, standardised
from canvas_fm.heads.review.order import clusters_of
from canvas_fm.heads.review.review_flags import ReviewOptions
from canvas_fm.heads.review.review_state import OPEN
from canvas_fm.heads.review.session import ReviewSession
from canvas_fm.inference.embed.embed import embed
from canvas_fm.models.load_model import load
from canvas_fm.pipeline.adapt_to_answers import ReviewedDetector

_log = logging.getLogger(__name__)
LEARN_EVERY, _WRITE_EVERY_S = 25, 10.0
Features = Callable[[], Float32[np.ndarray, "n d"]]


class ReviewedFeatures:
    """Features of all candidates that clicks are learned from, computed once on first use."""

    def __init__(
        self, volume: Volume, session: ReviewSession, options: ReviewOptions, stated: np.ndarray | None
    ) -> None:
        self._volume, self._session, self._options, self._stated = volume, session, options, stated
        self._x: Float32[np.ndarray, "n d"] | None = None

    def __call__(self) -> Float32[np.ndarray, "n d"]:
        if self._x is None:
            zyx, score = self._session.candidates.zyx, self._session.score
            parts = [shape_of_points(self._volume, zyx)]
            if self._options.encoder is not None:
                encoder = load(self._options.encoder, kind="encoder")
                options: dict[str, Any] = {"resample": self._options.resample, "show": False}
                parts.append(embed(encoder, self._volume, zyx, **options))
            columns = [score] if score is not None else []
            if self._stated is not None:
                p = np.clip(self._stated, 1e-4, 1 - 1e-4)
                columns.append(np.log(p / (1 - p)))
            parts += [column[:, None].astype(np.float32) for column in columns]
            self._x = standardised(np.concatenate(parts, axis=1))
        return self._x


def open_review(
    volume: Volume, candidates: Points, out: str | Path, options: ReviewOptions
) -> tuple[ReviewSession, ReviewedFeatures]:
    """A review of a volume's candidates, gone on with where OUT has a click log already."""
    check_volume_name(candidates, volume.name, "the candidates")
    candidates.check_inside(volume.shape_zyx)
    out = Path(out)
    if out.suffix.lower() != ".csv":
        raise CanvasError(f"{out}: labels are written as a .csv; give --out labels.csv")
    if not len(candidates):
        raise CanvasError("there are no candidates; nothing to review")
    _check_names(options.annotator)
    stated, threshold = _stated(volume, candidates, out, options)
    session = ReviewSession(
        candidates, out, options.annotator, order=options.order, p_cell=stated, threshold=threshold,
        seed=options.seed,
    )  # fmt: skip
    features = ReviewedFeatures(volume, session, options, stated)
    if answered := int((session.answers() > OPEN).sum()):
        _log.info("%s answers %d candidates; the review resumes", session.click_log.path, answered)
    if options.order == "diverse":
        _log.info("reading %d candidates for the order diverse", len(candidates))
        region = candidates.columns.get("region", np.zeros(len(candidates), np.int64)).astype(str)
        clusters = clusters_of(features(), seed=options.seed).astype(str)
        session.groups = np.char.add(np.char.add(region, "/"), clusters)
    return session, features


class BackgroundLearner:
    """A thread that learns from every 25 further answers, and keeps the file of labels up to date.

    With `detector` its threshold is learned too, and the detector written.
    """

    def __init__(
        self, session: ReviewSession, features: Features, detector: ReviewedDetector | None = None
    ) -> None:
        self._session, self._features, self._detector = session, features, detector
        self._end = threading.Event()
        self._learned_from = self._written = -1
        self._thread = threading.Thread(target=self._run, name="learn from clicks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what was clicked since is written by the session's `close`."""
        self._end.set()
        self._thread.join(30)

    def step(self) -> bool:
        """Learn if there are enough new answers; whether anything was learned."""
        label = self._session.answers()
        sure = int((label >= 0).sum())
        if sure < self._learned_from + LEARN_EVERY or sure < LEARN_EVERY:
            return False
        self._learned_from = sure
        sample = random_clicks(self._session.permutation, label)
        learned = learn_from_clicks(
            self._features(), label, sample, self._session.score, seed=self._session.seed
        )
        if learned is None:
            return False
        self._session.take(learned)
        if self._detector is not None:
            self._session.detector = self._detector.learn(self._features(), label, sample, learned.p_cell)
        return True

    def _run(self) -> None:
        while not self._end.wait(1.0):
            try:
                self.step()
                events = len(self._session.clicks.seen)
                if events != self._written and not self._end.wait(_WRITE_EVERY_S):
                    self._session.write()
                    self._written = events
            except Exception as problem:  # noqa: BLE001  a review goes on without a model, and says so
                self._session.failure = str(problem)
                _log.warning("nothing more is learned from clicks: %s", problem)
                return


def _stated(
    volume: Volume, candidates: Points, out: Path, options: ReviewOptions
) -> tuple[np.ndarray | None, float]:
    """P(cell) of a refiner, else of the candidates' own column, with its threshold."""
    if options.refiner is not None:
        refiner = Refiner.load(options.refiner)
        refined = refine(refiner, volume, candidates, out=out.with_name(f"{out.stem}_refined.csv"))
        return refined.columns[P_CELL].astype(np.float64), refiner.threshold_
    if P_CELL in candidates.columns:
        return candidates.columns[P_CELL].astype(np.float64), 0.5
    return None, 0.5


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if not name.replace("-", "").replace("_", "").isalnum() or len(name) > 40:
            raise CanvasError(f"the annotator {name!r} may have letters, digits, '-' and '_', 40 at most")
    if len(set(names)) < len(names) or not names:
        raise CanvasError("give each annotator a name of their own, once")
