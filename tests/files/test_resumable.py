"""Parts and marks: what comes back, and that no damage to them is ever believed."""

from __future__ import annotations

import logging
import os

import numpy as np
import pytest

from canvas_fm.errors import CanvasError
from canvas_fm.files.locks import try_lock
from canvas_fm.files.resumable import ResumableFolder, read_part, write_part


def test_a_part_comes_back_and_any_damage_to_it_is_noticed(tmp_path, caplog):
    path = tmp_path / "deep" / "a.part"
    arrays = {"x": np.arange(6.0).reshape(2, 3), "none": np.empty((0, 3), np.int64)}
    assert read_part(path) is None
    write_part(path, arrays, {"threshold": 0.1, "notes": ["µm"]})
    part = read_part(path)
    assert part is not None
    assert part.about == {"threshold": 0.1, "notes": ["µm"]}
    for name, values in arrays.items():
        np.testing.assert_array_equal(part.arrays[name], values)
        assert part.arrays[name].dtype == values.dtype
    content = path.read_bytes()
    damaged = [content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :] for place in (0, 40, -1)]
    with caplog.at_level(logging.WARNING, logger="canvas_fm"):
        for bad in [*damaged, b"", content[:-1], b"x" * 31, content + b"x"]:
            caplog.clear()
            path.write_bytes(bad)
            assert read_part(path) is None
            assert "is damaged" in caplog.text
    path.unlink()
    path.mkdir()
    assert read_part(path) is None


def test_work_resumes_where_its_inputs_are_the_same(tmp_path):
    out = tmp_path / "x.csv"
    with ResumableFolder(out, {"threshold": 0.3, "box": (1, 2)}) as work:
        work.state = {"done": [3]}
        work.write("000003", {"x": np.ones(2)})
        work.save_state()
    with ResumableFolder(out, {"threshold": 0.3, "box": [1, 2]}) as work:
        assert work.state == {"done": [3]}
        assert work.read("000003") is not None
        with pytest.raises(CanvasError, match="another process is writing"), ResumableFolder(out, {}):
            pass
    with (
        pytest.raises(CanvasError, match=r"made from other inputs: threshold \(was 0.3, is 0.4\)"),
        ResumableFolder(out, {"threshold": 0.4, "box": [1, 2]}),
    ):
        pass
    with ResumableFolder(out, {"threshold": 0.3, "box": [1, 2]}) as work:  # the refusal held no lock back
        work.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["inputs.json", "progress.json", "mark.json"])
def test_work_of_an_earlier_version_is_done_again(tmp_path, caplog, name):
    folder = tmp_path / "x.csv.unfinished"
    (folder / "store").mkdir(parents=True)
    (folder / name).write_text('{"threshold": 0.3}')
    (folder / "000001.npz").write_bytes(b"old")
    with ResumableFolder(tmp_path / "x.csv", {"threshold": 0.4}) as work:
        assert work.state == {}
        assert "everything is computed again" in caplog.text
        assert sorted(path.name for path in folder.iterdir()) == ["lock", "mark.json"]


def test_a_lock_is_held_once_and_free_when_it_is_closed(tmp_path):
    lock = try_lock(tmp_path / "lock")
    assert lock is not None
    assert try_lock(tmp_path / "lock") is None
    os.close(lock)
    again = try_lock(tmp_path / "lock")
    assert again is not None
    os.close(again)
