"""Cells with region, hemisphere, P(cell) and embedding, from `regions --cells-out` to what scanpy opens."""

from __future__ import annotations

import numpy as np
import pytest

from canvas_fm.analysis.regions.cells_per_region import count_regions
from canvas_fm.analysis.regions.read_atlas import open_atlas
from canvas_fm.analysis.regions.sidecar import write_cells
from canvas_fm.data.points.points import Points
from canvas_fm.inference.embed.store.embedding_store import write_store
from canvas_fm.inference.embed.store.export import export
from tests.analysis.regions.test_cells_per_region import points_inside


def test_region_hemisphere_and_p_cell_are_in_obs_and_vectors_in_x(small, tmp_path):
    anndata = pytest.importorskip("anndata")
    atlas = open_atlas(
        small.labels_path, table=small.table, atlas_voxel_um=(100, 100, 100), atlas_orientation="asr"
    )
    zyx = np.concatenate([points_inside(small.labels, 80), [[1, 1, 1]]])  # the last in no region
    p = np.linspace(0, 1, 81, dtype=np.float32)
    cells = Points(zyx, {"p_cell": p})
    counted = count_regions(cells, atlas, voxel_um=(10, 10, 10))
    write_cells([counted], [cells], tmp_path / "cells.csv")
    placed = Points.read(tmp_path / "cells.csv")
    about: dict[str, object] = {"encoder_sha256": "ab" * 32, "encoder": "e", "pool": "mean"}
    about |= {"precision": "fp32", "voxel_um": [10, 10, 10], "window": [0, 1], "volume": "m1"}
    vectors = np.random.default_rng(0).random((81, 5)).astype(np.float32)
    write_store(tmp_path / "m1.emb.zarr", vectors, placed, about | {"marker": None, "inputs": {}})
    export(tmp_path / "m1.emb.zarr", tmp_path / "m1.h5ad")
    found = anndata.read_h5ad(tmp_path / "m1.h5ad")
    at = np.floor((zyx + 0.5) / 10).astype(int)
    assert found.obs["region_id"].tolist() == small.labels[tuple(at.T)].tolist()
    sides = np.where(at[:, 2] < 6, "right", "left")  # asr: x begins at the right
    assert found.obs["hemisphere"].astype(str).tolist()[:-1] == sides.tolist()[:-1]
    for name in ("region", "hemisphere", "channel", "volume"):  # as scanpy and squidpy group by them
        assert found.obs[name].dtype.name == "category", name
    assert found.obs["region"].iloc[-1] == ""
    np.testing.assert_allclose(found.obs["p_cell"], p, atol=1e-6)
    np.testing.assert_array_equal(found.X, vectors)
    np.testing.assert_allclose(found.obsm["spatial"], zyx[:, ::-1] * 10)
