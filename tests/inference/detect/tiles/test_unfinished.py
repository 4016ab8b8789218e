"""A detection that was stopped resumes; a finished file is not made again."""

from __future__ import annotations

import numpy as np
import pytest

from canvas_fm.data.points.points import Points
from canvas_fm.errors import CanvasError
from canvas_fm.files.resumable import ResumableFolder
from canvas_fm.inference.detect.detect import detect, detector_job
from canvas_fm.inference.detect.tiles.tiled_detection import run
from tests.inference.detect.nets import untiled


def test_a_killed_detection_goes_on_and_gives_the_same(detector, volume, tmp_path, monkeypatch):
    out = tmp_path / "cells.csv"
    job = detector_job(detector, volume, tile_zyx=(8, 32, 32))
    done = []

    def tile(number):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(number)
        return type(job).tile(job, number)

    monkeypatch.setattr(job, "tile", tile)
    with pytest.raises(KeyboardInterrupt):
        run(job, out)
    assert not out.exists()
    damaged = tmp_path / "cells.csv.unfinished" / "000002.part"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 16
    damaged.write_bytes(content)
    again = detector_job(detector, volume, tile_zyx=(8, 32, 32))
    asked = []
    monkeypatch.setattr(again, "tile", lambda number: asked.append(number) or type(again).tile(again, number))
    run(again, out)
    assert asked[0] in (2, 5)
    assert len(asked) <= len(job.tiles) - 4
    assert not damaged.parent.exists()
    read = Points.read(out)
    assert np.array_equal(read.zyx, untiled(detector, volume)[0])
    assert read.meta["detector_sha256"] == detector.sha256
    assert read.meta["volume"] == "brain"


def test_other_inputs_are_refused_and_the_same_are_taken_as_done(detector, volume, tmp_path):
    out = tmp_path / "cells.parquet"
    first = detect(detector, volume, out=out)
    before = out.stat().st_mtime_ns
    assert np.array_equal(detect(detector, volume, out=out).zyx, first.zyx)
    assert out.stat().st_mtime_ns == before
    with pytest.raises(CanvasError, match="made from other inputs"):
        detect(detector, volume, out=out, threshold=0.3)
    unfinished = tmp_path / "other.csv.unfinished"
    with ResumableFolder(tmp_path / "other.csv", {"threshold": 0.3}):
        assert unfinished.is_dir()
    with pytest.raises(CanvasError, match=r"threshold \(was 0.3, is 0.4\)"):
        detect(detector, volume, out=tmp_path / "other.csv")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_finished_file_whose_rows_were_changed_is_not_taken_as_done(detector, volume, tmp_path, suffix):
    out = tmp_path / f"cells.{suffix}"
    points = detect(detector, volume, out=out, threshold=0.3)
    assert np.array_equal(detect(detector, volume, out=out, threshold=0.3).zyx, points.zyx)
    moved = points.zyx.copy()
    moved[-1, 2] += 1
    for changed in (points.zyx[:-1], moved):
        columns = {"score": points.columns["score"][: len(changed)]}
        Points(changed, columns, points.meta).write(out)
        with pytest.raises(CanvasError, match="its rows are not those that were written"):
            detect(detector, volume, out=out, threshold=0.3)
    unhashed = {key: value for key, value in points.meta.items() if key != "rows_sha256"}
    Points(points.zyx, points.columns, unhashed).write(out)  # as earlier versions wrote it
    assert len(detect(detector, volume, out=out, threshold=0.3)) == len(points)
    out.write_bytes(out.read_bytes()[:-20])
    with pytest.raises(CanvasError, match=r"delete it to compute (it|them) again"):
        detect(detector, volume, out=out, threshold=0.3)
