"""Fixed crop sets drawn by seed, read in chunk order, resident on the device or streamed."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from canvas_fm.data.crops.crop_positions import draw_starts
from canvas_fm.data.crops.reader import CropReader
from canvas_fm.data.volume.levels.resample import Resampler
from canvas_fm.data.volume.volume import Volume, Zyx, ZyxUm
from canvas_fm.data.volume.window import WindowRule
from canvas_fm.progress import bar
from canvas_fm.training.mae.augment import widen
from canvas_fm.training.run.batch_order import Batches, CropIndices

_CACHE = 512 * 2**20
_AHEAD = 4  # batches that the reading thread may be ahead

Starts = Int64[np.ndarray, "_ 3"]
# Crops (b, z, y, x) as stored and windows (b, 2) as low and 1 / (high − low); of several channels
# (b, c, z, y, x) and (b, c, 2).
RawBatch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class VolumeSource:
    """A volume as source of crops, with its background channel where it has one.

    `resample_to` reads them at another voxel size.
    """

    name: str
    volume: Volume
    resample_to: ZyxUm | None = None
    background: Volume | None = None

    def draw(self, crop_zyx: Zyx, n: int, foreground: float, seed: int) -> Starts:
        """First voxels of random crops inside the volume, a share `foreground` of them on signal."""
        return draw_starts(self.volume, self.box_zyx(crop_zyx), n, foreground=foreground, seed=seed)

    def box_zyx(self, crop_zyx: Zyx) -> Zyx:
        """Extent of one crop in the volume's own voxels."""
        if self.resample_to is None:
            return crop_zyx
        return Resampler(crop_zyx, self.volume.voxel_um, self.resample_to).box_zyx

    def identity(self, rule: WindowRule) -> dict[str, Any]:
        """Identity of the volume, independent of its path."""
        volume, window = self.volume, self.volume.window_by(rule)
        behind = self.of_background
        return {
            "name": self.name,
            "marker": volume.marker,
            "shape_zyx": list(volume.shape_zyx),
            "voxel_um": list(volume.voxel_um),
            "dtype": str(volume.dtype),
            "window": [float(window.low), float(window.high)],
            **({} if volume.crop_of is None else {"crop_of": volume.crop_of}),
            **({} if behind is None else {"background": behind.identity(rule)}),
        }

    @property
    def of_background(self) -> VolumeSource | None:
        """The background channel as a source of the same crops."""
        return None if self.background is None else VolumeSource(self.name, self.background, self.resample_to)

    def reader(self, crop_zyx: Zyx, cache_bytes: int) -> CropReader:
        """Reader of crops at given first voxels."""
        return CropReader(self.volume, crop_zyx, cache_bytes=cache_bytes, resample_to_um=self.resample_to)


