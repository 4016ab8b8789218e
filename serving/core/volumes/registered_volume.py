"""Registered volumes: as they are looked at, and as one encoder reads them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
from jaxtyping import Float32, Float64, Int64

from canvas_fm.data.volume.volume import Volume, Window, Zyx
from canvas_fm.inference.embed.point_crops import PointCrops, volume_identity, windowed_box
from canvas_fm.inference.input_checks import check_points
from canvas_fm.models.load_model import Encoder
from serving.protocol.request_values import ParsedRows
from serving.protocol.schemas import VolumeInfo
from serving.protocol.settings import ServiceSettings


class RegisteredVolume:
    """A volume by name, with the intensity window through which it is looked at."""

    def __init__(self, name: str, volume: Volume, window: Window) -> None:
        self.name, self.volume, self.window = name, volume, window

    def check(self, points_zyx: ParsedRows) -> Float64[np.ndarray, "n 3"]:
        """The library's own check of points."""
        return check_points(points_zyx, self.volume.shape_zyx)

    def box(self, point_zyx: Float64[np.ndarray, " 3"], size_zyx: Zyx) -> Float32[np.ndarray, "z y x"]:
        """Voxels around a point after the window, never resampled; 0 outside the volume and for NaN."""
        return windowed_box(self.volume, self.window, point_zyx, size_zyx)

    @cached_property
    def identity(self) -> str:
        """A hash over what the volume holds, as embeddings carry it; slow for foreign stores."""
        return volume_identity(self.volume)

    def info(self) -> VolumeInfo:
        return VolumeInfo(
            shape_zyx=self.volume.shape_zyx,
            voxel_um=self.volume.voxel_um,
            window=self.window,
            marker=self.volume.marker,
            t=self.volume.options["t"],
            c=self.volume.options["c"],
            bad_chunks=len(self.volume.bad_chunks),
        )


class HostedVolume(RegisteredVolume):
    """A registered volume read and windowed as `canvas_fm.embed` does for one encoder."""

    def __init__(self, name: str, volume: Volume, encoder: Encoder, settings: ServiceSettings) -> None:
        self._source = PointCrops.of(
            encoder.config, volume, resample=settings.resample, ignore_voxel_size=settings.ignore_voxel_size
        )
        super().__init__(name, volume, self._source.window)

    def batches(
        self, points_zyx: Float64[np.ndarray, "n 3"], batch: int
    ) -> Iterator[tuple[Int64[np.ndarray, " b"], Float32[np.ndarray, "b 1 z y x"]]]:
        """(rows of `points_zyx`, their crops after the window), in the order of the chunks."""
        return self._source.batches(points_zyx, batch)
