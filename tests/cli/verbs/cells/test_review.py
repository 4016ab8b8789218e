"""`review` says what it does before its page is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import serving.launch.review
from canvas_fm.cli import main
from canvas_fm.data.points.points import Points


@pytest.mark.parametrize(("quiet", "lines"), [([], 2), (["--quiet"], 0)])
def test_what_is_opened_is_said_before_the_page_is_there(tmp_path: Path, monkeypatch, capsys, quiet, lines):
    Points(np.full((12, 3), 4.0)).write(tmp_path / "candidates.csv")
    before: list[str] = []

    def serve(*_: object, **__: object) -> None:
        before.extend(capsys.readouterr().err.splitlines())

    monkeypatch.setattr(serving.launch.review, "serve_review", serve)
    main(["review", "sample:microglia", str(tmp_path / "candidates.csv"), *quiet])
    messages = [line for line in before if line.startswith("canvas-fm: ")]
    assert len(messages) == lines
    if lines:
        assert "opening sample:microglia" in messages[0]
        assert messages[1] == "canvas-fm: starting the page of 12 candidates"
