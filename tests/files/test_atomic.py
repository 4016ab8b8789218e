"""New files and folders of a block that raises are removed, and what was there before stays."""

from __future__ import annotations

import pytest

from canvas_fm.files.atomic import removed_on_error


def test_what_was_there_stays_and_what_is_new_goes(tmp_path):
    there, new, file = tmp_path / "there", tmp_path / "new", tmp_path / "file"
    there.mkdir()
    (there / "mine").write_text("kept")
    file.write_text("kept")

    def work():
        with removed_on_error(there, new, file) as more:
            (there / "half").mkdir()
            new.mkdir()
            (new / "half").write_text("written")
            more.append(tmp_path / "later")
            more[-1].write_text("written")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "there"]
    assert [path.name for path in there.iterdir()] == ["mine"]
    with removed_on_error(new):
        new.mkdir()
    assert new.is_dir()
