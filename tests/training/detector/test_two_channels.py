"""A detector that sees the background channel too is better where tissue shines by itself."""

from __future__ import annotations

import json

import pytest

from tests.benchmarks.detection.bench_channels import main


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_channels_beat_one_on_phantoms_with_autofluorescence(tmp_path):
    main(["--out", str(tmp_path), "--seeds", "0", "1"])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["phantoms"] == 24
    assert report["interval"][0] > 0, report
