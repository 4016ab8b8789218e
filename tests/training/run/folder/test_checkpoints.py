"""last.pt: every flipped bit is seen, and a full disk costs nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from canvas_fm.errors import CanvasError, StorageFull
from canvas_fm.training.run.folder.checkpoint import load_checkpoint, save_checkpoint

STATE = {"step": 7, "weights": torch.arange(300.0), "names": ["a", "b"], "pair": (1, 2.5), "none": None}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.pt", STATE)
    loaded = load_checkpoint(tmp_path / "last.pt")
    assert torch.equal(loaded.pop("weights"), STATE["weights"])
    assert loaded == {key: value for key, value in STATE.items() if key != "weights"}
    # The checksum stands behind the archive, so plain torch opens it too.
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 7


def test_every_flipped_bit_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, STATE)
    whole = path.read_bytes()
    for position in [*range(0, len(whole), 41), len(whole) - 1]:
        flipped = bytearray(whole)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        with pytest.raises(CanvasError, match=r"last\.pt is damaged"):
            load_checkpoint(path)


@pytest.mark.parametrize("length", [0, 3, 100, -1, -80])
def test_a_short_file_is_seen(tmp_path: Path, length: int) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, STATE)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CanvasError, match=r"last\.pt is damaged"):
        load_checkpoint(path)


def test_a_full_disk_leaves_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, STATE)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull, match=r"no space left .* last\.pt|no space left .*/last\.pt"):
        save_checkpoint(path, STATE | {"step": 8})
    monkeypatch.undo()
    assert load_checkpoint(path)["step"] == 7
    assert os.listdir(tmp_path) == ["last.pt"]
