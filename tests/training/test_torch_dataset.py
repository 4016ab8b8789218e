"""Crops of several volumes as torch data sets: by index, in chunk order, by workers, split over ranks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import canvas_fm as cf
from canvas_fm.errors import CanvasError, ModelMismatch
from canvas_fm.models.encoder.random_encoder import random_encoder
from canvas_fm.training import torch_dataset
from canvas_fm.training.torch_dataset import CropDataset, RandomCrops

CROP = (4, 8, 8)


@pytest.fixture
def brains(position_volume):
    paths = [position_volume((24, 40, 40), name=f"{name}.zarr")[0] for name in "ab"]
    return [cf.Volume.open(path) for path in paths]


@pytest.fixture
def points(brains):
    random = np.random.default_rng(0)
    return [
        cf.Points(random.uniform(0, 23, (n, 3)), {"cell": random.integers(0, 2, n), "number": np.arange(n)})
        for n in (37, 12)
    ]


def one_by_one(brains, points):
    """The oracle: each crop read alone from its volume."""
    for brain, each in zip(brains, points, strict=True):
        for point in each.zyx:
            start = [int(np.floor(p + 0.5)) - size // 2 for p, size in zip(point, CROP, strict=True)]
            yield brain.window.apply(brain.read(start, CROP))[None]


def test_items_are_the_windowed_crops_with_their_targets(brains, points):
    crops = CropDataset(brains, points, crop_zyx=CROP, target="cell")
    assert len(crops) == 49
    expected = list(one_by_one(brains, points))
    targets = np.concatenate([each.columns["cell"] for each in points])
    for row in (0, 36, 37, 48, -1):
        crop, target = crops[row]
        assert np.array_equal(crop.numpy(), expected[row])
        assert target == targets[row]
    rows = [40, 3, 3, 0]
    for (crop, _), row in zip(crops.__getitems__(rows), rows, strict=True):
        assert np.array_equal(crop.numpy(), expected[row])
    with pytest.raises(IndexError):
        crops[49]


def check_loader(brains, points, data, **options):
    """Every row comes once, with its own crop."""
    expected = np.stack(list(one_by_one(brains, points)))
    batches = list(DataLoader(data, batch_size=10, **options))
    rows = torch.cat([target for _, target in batches]).numpy()
    assert sorted(rows) == list(range(49))
    assert np.array_equal(-torch.cat([crop for crop, _ in batches]).numpy(), expected[rows])


def test_one_volume_needs_no_list(brains, points):
    alone = CropDataset(brains[1], points[1], crop_zyx=CROP)
    assert torch.equal(alone[3][0], CropDataset(brains, points, crop_zyx=CROP)[40][0])


def test_a_loader_gives_every_row_once(brains, points):
    crops = CropDataset(brains, points, torch.neg, crop_zyx=CROP)
    check_loader(brains, points, crops, shuffle=True)
    check_loader(brains, points, crops.in_chunk_order(seed=3, block=4))
    with pytest.raises(CanvasError, match="multiprocessing_context='forkserver'"):
        check_loader(brains, points, crops, num_workers=1, multiprocessing_context="fork")


@pytest.mark.slow
def test_workers_give_every_row_once(brains, points):
    crops = CropDataset(brains, points, torch.neg, crop_zyx=CROP)
    for data in (crops, crops.in_chunk_order(seed=3, block=4)):
        check_loader(brains, points, data, num_workers=2, multiprocessing_context="spawn")


@pytest.mark.parametrize("transform", [None, torch.neg])
def test_whole_batches_are_the_items_in_their_order(brains, points, transform):
    crops = CropDataset(brains, points, transform, crop_zyx=CROP, target="number")
    items = list(crops.in_chunk_order(seed=3, block=4))
    stream = crops.in_chunk_order(seed=3, block=4, batch=10)
    batches = list(DataLoader(stream, batch_size=None))
    assert [len(crop) for crop, _ in batches] == [10, 10, 10, 10, 9]
    assert len(stream) == 5
    assert torch.equal(torch.cat([crop for crop, _ in batches]), torch.stack([crop for crop, _ in items]))
    assert torch.cat([target for _, target in batches]).tolist() == [target for _, target in items]
    for row, (crop, _) in zip(crops.in_chunk_order(seed=3, block=4).rows(), items, strict=True):
        assert torch.equal(crop, crops[int(row)][0])
    with pytest.raises(CanvasError, match="batch is 0; give at least 1"):
        crops.in_chunk_order(batch=0)


def test_a_background_is_the_second_channel_of_each_crop(brains, points):
    behind = [
        cf.Volume.from_array(np.asarray(brain)[::-1].copy(), voxel_um=brain.voxel_um) for brain in brains
    ]
    both = CropDataset(brains, points, background=behind, crop_zyx=CROP)
    signal, background = (CropDataset(each, points, crop_zyx=CROP) for each in (brains, behind))
    rows = np.arange(len(both))
    assert torch.equal(both.crops(rows), torch.cat([signal.crops(rows), background.crops(rows)], dim=1))
    batch, _ = next(iter(both.in_chunk_order(batch=8)))
    assert batch.shape == (8, 2, *CROP)
    with pytest.raises(CanvasError, match="2 volumes and 1 of background were given"):
        CropDataset(brains, points, background=behind[0], crop_zyx=CROP)
    one = random_encoder(voxel_um=brains[0].voxel_um)
    with pytest.raises(CanvasError, match="leave --background out"):
        CropDataset(brains, points, background=behind, model=one)


def test_workers_share_whole_batches(brains, points, monkeypatch):
    """Each row comes once, only the last batch is short, and workers put crops into shared memory."""
    crops = CropDataset(brains, points, crop_zyx=CROP)
    stream = crops.in_chunk_order(seed=3, block=4, batch=10)
    sizes, rows, shared = [], [], []
    for number in range(3):
        worker = SimpleNamespace(num_workers=3, id=number)
        monkeypatch.setattr(torch_dataset, "get_worker_info", lambda worker=worker: worker)
        for batch, target in stream:
            sizes.append(len(batch))
            rows += target.tolist()
            shared.append(batch.is_shared())
    assert sizes == [10, 10, 10, 10, 9]
    assert sorted(rows) == list(range(49))
    assert all(shared)


def test_the_order_of_a_stream_is_that_of_its_seed_and_epoch(brains, points):
    crops = CropDataset(brains, points, crop_zyx=CROP)
    first, again = crops.in_chunk_order(seed=1, block=4), crops.in_chunk_order(seed=1, block=4)
    assert np.array_equal(first.rows(), again.rows())
    again.set_epoch(1)
    assert not np.array_equal(first.rows(), again.rows())
    assert not np.array_equal(first.rows(), crops.in_chunk_order(seed=2, block=4).rows())
    chunks = crops.starts_zyx[0][crops.in_chunk_order(shuffle=False).rows()[:37]].clip(0) // (8, 16, 16)
    visits = 1 + np.any(np.diff(chunks, axis=0) != 0, axis=1).sum()
    assert visits == len(np.unique(chunks, axis=0))  # unshuffled, each chunk is visited once


def test_ranks_take_equal_parts_that_are_the_whole(brains, points):
    crops = CropDataset(brains, points, crop_zyx=CROP)
    parts = [crops.in_chunk_order(seed=1, rank=rank, world=3) for rank in range(3)]
    rows = [part.rows() for part in parts]
    assert {len(each) for each in rows} == {17} == {len(part) for part in parts}
    assert set(np.concatenate(rows).tolist()) == set(range(49))


def test_random_crops_are_drawn_by_seed(brains):
    crops = CropDataset(brains, RandomCrops(5, foreground=0.0, seed=1), crop_zyx=CROP)
    same = CropDataset(brains, RandomCrops(5, foreground=0.0, seed=1), crop_zyx=CROP)
    assert len(crops) == 10
    assert np.array_equal(crops.starts_zyx, same.starts_zyx)
    assert not np.array_equal(crops.starts_zyx[0], crops.starts_zyx[1])


def test_a_model_gives_size_window_and_voxel_size(brains):
    model = random_encoder(voxel_um=(4.0, 1.8, 1.8))
    zyx = np.array([[10.0, 20, 20]])
    crop, _ = CropDataset(brains[:1], [zyx], model=model)[0]
    assert torch.equal(model(crop[None]), torch.from_numpy(cf.embed(model, brains[0], zyx)))
    coarse = random_encoder(voxel_um=(5.0, 2.25, 2.25))
    with pytest.raises(ModelMismatch, match="--resample"):
        CropDataset(brains[:1], [zyx], model=coarse)
    crop, _ = CropDataset(brains[:1], [zyx], model=coarse, resample=True)[0]
    assert torch.equal(coarse(crop[None]), torch.from_numpy(cf.embed(coarse, brains[0], zyx, resample=True)))


def test_what_does_not_fit_together_is_refused(brains, points):
    with pytest.raises(CanvasError, match="there are no volumes"):
        CropDataset([], [], crop_zyx=CROP)
    with pytest.raises(CanvasError, match="2 volumes and 1 of points were given"):
        CropDataset(brains, points[:1], crop_zyx=CROP)
    with pytest.raises(CanvasError, match="no column 'neuron'; they have: cell, number"):
        CropDataset(brains, points, crop_zyx=CROP, target="neuron")
    with pytest.raises(CanvasError, match="points outside the volume"):
        CropDataset(brains[:1], [np.array([[99.0, 0, 0]])], crop_zyx=CROP)
    with pytest.raises(CanvasError, match="either model=encoder or crop_zyx"):
        CropDataset(brains, points)
