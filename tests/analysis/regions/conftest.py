"""A small atlas: a tree of six regions, its labels on 10 × 8 × 12 voxels of 100 µm."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tifffile

TABLE = (
    "id,acronym,name,structure_id_path\n"
    "997,root,root,/997/\n8,grey,Basic cell groups and regions,/997/8/\n567,CH,Cerebrum,/997/8/567/\n"
    "688,CTX,Cerebral cortex,/997/8/567/688/\n623,CNU,Cerebral nuclei,/997/8/567/623/\n"
    "1009,fiber tracts,fiber tracts,/997/1009/\n"
)
PARTS = {8: (567, 688, 623), 567: (688, 623), 997: (8, 567, 688, 623, 1009)}


class Small(NamedTuple):
    labels_path: Path
    table: Path
    labels: np.ndarray
    folder: Path


@pytest.fixture
def small(tmp_path) -> Small:
    """Every region has voxels of its own; a shell of zeros around them makes axes distinguishable."""
    labels = np.zeros((10, 8, 12), np.uint16)
    box = labels[1:7, 2:7, 1:11]
    box[:] = np.random.default_rng(0).choice([997, 8, 567, 688, 623, 1009], box.shape)
    tifffile.imwrite(tmp_path / "labels.tif", labels)
    (tmp_path / "names.csv").write_text(TABLE, encoding="utf-8")
    return Small(tmp_path / "labels.tif", tmp_path / "names.csv", labels, tmp_path)