class CropSet:
    """A fixed list of crops: row → volume and first voxel; `background` are those of the second channel."""

    def __init__(
        self,
        sources: Sequence[VolumeSource],
        starts_zyx: Sequence[Starts],
        crop_zyx: Zyx,
        rule: WindowRule,
    ) -> None:
        self.sources, self.starts_zyx, self.crop_zyx = list(sources), list(starts_zyx), crop_zyx
        self.rule = rule
        self.counts = [len(starts) for starts in starts_zyx]
        self.first_rows = np.concatenate([[0], np.cumsum(self.counts)])
        volume_windows = [source.volume.window_by(rule) for source in sources]
        scales = [(window.low, 1.0 / (window.high - window.low)) for window in volume_windows]
        self.windows = np.repeat(np.asarray(scales, np.float32), self.counts, axis=0)
        narrow = all(
            source.volume.dtype in (np.uint8, np.uint16) and source.resample_to is None for source in sources
        )
        self.dtype = np.dtype(np.uint16 if narrow else np.float32)
        behind = [source.of_background for source in sources if source.of_background is not None]
        assert len(behind) in (0, len(sources))
        self.background = CropSet(behind, starts_zyx, crop_zyx, rule) if behind else None

    def __len__(self) -> int:
        return int(self.first_rows[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of all crops of this channel as stored."""
        return len(self) * int(np.prod(self.crop_zyx)) * self.dtype.itemsize

    def read_channels(self, *, label: str = "", show: bool | None = None) -> RawBatch:
        """All crops with their windows, of every channel."""
        signal = self.read(label=label, show=show), torch.from_numpy(self.windows)
        if self.background is None:
            return signal
        return stacked([signal, self.background.read_channels(label=f"{label}, background", show=show)])

    def identity(self) -> list[dict[str, Any]]:
        """Identity of the crops: per volume name, size, window and positions."""
        return [
            source.identity(self.rule)
            | {
                "crops": len(starts),
                "starts_sha256": hashlib.sha256(np.ascontiguousarray(starts).tobytes()).hexdigest(),
            }
            for source, starts in zip(self.sources, self.starts_zyx, strict=True)
        ]

    def read(self, *, label: str = "", show: bool | None = None) -> Tensor:
        """All crops (n, z, y, x), each chunk decoded once; uint16 as int16 of the same bits."""
        crops = np.empty((len(self), *self.crop_zyx), self.dtype)
        with bar(label, len(self), unit="crops", show=show) as advance:
            for source, starts, first in zip(self.sources, self.starts_zyx, self.first_rows, strict=False):
                for rows, read in source.reader(self.crop_zyx, _CACHE).batches(starts, 256):
                    crops[first + rows] = read
                    advance(len(rows))
        return as_tensor(crops)


class Resident:
    """All crops resident on the device."""

    def __init__(self, crops: CropSet, device: torch.device, show: bool | None = None) -> None:
        self.crops = crops.read(label="reading crops", show=show).to(device)
        self.windows = torch.from_numpy(crops.windows).to(device)

    def along(self, order: Iterator[CropIndices], first: int = 0) -> Generator[RawBatch]:
        for rows in order:
            index = torch.from_numpy(rows).to(self.crops.device)
            yield self.crops[index], self.windows[index]


class Streamed:
    """Crops prefetched from the volumes by a thread, a few batches ahead."""

    def __init__(self, crops: CropSet, device: torch.device) -> None:
        self.crops, self.device = crops, device
        share = _CACHE // len(crops.sources)
        self._readers = [source.reader(crops.crop_zyx, share) for source in crops.sources]

    def along(self, order: Iterator[CropIndices], first: int = 0) -> Generator[RawBatch]:
        ready: queue.Queue[RawBatch | BaseException | None] = queue.Queue(_AHEAD)
        stopped = threading.Event()

        def put(item: RawBatch | BaseException | None) -> None:
            while not stopped.is_set():
                try:
                    return ready.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def run() -> None:
            try:
                for rows in order:
                    if stopped.is_set():
                        return
                    put(self._read(rows))
                put(None)
            except BaseException as problem:  # noqa: BLE001  (it is raised again where the batch is taken)
                put(problem)

        thread = threading.Thread(target=run, name="canvas-fm-crops", daemon=True)
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item[0].to(self.device), item[1].to(self.device)
        finally:
            stopped.set()
            thread.join()

    def _read(self, rows: CropIndices) -> RawBatch:
        crops = np.empty((len(rows), *self.crops.crop_zyx), self.crops.dtype)
        home = np.searchsorted(self.crops.first_rows, rows, side="right") - 1
        for volume_index in np.unique(home):
            batch_rows = np.flatnonzero(home == volume_index)
            starts = self.crops.starts_zyx[volume_index][
                rows[batch_rows] - self.crops.first_rows[volume_index]
            ]
            crops[batch_rows] = self._readers[volume_index].read(starts)
        return as_tensor(crops), torch.from_numpy(self.crops.windows[rows])


class Channels:
    """The same crops of several channels, read side by side."""

    def __init__(self, channels: Sequence[Batches]) -> None:
        self.channels = channels

    def along(self, order: Iterator[CropIndices], first: int = 0) -> Generator[RawBatch]:
        sets = list(order)  # every channel goes along it, some in a thread of their own
        with ExitStack() as stack:
            streams = [stack.enter_context(closing(each.along(iter(sets), first))) for each in self.channels]
            for parts in zip(*streams, strict=True):
                yield stacked([(raw, windows) for raw, windows in parts])


def stacked(channels: Sequence[RawBatch]) -> RawBatch:
    """Crops (b, c, z, y, x) and windows (b, c, 2) of the crops of each channel."""
    crops = [crops for crops, _ in channels]
    if len({each.dtype for each in crops}) > 1:  # int16 has the bits of uint16
        crops = [widen(each) for each in crops]
    return torch.stack(crops, dim=1), torch.stack([windows for _, windows in channels], dim=1)


def take(crops: CropSet, device: torch.device, resident_gb: float, show: bool | None = None) -> Batches:
    """Crops resident on the device if they fit in so many gigabytes, else streamed; same values."""
    if crops.background is not None:
        both = [_of_channel(each, device, resident_gb / 2, show) for each in (crops, crops.background)]
        return Channels(both)
    return _of_channel(crops, device, resident_gb, show)


def _of_channel(crops: CropSet, device: torch.device, resident_gb: float, show: bool | None) -> Batches:
    if crops.nbytes <= resident_gb * 1e9:
        return Resident(crops, device, show)
    return Streamed(crops, device)


def draw_crops(
    sources: Sequence[VolumeSource], crop_zyx: Zyx, n: int, *, foreground: float, seed: int, rule: WindowRule
) -> CropSet:
    """`n` crops, an equal share of every volume, a share `foreground` of them on signal."""
    starts = []
    for source, share, own_seed in shares(sources, n, seed):
        starts.append(source.draw(crop_zyx, share, foreground, own_seed))
    return CropSet(sources, starts, crop_zyx, rule)


def shares(sources: Sequence[VolumeSource], n: int, seed: int) -> Iterator[tuple[VolumeSource, int, int]]:
    """Each volume with its share of `n` crops, the first ones one more, and its own seed."""
    for index, source in enumerate(sources):
        share = n // len(sources) + (index < n % len(sources))
        yield source, share, int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


def as_tensor(crops: Float32[np.ndarray, "n z y x"] | np.ndarray) -> Tensor:
    """Zero-copy tensor; uint16 as int16 of the same bits, which torch can index on every device."""
    return torch.from_numpy(crops.view(np.int16) if crops.dtype == np.uint16 else crops)
