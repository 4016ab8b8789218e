"""`quantise` from the command line: its figures, and that the other verbs then take int8."""

from __future__ import annotations

import json

import numpy as np
import pytest

from canvas_fm.models.encoder.vit import POOLS

pytest.importorskip("nncf")


@pytest.fixture
def candidates(tmp_path) -> list[str]:
    """Two files of candidates of the one volume's halves: label 1 in the bright part."""
    rng = np.random.default_rng(0)
    files = []
    for name in "ab":
        zyx = rng.uniform((0, 0, 0), (23, 63, 71), (60, 3)).round(1)
        bright = ((zyx[:, 1:] >= 20) & (zyx[:, 1:] < 40)).all(axis=1)
        rows = [f"{z},{y},{x},{int(cell)}" for (z, y, x), cell in zip(zyx, bright, strict=True)]
        files.append(str(tmp_path / f"{name}.csv"))
        (tmp_path / f"{name}.csv").write_text("z,y,x,label\n" + "\n".join(rows) + "\n")
    return files


def test_quantise_tells_its_figures_and_embed_obeys_them(result, refusal, brain, model, candidates, tmp_path):
    import shutil

    shutil.copytree(model, tmp_path / "tiny")
    shutil.copytree(brain, tmp_path / "second.zarr")
    volumes = ["--volumes", brain, tmp_path / "second.zarr", "--candidates", *candidates, "--labels", "label"]
    found = result("quantise", tmp_path / "tiny", "--calibrate", brain, "--crops", 16, *volumes)
    assert found["candidates"] == 120
    assert set(found["pools"]) == set(POOLS)
    path = tmp_path / "tiny" / "int8" / "check.json"
    kept = json.loads(path.read_bytes())
    assert kept == found
    pool = kept["pools"]["mean"]
    pool.update(agreement=0.2, f1_all=0.0)
    path.write_text(json.dumps(kept))
    asked = ["--backend", "openvino", "--precision", "int8", "--pool", "mean"]
    said = refusal("embed", tmp_path / "tiny", brain, "--grid", 8, 16, 16, "--out", tmp_path / "x", *asked)
    assert said.startswith(
        "int8 is not admitted for tiny, pool mean: of the 10 nearest neighbours 0.200 stay"
    )


def test_embed_with_openvino_gives_the_rows_of_torch(result, brain, model, tmp_path):
    from canvas_fm.inference.embed.store.embedding_store import Embeddings

    stores = []
    for backend in ("torch", "openvino"):
        out = tmp_path / f"{backend}.emb.zarr"
        result("embed", model, brain, "--grid", 8, 16, 16, "--out", out, "--backend", backend)
        stores.append(Embeddings.open(out).vectors)
    np.testing.assert_allclose(stores[1], stores[0], atol=1e-5)
