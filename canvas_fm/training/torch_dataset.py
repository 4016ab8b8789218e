"""Crops of several volumes as a torch data set, for a training loop of one's own."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, default_collate, get_worker_info

from canvas_fm.data.crops.reader import CropReader, chunk_order
from canvas_fm.data.dataset.unique_names import check_one_each
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.volume.window import WindowRule
from canvas_fm.data.zyx import Zyx, ZyxUm, match_voxel_um
from canvas_fm.errors import CanvasError
from canvas_fm.inference.input_checks import input_channels
from canvas_fm.models.load_model import Encoder
from canvas_fm.training.crop_targets import RandomCrops, starts_and_targets

Transform = Callable[[Tensor], Any]
Item = tuple[Any, Any]  # crop, or what the transform made of it, and its target
_MIXED = 8  # blocks within which a shuffled stream mixes its rows
_TOGETHER = 64 * 2**20  # bytes of crops that are read together, at most


class CropDataset(Dataset[Item]):
    """Windowed crops (c, z, y, x) in [0, 1] of several volumes, with their targets, by index.

    `points` are those of each volume (`Points`, or arrays (n, 3) z, y, x), or a `RandomCrops`. Crop size,
    window rule and voxel size are those of the `model`, else `crop_zyx` and `window_rule`. A target is the
    value of the points' column `target`, else the row's number. With `background`, the second channel of each
    volume, crops have two. `transform` gets the crop as a tensor. A
    batch of rows is read at once, each chunk decoded once. Worker processes are started by
    `multiprocessing_context="spawn"` or "forkserver" and open the volumes anew; forked ones are refused: they
    would hang. Each process keeps `cache_bytes` of decoded chunks. Raises as `cf.embed` does for another
    voxel size and points outside.
    """

    def __init__(
        self,
        volumes: Volume | Sequence[Volume],
        points: Any,
        transform: Transform | None = None,
        *,
        background: Volume | Sequence[Volume] | None = None,
        model: Encoder | None = None,
        crop_zyx: Zyx | None = None,
        window_rule: WindowRule | None = None,
        target: str | None = None,
        resample: bool = False,
        ignore_voxel_size: bool = False,
        cache_bytes: int = 256 * 2**20,
    ) -> None:
        self.cache_bytes = cache_bytes
        if isinstance(volumes, Volume):
            volumes, points = [volumes], points if isinstance(points, RandomCrops) else [points]
        self.volumes, self.transform = list(volumes), transform
        if not self.volumes:
            raise CanvasError("there are no volumes; give at least one: CropDataset(brain, points)")
        if (model is None) == (crop_zyx is None):
            raise CanvasError("give either model=encoder or crop_zyx=(z, y, x): the size of the crops")
        self.crop_zyx: Zyx = model.config.architecture.crop_zyx if model else crop_zyx  # type: ignore[assignment]
        rule = window_rule or (model.config.window_rule if model else WindowRule())
        self.resample_to: list[ZyxUm | None] = [
            match_voxel_um(
                volume, model.config.voxel_um, resample=resample, ignore_voxel_size=ignore_voxel_size
            )
            if model
            else None
            for volume in self.volumes
        ]
        self.channels = self._channels(background, model)
        self.windows = [[volume.window_by(rule) for volume in each] for each in self.channels]
        self.starts_zyx, self.targets = starts_and_targets(
            self.volumes, points, self.crop_zyx, self.resample_to, target
        )
        self.first_rows = np.concatenate([[0], np.cumsum([len(starts) for starts in self.starts_zyx])])
        self._readers: dict[tuple[int, int], CropReader] = {}
        self._process = os.getpid()

    def __len__(self) -> int:
        return int(self.first_rows[-1])

    def __getitem__(self, row: int) -> Item:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Item]:
        """The items of a batch, as torch's loader asks for them: read together, in the order given."""
        index = np.asarray(rows, np.int64)
        index = np.where(index < 0, index + len(self), index)
        if index.size and not (index.min() >= 0 and index.max() < len(self)):
            raise IndexError(f"row {rows} of {len(self)} crops")
        tensors: list[Any] = list(self.crops(index))
        if self.transform is not None:
            tensors = [self.transform(tensor) for tensor in tensors]
        return list(zip(tensors, self.targets[index].tolist(), strict=True))

    @property
    def crop_shape(self) -> tuple[int, int, int, int]:
        """Channels, z, y, x of one crop."""
        return (len(self.channels[0]), *self.crop_zyx)

    def crops(self, index: Int64[np.ndarray, " b"]) -> Float[Tensor, "b c z y x"]:
        """Windowed crops of rows in one tensor, in the order given and without the transform."""
        crops = np.empty((len(index), *self.crop_shape), np.float32)
        self.read_into(crops, index)
        return torch.from_numpy(crops)

    def read_into(self, crops: Float32[np.ndarray, "b c z y x"], index: Int64[np.ndarray, " b"]) -> None:
        """Read the windowed crops of rows into an array."""
        home = np.searchsorted(self.first_rows, index, side="right") - 1
        for number in np.unique(home).tolist():
            of_volume = np.flatnonzero(home == number)
            starts = self.starts_zyx[number][index[of_volume] - self.first_rows[number]]
            for channel, window in enumerate(self.windows[number]):
                crops[of_volume, channel] = window.apply(self._reader(number, channel).read(starts))

    def in_chunk_order(
        self,
        *,
        shuffle: bool = True,
        seed: int = 0,
        block: int = 64,
        batch: int | None = None,
        rank: int | None = None,
        world: int | None = None,
    ) -> CropStream:
        """The items as an iterable data set that reads neighbours together; see `CropStream`."""
        return CropStream(self, shuffle, seed, block, batch, rank, world)

    def _channels(
        self, background: Volume | Sequence[Volume] | None, model: Encoder | None
    ) -> list[list[Volume]]:
        """The volumes of each crop's channels, one list a volume."""
        behind = [background] if isinstance(background, Volume) else background
        check_one_each(self.volumes, {"background": behind})
        channels = (1 if behind is None else 2) if model is None else model.config.architecture.channels
        name = "the data set" if model is None else model.name
        return [
            input_channels(name, channels, volume, None if behind is None else behind[number])
            for number, volume in enumerate(self.volumes)
        ]

    def _reader(self, number: int, channel: int) -> CropReader:
        if os.getpid() != self._process:
            raise CanvasError(
                "a forked process cannot read the volumes that its parent opened; give the loader "
                "multiprocessing_context='forkserver' (or 'spawn')"
            )
        key = number, channel
        if key not in self._readers:
            self._readers[key] = CropReader(
                self.channels[number][channel],
                self.crop_zyx,
                cache_bytes=self.cache_bytes // sum(map(len, self.channels)),
                resample_to_um=self.resample_to[number],
            )
        return self._readers[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._process = os.getpid()


class CropStream(IterableDataset[Item]):
    """The items of a `CropDataset` in blocks of neighbours, each chunk decoded few times.

    With `shuffle` the blocks come in an order drawn by `seed` and epoch (`set_epoch`), and rows are mixed
    within eight blocks. Workers, and the ranks of a distributed training, each take a part; ranks get
    equally many, the last ones again some of the first as in torch's `DistributedSampler`. `rank` and `world`
    are by default those of the running process group. With `batch` it gives whole batches, crops (b, c, z,
    y, x) and targets (b,), for `DataLoader(stream, batch_size=None)`: what takes the loader least.
    """

    def __init__(
        self,
        crops: CropDataset,
        shuffle: bool,
        seed: int,
        block: int,
        batch: int | None,
        rank: int | None,
        world: int | None,
    ) -> None:
        for name, value in (("block", block), ("batch", batch)):
            if value is not None and value < 1:
                raise CanvasError(f"{name} is {value}; give at least 1 crop")
        self.batch = batch
        self.crops, self.shuffle, self.seed, self.block, self.epoch = crops, shuffle, seed, block, 0
        running = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = (torch.distributed.get_rank() if running else 0) if rank is None else rank
        self.world = (torch.distributed.get_world_size() if running else 1) if world is None else world
        if not 0 <= self.rank < self.world:
            raise CanvasError(f"rank is {self.rank} of {self.world}; give 0 to {self.world - 1}")

    def set_epoch(self, epoch: int) -> None:
        """Number of the pass over the data: another one has another order."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of this rank's items, or of its batches."""
        share = self._share
        return share if self.batch is None else -(-share // self.batch)

    @property
    def _share(self) -> int:
        return -(-len(self.crops) // self.world)

    def rows(self) -> Int64[np.ndarray, " n"]:
        """Rows of this rank in the order in which they are read, over all its workers."""
        parts = [
            first + chunk_order(starts, volume.chunk_zyx)
            for first, starts, volume in zip(
                self.crops.first_rows.tolist(), self.crops.starts_zyx, self.crops.volumes, strict=False
            )
        ]
        order = np.concatenate(parts)
        if self.shuffle:
            random = np.random.default_rng([self.seed, self.epoch])
            blocks = np.array_split(order, max(1, -(-len(order) // self.block)))
            order = np.concatenate([blocks[number] for number in random.permutation(len(blocks))])
            size = _MIXED * self.block
            order = np.concatenate(
                [random.permutation(order[at : at + size]) for at in range(0, len(order), size)]
            )
        share = self._share
        return np.resize(order, share * self.world)[self.rank * share : (self.rank + 1) * share]

    def __iter__(self) -> Iterator[Item]:
        rows, worker, size = self.rows(), get_worker_info(), self.batch or 1
        starts = np.arange(0, len(rows), size)
        if worker is not None:
            starts = np.array_split(starts, worker.num_workers)[worker.id]
        if not len(starts):
            return
        for index, crops in self._read_together(rows[starts[0] : starts[-1] + size]):
            targets = self.crops.targets[index].tolist()
            if self.batch is None:
                tensors = (torch.from_numpy(crop.copy()) for crop in crops)
                yield from zip(map(self._transformed, tensors), targets, strict=True)
            else:
                for at in range(0, len(index), size):
                    batch = _for_the_training(crops[at : at + size])
                    if self.crops.transform is not None:
                        batch = default_collate([self._transformed(crop) for crop in batch])
                    yield batch, default_collate(targets[at : at + size])

    def _transformed(self, crop: Float[Tensor, "c z y x"]) -> Any:
        return crop if self.crops.transform is None else self.crops.transform(crop)

    def _read_together(
        self, rows: Int64[np.ndarray, " n"]
    ) -> Iterator[tuple[Int64[np.ndarray, " b"], Float32[np.ndarray, "b c z y x"]]]:
        """Rows and their crops, several batches at once: what they share of a chunk is then copied together.

        The crops are those of one buffer, which the next ones overwrite.
        """
        unit = self.batch or self.block
        most = min(_MIXED * self.block, _TOGETHER // (4 * math.prod(self.crops.crop_shape)))
        size = min(max(most // unit, 1) * unit, len(rows))
        buffer = np.empty((size, *self.crops.crop_shape), np.float32)
        for at in range(0, len(rows), size):
            index = rows[at : at + size]
            self.crops.read_into(buffer[: len(index)], index)
            yield index, buffer[: len(index)]


def _for_the_training(crops: Float32[np.ndarray, "b c z y x"]) -> Float[Tensor, "b c z y x"]:
    """A tensor of its own; in a worker in shared memory at once, where torch would copy it to on its way."""
    if get_worker_info() is None:
        return torch.from_numpy(crops.copy())
    like = torch.empty(0)
    storage = like._typed_storage()._new_shared(crops.size)  # as torch's own `default_collate` does
    tensor = like.new(storage).resize_(crops.shape)
    tensor.numpy()[:] = crops
    return tensor
