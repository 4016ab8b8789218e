"""Windowed crops around points of one volume, in chunk order."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from jaxtyping import Float, Float32, Int64, Num

from canvas_fm.data.crops.reader import CropReader, chunk_order, crop_starts
from canvas_fm.data.store.checked_store import MANIFEST
from canvas_fm.data.store.keys import METADATA
from canvas_fm.data.store.remote.remote_store import Remote
from canvas_fm.data.volume.volume import Volume, Zyx, ZyxUm
from canvas_fm.data.volume.window import Window
from canvas_fm.data.zyx import match_voxel_um
from canvas_fm.errors import CanvasError
from canvas_fm.inference.input_checks import input_channels

if TYPE_CHECKING:
    from canvas_fm.models.load_model import ModelConfig

T = TypeVar("T")


@dataclass(frozen=True)
class PointCrops:
    """Windowed crops around points of one volume, as one encoder's input.

    With `background` they have a second channel, read at the same points and through its own window.
    """

    volume: Volume
    reader: CropReader
    window: Window
    resample_to_um: ZyxUm | None
    background: PointCrops | None = None

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        volume: Volume,
        *,
        resample: bool,
        ignore_voxel_size: bool,
        background: Volume | None = None,
        reader: CropReader | None = None,
    ) -> PointCrops:
        """Open for a volume; ModelMismatch for another voxel size, CanvasError for too large a crop.

        So it does where the encoder takes a `background` and there is none, or the other way round. `reader`
        is one of the volume itself, kept from an earlier call.
        """
        signal, *behind = input_channels("the encoder", config.architecture.channels, volume, background)
        opened = [
            cls.of_channel(config, each, resample=resample, ignore_voxel_size=ignore_voxel_size)
            for each in behind
        ]
        source = cls.of_channel(
            config, signal, resample=resample, ignore_voxel_size=ignore_voxel_size, reader=reader
        )
        return replace(source, background=opened[0]) if opened else source

    @classmethod
    def of_channel(
        cls,
        config: ModelConfig,
        volume: Volume,
        *,
        resample: bool,
        ignore_voxel_size: bool,
        reader: CropReader | None = None,
    ) -> PointCrops:
        """Open for one channel of the encoder's input."""
        target_um = match_voxel_um(
            volume, config.voxel_um, resample=resample, ignore_voxel_size=ignore_voxel_size
        )
        crop_zyx = config.architecture.crop_zyx
        _check_crop_fits(volume, crop_zyx, target_um)
        if reader is None:
            reader = CropReader(volume, crop_zyx, resample_to_um=target_um)
        return cls(volume, reader, volume.window_by(config.window_rule), target_um)

    @property
    def bad_chunks(self) -> list[str]:
        """Messages of the damaged chunks that were read as zeros so far, of both channels."""
        return [*self.volume.bad_chunks, *([] if self.background is None else self.background.bad_chunks)]

    def order(self, points_zyx: Float[np.ndarray, "n 3"]) -> Int64[np.ndarray, " n"]:
        """Row indices in reading order: spatial neighbours together."""
        return chunk_order(crop_starts(points_zyx, self.reader.box_zyx), self.volume.chunk_zyx)

    def batches(
        self, points_zyx: Float[np.ndarray, "n 3"], batch: int
    ) -> Iterator[tuple[Int64[np.ndarray, " b"], Float32[np.ndarray, "b c z y x"]]]:
        """Row indices and windowed crops (b, c, z, y, x), in chunk order of the signal."""
        for rows, crops in self.reader.batches_points(points_zyx, batch):
            windowed = self._windowed(crops, points_zyx[rows])
            if self.background is not None:
                behind, points = self.background, points_zyx[rows]
                other = behind._windowed(behind.reader.read_points(points), points)
                windowed = np.concatenate([windowed, other], axis=1)
            yield rows, windowed

    def _windowed(
        self, crops: Num[np.ndarray, "b z y x"], points_zyx: Float[np.ndarray, "b 3"]
    ) -> Float32[np.ndarray, "b 1 z y x"]:
        if crops.dtype.kind == "f" and not np.isfinite(crops).all():
            place = points_zyx[~np.isfinite(crops).all(axis=(1, 2, 3))][0]
            raise CanvasError(
                f"{self.volume.path} holds NaN or infinite values around z, y, x = "
                f"{', '.join(f'{value:g}' for value in place)}; the encoder cannot take them"
            )
        return self.window.apply(crops)[:, None]

    def blocks(
        self,
        points_zyx: Float[np.ndarray, "n 3"],
        blocks: Iterable[tuple[int, Int64[np.ndarray, " rows"]]],
        batch: int,
    ) -> Iterator[tuple[int, Iterator[tuple[Int64[np.ndarray, " b"], Float32[np.ndarray, "b c z y x"]]]]]:
        """For each block of rows its batches: indices within the block, crops.

        What comes next is read while the last batch is used, across blocks as well.
        """
        batches = (
            (block, within, crops)
            for block, rows in blocks
            for within, crops in self.batches(points_zyx[rows], batch)
        )
        for block, parts in groupby(ahead(batches), key=itemgetter(0)):
            yield block, ((within, crops) for _, within, crops in parts)


