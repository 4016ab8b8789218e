"""An untrained encoder: its weights are the seed's, all else is the model's that it stands beside."""

from __future__ import annotations

import pytest
import torch

from canvas_fm.data.volume.window import WindowRule
from canvas_fm.errors import CanvasError
from canvas_fm.models.encoder.mae import DecoderConfig, MaskedAutoencoder
from canvas_fm.models.encoder.random_encoder import random_encoder
from canvas_fm.models.encoder.vit import EncoderConfig
from canvas_fm.models.load_model import save_encoder

SMALL = EncoderConfig(crop_zyx=(4, 8, 8), patch_zyx=(1, 2, 2), dim=24, depth=2, heads=2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    mae = MaskedAutoencoder(SMALL, DecoderConfig(dim=12, depth=1, heads=2))
    return save_encoder(
        tmp_path_factory.mktemp("models") / "tiny",
        mae,
        voxel_um=(5.0, 2.0, 2.0),
        window_rule=WindowRule("percentiles", 1, 99),
        pool="contrast",
        provenance={"trained_on": [{"name": "a"}]},
    )


def test_weights_are_the_seeds_and_nobody_elses_chance_moves(trained):
    state = torch.random.get_rng_state()
    first, again, other = (random_encoder(trained.config, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    crops = torch.rand(3, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    vectors = [encoder.net(crops) for encoder in (first, again, other, trained)]
    assert torch.equal(vectors[0], vectors[1])
    assert not torch.allclose(vectors[0], vectors[2], atol=1e-3)
    assert not torch.allclose(vectors[0], vectors[3], atol=1e-3)
    assert first.sha256 == again.sha256 != other.sha256
    assert first.sha256 != random_encoder(seed=1).sha256
    assert not first.net.training
    assert not any(p.requires_grad for p in first.net.parameters())


def test_what_crops_it_sees_and_how_it_pools_is_that_of_the_other_what_it_learned_is_not(trained):
    config = random_encoder(trained.config).config
    for name in ("architecture", "voxel_um", "window_rule", "pool"):
        assert getattr(config, name) == getattr(trained.config, name), name
    assert config.provenance == {}
    assert config.decoder is None
    with pytest.raises(CanvasError, match="cannot reconstruct"):
        _ = random_encoder(trained.config).mae
    alone = random_encoder(voxel_um=(6.0, 3.0, 3.0)).config
    assert alone.architecture == EncoderConfig()
    assert alone.voxel_um == (6.0, 3.0, 3.0)
