"""Cached activations of the frozen blocks: only the last blocks run in each step."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from canvas_fm.data.crops.reader import CropReader
from canvas_fm.data.zyx import match_voxel_um
from canvas_fm.errors import StorageFull
from canvas_fm.heads.labels.candidates import Candidates
from canvas_fm.inference.embed.point_crops import PointCrops
from canvas_fm.models.device import pick_device
from canvas_fm.models.load_model import Encoder
from canvas_fm.progress import Advance, bar
from canvas_fm.training.finetune.resnet_method import augmented

_CACHE_BYTES = 64 * 2**20  # of decoded chunks, for each volume


class FrozenTokens:
    """Input tokens of block number `block` for the candidates of all brains.

    They are kept as float16 in a temporary file that goes with this object: 50 kB a candidate for the paper's
    encoder, on the disk and not in memory.
    """

    def __init__(
        self,
        encoder: Encoder,
        brains: Sequence[Candidates],
        block: int,
        *,
        batch: int = 64,
        device: str = "auto",
        resample: bool = False,
        ignore_voxel_size: bool = False,
    ) -> None:
        self.encoder, self.block, self._batch = encoder.to(pick_device(device)), block, batch
        config = encoder.config
        self._sources = []
        for brain in brains:
            to_um = match_voxel_um(
                brain.volume, config.voxel_um, resample=resample, ignore_voxel_size=ignore_voxel_size
            )
            crop_zyx = config.architecture.crop_zyx
            reader = CropReader(brain.volume, crop_zyx, resample_to_um=to_um, cache_bytes=_CACHE_BYTES)
            source = PointCrops.of(
                config, brain.volume, resample=resample, ignore_voxel_size=ignore_voxel_size, reader=reader
            )
            self._sources.append(source)
        self._zyx = [brain.zyx for brain in brains]
        self._starts = np.cumsum([0, *map(len, brains)])
        shape = (int(self._starts[-1]), config.architecture.tokens + 1, config.architecture.dim)
        with tempfile.TemporaryFile() as file:  # without a name, there for as long as it is mapped
            self._kept = np.memmap(file, np.float16, "w+", shape=shape)
        self._known = np.zeros(shape[0], bool)

    def fill(self, rows: Int64[np.ndarray, " m"], show: bool | None = None) -> None:
        """Compute the missing tokens of these rows."""
        lacking = np.unique(rows[~self._known[rows]])
        if len(lacking):
            _check_room(len(lacking) * self._kept[0].nbytes)
            with bar("embedding", len(lacking), unit="crops", show=show) as advance:
                self._fill(lacking, advance)

    def __call__(self, rows: Int64[np.ndarray, " m"]) -> Float[Tensor, "m s d"]:
        """Tokens of some rows, in that order."""
        self.fill(rows, show=False)
        return torch.from_numpy(self._kept[rows]).to(self.encoder.device).float()

    def turned(self, rows: Int64[np.ndarray, " m"], generator: torch.Generator) -> Float[Tensor, "m s d"]:
        """Tokens of randomly augmented crops, not cached."""
        crops = np.empty((len(rows), *self.encoder.config.architecture.crop_zyx), np.float32)
        for source, zyx, index in self._by_brain(rows):
            for within, batch in source.batches(zyx, len(zyx)):
                crops[index[within]] = batch[:, 0]
        views = augmented(torch.from_numpy(crops), generator).to(self.encoder.device)
        with torch.no_grad():
            return self.encoder.net.before(views, self.block)

    @torch.inference_mode()
    def _fill(self, rows: np.ndarray, advance: Advance) -> None:
        for source, zyx, index in self._by_brain(rows):
            for within, crops in source.batches(zyx, self._batch):
                batch = torch.from_numpy(np.ascontiguousarray(crops)).to(self.encoder.device)
                self._kept[rows[index[within]]] = self.encoder.net.before(batch, self.block).half().cpu()
                advance(len(within))
        self._known[rows] = True

    def _by_brain(self, rows: np.ndarray) -> list[tuple[PointCrops, np.ndarray, np.ndarray]]:
        """For each volume its crop source, positions, and the indices of `rows` that belong to it."""
        by_brain = []
        for number, source in enumerate(self._sources):
            start, stop = self._starts[number], self._starts[number + 1]
            index = np.flatnonzero((rows >= start) & (rows < stop))
            if len(index):
                by_brain.append((source, self._zyx[number][rows[index] - start], index))
        return by_brain


def _check_room(needed: int) -> None:
    """Check free disk space: a memory-mapped file on a full disk would kill the process."""
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < needed:
        raise StorageFull(
            f"what enters the unfrozen blocks takes {needed / 1e9:,.1f} GB in {tempfile.gettempdir()}, which "
            f"has {free / 1e9:,.1f} GB left",
            then="run the same command again, or let TMPDIR name another folder",
        )
