"""The heat-map net: its halo, its depthwise gradient, its loss beside MONAI's, its pooled features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from canvas_fm.models.detector.convmixer import (
    ConvMixerConfig,
    Depthwise,
    HeatMapNet,
    Pointwise,
    _touched,
    focal_loss,
    pool_boxes,
)
from canvas_fm.models.load_model import load, save_detector

SMALL = ConvMixerConfig(dim=8, depth=2, kernel_zyx=(3, 5, 3))


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = HeatMapNet(SMALL)
    with torch.no_grad():  # a head that tells voxels apart, and statistics that are not 0 and 1
        net.head.weight.normal_()
        net.train()(torch.rand(2, 1, 8, 32, 32))
    return net.eval()


def test_a_voxel_looks_as_far_as_the_halo_says_and_no_farther(net):
    voxels = torch.rand(1, 1, 15, 60, 60, requires_grad=True)
    z, y, x = 7, 29, 30  # in the patch from (7, 28, 28) to (7, 31, 31)
    net(voxels)[0, z, y, x].backward()
    seen = torch.nonzero(voxels.grad[0, 0])
    hz, hy, hx = SMALL.halo_zyx
    assert seen.min(dim=0).values.tolist() == [z - hz, 28 - hy, 28 - hx]
    assert seen.max(dim=0).values.tolist() == [z + hz, 31 + hy, 31 + hx]


def test_a_tile_with_its_halo_gives_what_the_whole_gives(net):
    voxels = torch.rand(1, 1, 20, 64, 64)
    hz, hy, hx = SMALL.halo_zyx
    with torch.no_grad():
        whole = net(voxels)[0, 8:11, 24:36, 20:40]
        tile = net(voxels[:, :, 8 - hz : 11 + hz, 24 - hy : 36 + hy, 20 - hx : 40 + hx])
    inner = tile[0, hz:-hz, hy:-hy, hx:-hx]
    torch.testing.assert_close(inner, whole, rtol=0, atol=1e-5)


def test_the_heat_of_a_patch_lies_where_its_voxels_lie():
    """With a net that only copies, the heat map is the volume."""
    net = HeatMapNet(ConvMixerConfig(dim=32, depth=1, patch_zyx=(2, 4, 4), kernel_zyx=(1, 1, 1)))
    embedding = net.body[0][0]
    with torch.no_grad():
        embedding.weight.copy_(torch.eye(32).reshape(32, 1, 2, 4, 4))
        embedding.bias.zero_()
        net.head.weight.copy_(torch.eye(32))
        net.head.bias.zero_()
    voxels = torch.rand(1, 1, 4, 12, 8)
    torch.testing.assert_close(net.logits(embedding(voxels)), voxels[:, 0])


@pytest.mark.parametrize("kernel", [(3, 5, 5), (1, 3, 5), (5, 1, 3)])
def test_the_gradient_by_mirroring_is_that_of_torch(kernel):
    torch.manual_seed(0)
    ours = Depthwise(6, kernel).double()
    theirs = nn.Conv3d(6, 6, kernel, groups=6, padding="same").double()
    theirs.load_state_dict(ours.state_dict())
    given = torch.randn(2, 6, 5, 7, 9, dtype=torch.float64)
    results = []
    for layer in (ours, theirs):
        x = given.clone().requires_grad_()
        out = layer(x)
        (out**3).sum().backward()
        results.append((out, x.grad, layer.weight.grad, layer.bias.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_a_pointwise_layer_is_a_convolution_by_one():
    ours, theirs = Pointwise(4, 6), nn.Conv3d(4, 6, 1)
    with torch.no_grad():
        theirs.weight.copy_(ours.weight[:, :, None, None, None])
        theirs.bias.copy_(ours.bias)
    x = torch.rand(2, 4, 3, 5, 4)
    torch.testing.assert_close(ours(x), theirs(x))


def test_focal_loss_is_that_of_monai():
    monai = pytest.importorskip("monai.losses")
    logits = torch.randn(2, 1, 3, 4, 5)
    target = (torch.rand(2, 1, 3, 4, 5) < 0.3).float()
    theirs = monai.FocalLoss(gamma=2.0, alpha=0.25, reduction="none")(logits, target)
    torch.testing.assert_close(focal_loss(logits, target), theirs)


def test_pooled_features_are_the_means_of_their_voxels():
    """Beside a loop over voxels: boxes at any voxel, over the border, and wholly outside."""
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.random((3, 6, 5, 7), dtype=np.float32))
    voxels = np.repeat(np.repeat(features.numpy(), 4, axis=2), 2, axis=3)  # patches of 1 × 4 × 2
    starts = np.array([[0, 0, 0], [1, 3, 5], [-3, -5, 8], [3, 14, 9], [40, 0, 0]])
    pooled = pool_boxes(features, torch.from_numpy(starts), box_zyx=(4, 8, 6), patch_zyx=(1, 4, 2))
    assert pooled.shape == (5, 24)
    for row, start in enumerate(starts):
        for number, (i, j, k) in enumerate(np.ndindex(2, 2, 2)):
            low = start + np.array([i, j, k]) * [2, 4, 3]
            index = np.stack(
                np.meshgrid(*(low[a] + np.arange(n) for a, n in enumerate((2, 4, 3))), indexing="ij")
            )
            index = index.reshape(3, -1)
            index = index[:, ((index >= 0) & (index < np.array(voxels.shape[1:])[:, None])).all(axis=0)]
            expected = voxels[:, *index].mean(axis=1) if index.size else np.zeros(3)
            got = pooled.numpy().reshape(5, 3, 8)[row, :, number]
            assert got == pytest.approx(expected, abs=1e-5)


def test_a_part_of_a_map_is_pooled_where_it_lies(monkeypatch):
    """The same numbers as of a copy of it, which takes as much memory again for every batch of boxes."""
    rng = np.random.default_rng(0)
    planes = torch.from_numpy(rng.random((9, 8, 7, 3), dtype=np.float32))  # channels last, as by planes
    part = rearrange(planes, "z y x c -> c z y x")[:, 2:8, 1:6, 1:]
    starts = torch.from_numpy(np.array([[0, 0, 0], [1, 3, 5], [-3, -5, 8], [40, 0, 0]]))
    boxes = {"box_zyx": (4, 8, 6), "patch_zyx": (1, 4, 2)}
    copied = pool_boxes(part.contiguous(), starts, **boxes)
    seen, bag = [], F.embedding_bag

    def watched(rows, table, **settings):
        seen.append(table)
        return bag(rows, table, **settings)

    monkeypatch.setattr(F, "embedding_bag", watched)
    assert torch.equal(pool_boxes(part, starts, **boxes), copied)
    assert seen[0].untyped_storage().data_ptr() == planes.untyped_storage().data_ptr()


def test_a_detector_comes_back_as_it_was_saved(net, tmp_path):
    saved = save_detector(
        tmp_path / "run" / "detector", net, voxel_um=(6, 1.62, 1.62), threshold=0.3, min_distance_um=8
    )
    opened = load(tmp_path / "run" / "detector")
    voxels = torch.rand(1, 1, 6, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(opened.net(voxels), net(voxels), rtol=0, atol=1e-6)
    assert (opened.name, opened.sha256) == ("run", saved.sha256)
    assert (opened.config.threshold, opened.config.min_distance_um) == (0.3, 8.0)


def test_the_other_class_of_model_is_refused_by_name(net, tmp_path):
    save_detector(tmp_path / "d", net, voxel_um=(6, 1.62, 1.62), threshold=0.3, min_distance_um=8)
    with pytest.raises(Exception, match="says kind 'detector'; an encoder was expected"):
        load(tmp_path / "d", kind="encoder")


def test_sizes_that_do_not_fit_are_refused(net):
    with pytest.raises(ValueError, match="odd on each axis"):
        ConvMixerConfig(kernel_zyx=(4, 3, 3))
    with pytest.raises(ValueError, match="not whole patches"):
        net(torch.rand(1, 1, 4, 10, 16))


def test_a_step_under_bf16_goes_the_way_of_float32() -> None:
    """Where a processor has bf16 instructions, detectors are trained under autocast."""
    torch.manual_seed(0)
    net = HeatMapNet(ConvMixerConfig(dim=8, depth=1))
    crops = torch.rand(2, 1, 8, 16, 16)
    gradients = []
    for enabled in (False, True):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            net(crops).float().square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.98


@pytest.mark.parametrize("prior", [0.01, 0.2])
def test_an_untrained_net_says_the_share_of_positive_voxels(prior: float) -> None:
    torch.manual_seed(1)
    net = HeatMapNet(SMALL, prior=prior).eval()
    with torch.no_grad():
        said = torch.sigmoid(net(torch.zeros(1, 1, 6, 16, 16)))
    assert said.mean().item() == pytest.approx(prior, rel=0.1)


def test_pooling_reads_no_patch_that_its_parts_do_not_touch() -> None:
    """As many patches along each axis as a part of the box can meet and no more."""
    index, weight = _touched(torch.arange(0, 9), box=16, patch=4, length=40, bins=2)
    assert index.shape[-1] == 3  # a part of 8 voxels that starts anywhere meets three patches of 4 at most
    assert (weight > 0).any(dim=(0, 1)).all()
