"""Embeddings after any block of the encoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from canvas_fm.errors import CanvasError
from canvas_fm.inference.embed.embed import embed, embed_crops, embed_to_store
from canvas_fm.models.encoder.vit import VOXEL_MEAN, VOXEL_STD, patchify


def crops() -> np.ndarray:
    return np.random.default_rng(0).random((3, 4, 8, 8)).astype(np.float32)


def test_layers_are_what_the_blocks_give_one_after_the_other(encoder):
    net = encoder.net
    given = torch.from_numpy(crops())[:, None]
    x = net.patch_embed((patchify(given, net.config.patch_zyx) - VOXEL_MEAN) / VOXEL_STD) + net.positions
    x = torch.cat([net.cls_token.expand(3, -1, -1), x], dim=1)
    wanted = [net.norm(x)[:, 1:].mean(dim=1)]
    for block in net.blocks:
        x = block(x)
        wanted.append(net.norm(x)[:, 1:].mean(dim=1))
    for layer, vectors in enumerate(wanted):
        assert np.allclose(embed_crops(encoder, crops(), layer=layer), vectors.numpy(), atol=1e-5)
    assert np.array_equal(embed_crops(encoder, crops(), layer=2), embed_crops(encoder, crops()))


def test_points_take_a_layer_too_and_stores_remember_it(encoder, brains, tmp_path):
    volume, points = brains[0]
    first = embed(encoder, volume, points.zyx, layer=1)
    assert not np.allclose(first, embed(encoder, volume, points.zyx))
    store = embed_to_store(encoder, volume, points, tmp_path / "x.emb.zarr", layer=1)
    assert np.array_equal(store.vectors, first)
    assert store.attributes["layer"] == 1
    with pytest.raises(CanvasError, match="layer"):
        embed_to_store(encoder, volume, points, tmp_path / "x.emb.zarr")


def test_a_layer_that_is_not_there(encoder):
    for layer in (-1, 3):
        with pytest.raises(CanvasError, match=f"layer is {layer}; tiny has 2 blocks: give 0 to 2"):
            embed_crops(encoder, crops(), layer=layer)
