"""Learning while somebody clicks: from every 25 answers, and said if it fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from canvas_fm.data.points.points import Points
from canvas_fm.heads.review.session import ReviewSession
from canvas_fm.pipeline.background_learner import BackgroundLearner

N = 300


@pytest.fixture
def session(tmp_path: Path):
    random = np.random.default_rng(0)
    candidates = Points(random.integers(0, 50, (N, 3)).astype(float), {"score": random.random(N)})
    session = ReviewSession(candidates, tmp_path / "labels.csv", ("anna",), order="random")
    yield session
    session.close()


def features() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(N, 4)).astype(np.float32)


def click(session: ReviewSession, count: int) -> None:
    """Answers by the first feature, which the score does not know of."""
    is_cell = features()[:, 0] > 0
    for row in session.queue("anna", count):
        session.answer("anna", f"click {row}", [row], int(is_cell[row]))


def test_a_model_is_learned_from_every_25_answers_and_says_what_it_gained(session):
    learner = BackgroundLearner(session, features)
    click(session, 24)
    assert not learner.step()
    assert session.progress("anna")["learned"] is None
    click(session, 1)
    assert learner.step()
    click(session, 24)
    assert not learner.step()
    click(session, 51)
    assert learner.step()
    learned = session.progress("anna")["learned"]
    assert learned["answers"] == learned["held_out"] == 100
    assert learned["f1_after"] > learned["f1_before"] + 0.1
    assert "on 100 held-out random ones its F1 is" in learned["sentence"]
    assert "50 more labels are worth" in learned["curve"]
    is_cell = features()[:, 0] > 0
    assert ((session.p_cell >= 0.5) == is_cell).mean() > 0.9  # candidates that nobody answered, too


def test_a_review_says_why_nothing_more_is_learned(session, caplog):
    def broken() -> np.ndarray:
        raise ValueError("the volume is gone")

    learner = BackgroundLearner(session, broken)
    click(session, 30)
    learner.start()
    learner._thread.join(30)
    expected = "nothing more is learned from clicks: the volume is gone"
    assert session.progress("anna")["learned"]["sentence"] == expected
    assert expected in caplog.text
    learner.stop()