def windowed_box(
    volume: Volume, window: Window, point_zyx: Float[np.ndarray, " 3"], size_zyx: Zyx
) -> Float32[np.ndarray, "z y x"]:
    """Windowed voxels around a point, never resampled; 0 outside the volume and for NaN."""
    (start,) = crop_starts(point_zyx[None], size_zyx)
    voxels = volume.read((int(start[0]), int(start[1]), int(start[2])), size_zyx)
    return np.nan_to_num(window.apply(voxels), copy=False)


def volume_identity(volume: Volume) -> str:
    """Hash of a volume's contents: its manifest, else name, size and time of each file.

    A remote store without a manifest cannot be listed: its address and its metadata stand for it.
    """
    if volume.array is not None:
        return volume.array.sha256()
    manifest = volume.path / MANIFEST
    digest = hashlib.sha256(json.dumps([volume.options["t"], volume.options["c"]]).encode())
    if volume.remote is not None:
        digest.update(volume.remote.read(MANIFEST) or _address_and_metadata(volume, volume.remote))
        return digest.hexdigest()
    if volume.checksums and manifest.is_file():
        digest.update(manifest.read_bytes())
        return digest.hexdigest()
    inside = volume.path.rglob("*") if volume.path.is_dir() else [volume.path]
    for path in sorted(path for path in inside if path.is_file()):
        stat = path.stat()
        line = [path.relative_to(volume.path).as_posix(), stat.st_size, stat.st_mtime_ns]
        digest.update(json.dumps(line).encode())
    return digest.hexdigest()


def _address_and_metadata(volume: Volume, files: Remote) -> bytes:
    contents = [files.read(name) or b"" for name in METADATA]
    return json.dumps([str(files), *(zlib.crc32(content) for content in contents), volume.shape_zyx]).encode()


def _check_crop_fits(volume: Volume, crop_zyx: Zyx, resample_to_um: ZyxUm | None) -> None:
    scale = np.ones(3) if resample_to_um is None else np.asarray(resample_to_um) / np.asarray(volume.voxel_um)
    size = np.asarray(crop_zyx) * scale
    if (np.floor(size) > np.asarray(volume.shape_zyx)).any():
        covers = " × ".join(f"{value:.4g}" for value in size)
        raise CanvasError(
            f"the encoder's crop covers {covers} voxels (z × y × x) and is larger than {volume.path}, "
            f"which has {' × '.join(map(str, volume.shape_zyx))}"
        )


def ahead(items: Iterator[T]) -> Iterator[T]:
    """Iterate with one item prefetched in a thread."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item
