"""Local contrast inside a detector's net: blind to brightness, the same by tiles, within its halo."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from canvas_fm.models.detector.convmixer import (
    ConvMixerConfig,
    HeatMapNet,
    LocalContrast,
    LocalContrastConfig,
)

SMALL = LocalContrastConfig(width=64.0, surround_zyx=(3, 3, 3))
NET = ConvMixerConfig(patch_zyx=(1, 4, 4), dim=8, depth=1, kernel_zyx=(3, 3, 3), contrast=SMALL)


def voxels(seed: int = 0) -> torch.Tensor:
    return 0.02 + 0.05 * torch.rand(1, 1, 12, 40, 40, generator=torch.Generator().manual_seed(seed))


def test_two_of_three_views_hardly_change_where_all_is_brighter():
    seen = LocalContrast(SMALL, (1, 4, 4))
    before, after = seen(voxels()), seen(3 * voxels())
    torch.testing.assert_close(before[:, 1:], after[:, 1:], atol=0.02, rtol=0)
    assert (after[:, 0] - before[:, 0]).min() > 0.05
    assert before.abs().max() < 1


def test_the_surround_is_the_mean_of_a_loop():
    given = voxels()
    relative = LocalContrast(SMALL, (1, 4, 4))(given)[0, 1]
    value = 64 * given[0, 0]
    for z, y, x in ((5, 17, 22), (0, 0, 0), (11, 39, 3)):
        box = [
            slice(max(z - 1, 0), z + 2),
            *(slice(max(p // 4 - 1, 0) * 4, (p // 4 + 2) * 4) for p in (y, x)),
        ]
        mean = value[box[0], box[1], box[2]].mean()
        off = (value[z, y, x] - mean) / (mean + 0.05)
        assert relative[z, y, x] == pytest.approx(float(off / (2 + off.abs())), abs=1e-5)


def test_nothing_beyond_the_halo_counts_and_what_is_within_does():
    torch.manual_seed(0)
    net = HeatMapNet(NET).eval()
    halo = NET.halo_zyx
    assert halo == (2, 8, 8)
    base, place = voxels(), (6, 20, 20)
    with torch.inference_mode():
        torch.nn.init.normal_(net.head.weight, std=10.0)
        before = net(base)[0][place]
        beyond = base.clone()
        beyond[:, :, place[0] + halo[0] + 1 :] = 0.9
        beyond[..., place[2] + halo[2] + 4 :] = 0.9
        torch.testing.assert_close(net(beyond)[0][place], before, atol=1e-6, rtol=1e-6)
        within = base.clone()
        within[..., place[0] + halo[0], :, :] = 0.9
        assert (net(within)[0][place] - before).abs() > 1e-4


def test_a_surround_without_a_centre_is_refused():
    with pytest.raises(ValidationError, match="odd on each axis"):
        LocalContrastConfig(surround_zyx=(4, 9, 9))


def test_a_volume_thinner_than_the_surround_has_the_mean_of_what_there_is() -> None:
    part = LocalContrast(LocalContrastConfig(width=2.0, surround_zyx=(5, 3, 3)), (1, 1, 1))
    voxels = torch.rand(1, 1, 3, 7, 7)
    mean, _ = part.statistics(voxels)
    torch.testing.assert_close(mean[0, 0, 0, 3, 3], 2 * voxels[0, 0, :, 2:5, 2:5].mean())
    torch.testing.assert_close(mean[0, 0, 2, 0, 0], 2 * voxels[0, 0, :, :2, :2].mean())
