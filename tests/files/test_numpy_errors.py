"""A damaged `.npy` or `.npz` that somebody gives is refused in words, whichever bit of it was flipped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from canvas_fm.analysis.regions.label_volume import read_array
from canvas_fm.cli.verbs.cells.search import read_vectors
from canvas_fm.data.points.formats.npy_table import read_npy
from canvas_fm.errors import CanvasError


def points(path: Path) -> None:
    np.save(path, np.zeros(4, dtype=[("z", "f8"), ("y", "f8"), ("x", "f8")]))


def array(path: Path) -> None:
    np.save(path, np.zeros((4, 8, 8), np.uint8))


def vectors(path: Path) -> None:
    about = np.array(json.dumps({"encoder_sha256": "a", "pool": "mean"}))
    np.savez_compressed(path, embeddings=np.ones((4, 8), np.float32), about=about)


@pytest.mark.filterwarnings("ignore::Warning")  # of Python's parser, about the header
@pytest.mark.parametrize(
    ("name", "write", "read"),
    [
        ("points.npy", points, read_npy),
        ("labels.npy", array, read_array),
        ("vectors.npy", array, lambda path: read_vectors(str(path))),
        ("vectors.npz", vectors, lambda path: read_vectors(str(path))),
    ],
)
def test_every_kind_of_flipped_bit(
    tmp_path: Path, name: str, write: Callable[[Path], None], read: Callable[[Path], Any]
) -> None:
    path, refused = tmp_path / name, 0
    write(path)
    content = path.read_bytes()
    bits = range(0, 8 * (128 if name.endswith(".npy") else len(content)), 3)
    for bit in bits:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            read(path)
        except CanvasError as problem:
            refused += name in str(problem)
    assert refused > len(bits) / 3
    for length in (0, 1, 6, 60, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(CanvasError, match=name):
            read(path)
