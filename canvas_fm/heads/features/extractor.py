"""Features of a volume's candidates: embedding, the detector's pooled map and logit, shape, amplitude."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from canvas_fm.data.crops.reader import CropReader, chunk_order, crop_starts
from canvas_fm.data.points.points import as_zyx, check_inside
from canvas_fm.data.volume.volume import Volume, Zyx
from canvas_fm.data.volume.window import WindowRule
from canvas_fm.errors import BadInput
from canvas_fm.heads.features.amplitude import SpotAmplitude
from canvas_fm.heads.features.detector_columns import Blocks, DetectorColumns
from canvas_fm.heads.features.feature_set import (
    AMPLITUDE,
    DETECTOR,
    MAE,
    SHAPE,
    FeatureSet,
    Provenance,
    beside,
)
from canvas_fm.heads.features.shape import feature_names, shape_crop, shape_of_points
from canvas_fm.inference.detect.detect import TILE_ZYX
from canvas_fm.inference.detect.detector_features import MapPooling
from canvas_fm.inference.detect.typical_amplitude import TypicalAmplitude
from canvas_fm.inference.embed.embed import embed
from canvas_fm.inference.embed.encoder_runner import INT8, Runner
from canvas_fm.inference.embed.point_crops import PointCrops, volume_identity
from canvas_fm.inference.input_checks import input_channels
from canvas_fm.models.device import pick_device, resolved_precision
from canvas_fm.models.encoder.vit import DENSE, POOLS
from canvas_fm.models.load_model import Detector, Encoder

CROP_ZYX: Zyx = (16, 32, 32)  # where there is no encoder whose crop could be taken


@dataclass(frozen=True)
class Extractor:
    """Models and settings that compute features: `detector`, `heat`, `mae`, `shape`, `amplitude`, in order.

    `pool` (None: the encoder's own), `layer` (None: the last) and `backend` are the encoder's, and so is
    precision int8, beside which a detector works in fp32. The detector's map is
    pooled over the encoder's crop, else over `crop_zyx`, in `bins` parts an axis; with `detector_score` its
    logit at each candidate is a block of one column, with `brightness` in it as in its detections.
    `shape` is the window in which intensity, contrast and shape of the spot are measured, `amplitude` how its
    amplitude is: blocks that need no model (None: without it).
    """

    encoder: Encoder | None = None
    detector: Detector | None = None
    pool: str | None = None
    layer: int | None = None
    crop_zyx: Zyx | None = None
    bins: int = 2
    detector_score: bool = False
    brightness: bool = False
    shape: WindowRule | None = None
    amplitude: SpotAmplitude | None = None
    batch: int = 64
    device: str = "auto"
    precision: str = "auto"
    backend: str = "torch"
    resample: bool = False
    ignore_voxel_size: bool = False

    def __post_init__(self) -> None:
        if all(block is None for block in (self.encoder, self.detector, self.shape, self.amplitude)):
            raise BadInput("features need an encoder, a detector or both, shape or amplitude; none was given")
        if (self.detector_score or self.brightness) and self.detector is None:
            raise BadInput("the detector score needs a detector; give one, or leave detector_score out")
        if self.pool in DENSE:
            raise BadInput(f"pool is {self.pool!r}, a vector for each patch; give one of {', '.join(POOLS)}")
        resolved = resolved_precision(self.precision, pick_device(self.device))
        object.__setattr__(self, "precision", resolved)  # what is recorded, and that of every worker
        _ = self.columns  # which checks what is asked of the detector

    @property
    def provenance(self) -> dict[str, Provenance]:
        """Model and settings of each block."""
        provenance = {} if self.columns is None else self.columns.provenance
        if self.encoder is not None:
            config = self.encoder.config
            settings: dict[str, Any] = {
                "pool": self.pool or config.pool,
                "layer": config.architecture.depth if self.layer is None else self.layer,
            }
            provenance[MAE] = Provenance(self.encoder.name, self.encoder.sha256, settings)
        if self.shape is not None:
            provenance[SHAPE] = Provenance("shape features", "", {"shape": asdict(self.shape)})
        if self.amplitude is not None:
            provenance[AMPLITUDE] = Provenance("spot amplitude", "", {AMPLITUDE: asdict(self.amplitude)})
        return provenance

    @property
    def layout(self) -> dict[str, slice]:
        """Columns of each block, without computing features."""
        sizes = {} if self.columns is None else self.columns.sizes
        if self.encoder is not None:
            sizes[MAE] = self.encoder.dim
        if self.shape is not None:
            sizes[SHAPE] = len(feature_names())
        if self.amplitude is not None:
            sizes[AMPLITUDE] = 1
        ends = accumulate(sizes.values(), initial=0)
        return {name: slice(*part) for name, part in zip(sizes, pairwise(ends), strict=True)}

    def features(
        self,
        volume: Volume,
        points_zyx: Float64[np.ndarray, "n 3"],
        *,
        group: str | None = None,
        background: Volume | None = None,
        reader: CropReader | None = None,
        detector_maps: Float32[np.ndarray, "n d"] | None = None,
        typical: TypicalAmplitude | None = None,
        show: bool | None = None,
    ) -> FeatureSet:
        """Features (n, d) of points of one volume, in the order of the points; 4·n·d bytes of memory.

        `group` is the brain's name, by default the volume's. `detector_maps` are the columns of the
        detector's blocks where they are known, `typical` what brightness is compared with. Raises
        CanvasError for points outside the volume and ModelMismatch for another voxel size, unless `resample`
        or `ignore_voxel_size` were asked for.
        """
        zyx = as_zyx(points_zyx)
        check_inside(zyx, volume.shape_zyx)
        blocks: dict[str, Float32[np.ndarray, "n k"]] = {}
        if (columns := self.columns) is not None:
            blocks |= (
                self.detector_blocks(volume, zyx, background=background, typical=typical, show=show)
                if detector_maps is None
                else columns.blocks(detector_maps, zyx, typical)
            )
        if self.encoder is not None:
            behind = _seen_by(self.encoder, background)
            blocks[MAE] = embed(
                self.encoder, volume, zyx, pool=self.pool, layer=self.layer, batch=self.batch, reader=reader,
                precision=self.precision, backend=self.backend, background=behind, show=show, **self._running,
            )  # fmt: skip
        if self.shape is not None:
            blocks[SHAPE] = self.shape_of(volume, zyx)
        if self.amplitude is not None:
            blocks[AMPLITUDE] = self.amplitude.at(volume, zyx)
        return self.together(blocks, group or volume.name)

    def shape_of(self, volume: Volume, points_zyx: Float64[np.ndarray, "n 3"]) -> Float32[np.ndarray, "n k"]:
        """The shape block of `features` alone."""
        assert self.shape is not None
        return shape_of_points(volume, points_zyx, rule=self.shape)

    def detector_blocks(self, volume: Volume, points_zyx: Float64[np.ndarray, "n 3"], **how: Any) -> Blocks:
        """The detector's blocks of `features` only; options of `DetectorColumns.at`."""
        assert self.columns is not None
        return self.columns.at(volume, points_zyx, **how)

    @property
    def columns(self) -> DetectorColumns | None:
        """How the detector's blocks are made."""
        if self.detector is None:
            return None
        pooling = MapPooling(self._crop_zyx, self.bins, self.detector_score, self.brightness)
        precision = "fp32" if self.precision == INT8 else self.precision
        return DetectorColumns(self.detector, pooling, {"precision": precision, **self._running})

    def together(self, blocks: Mapping[str, Float32[np.ndarray, "n k"]], group: str) -> FeatureSet:
        """Combine blocks computed elsewhere by these models into features of one brain."""
        provenance = self.provenance
        return beside({name: (blocks[name], provenance[name]) for name in provenance}, group)

    @property
    def _running(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "resample": self.resample,
            "ignore_voxel_size": self.ignore_voxel_size,
        }

    def reader(self, volume: Volume) -> CropReader | None:
        """A chunk reader to share between calls of `features`."""
        if self.encoder is None:
            return None
        config = self.encoder.config
        return PointCrops.of_channel(
            config, volume, resample=self.resample, ignore_voxel_size=self.ignore_voxel_size
        ).reader

    def check(self, volume: Volume, background: Volume | None = None) -> None:
        """Raise the errors of `features` for this volume before any work."""
        self.reader(volume)
        if self.encoder is not None:
            Runner(self.encoder, self.pool, None, self.precision, self.layer, self.backend)
        models = [model for model in (self.encoder, self.detector) if model is not None]
        for model in models:
            channels = model.config.architecture.channels
            # A background that no model takes is refused by each; one of them may take it and another not.
            seen = _seen_by(model, background) if self.takes_background else background
            input_channels(model.name, channels, volume, seen)

    @property
    def takes_background(self) -> bool:
        """Whether encoder or detector take a background channel beside the volume."""
        models = [model for model in (self.encoder, self.detector) if model is not None]
        return any(model.config.architecture.channels == 2 for model in models)

    def blocks(
        self, volume: Volume, points_zyx: Float64[np.ndarray, "n 3"], rows: int
    ) -> list[Int64[np.ndarray, " m"]]:
        """Row indices in batches of about `rows`, arranged so that few chunks or tiles are processed twice.

        Neighbours in space come together; where there is a detector a block is made of whole tiles of it, as
        long as it does not grow beyond four times as many rows.
        """
        crop_zyx = self._crop_zyx if self.encoder or self.detector else shape_crop(volume.voxel_um)
        order = chunk_order(crop_starts(points_zyx, crop_zyx), volume.chunk_zyx)
        if self.detector is None:
            return np.split(order, range(rows, len(order), rows)) if len(order) else []
        ratio = np.ones(3)
        if self.resample:
            ratio = np.asarray(volume.voxel_um) / np.asarray(self.detector.config.voxel_um)
        tile = np.floor((points_zyx[order] + 0.5) * ratio / np.asarray(TILE_ZYX)).astype(np.int64)
        by_tile = np.lexsort(tile.T[::-1])
        order, tile = order[by_tile], tile[by_tile]
        ends = [*(np.flatnonzero((np.diff(tile, axis=0) != 0).any(axis=1)) + 1).tolist(), len(order)]
        batches, start = [], 0
        for end in ends:
            while end - start >= rows:
                stop = min(end, start + 4 * rows)
                batches.append(order[start:stop])
                start = stop
        if start < len(order):
            batches.append(order[start:])
        return batches

    def identity(self, volume: Volume, background: Volume | None = None) -> dict[str, Any]:
        """Identity of all inputs of a volume's features except the points."""
        rules = [model.config.window_rule for model in (self.encoder, self.detector) if model is not None]
        rules += [] if self.shape is None else [self.shape]
        rules += [] if self.amplitude is None else [self.amplitude.rule]
        volumes = [volume] if background is None else [volume, background]
        return {
            "made": {name: provenance.as_dict() for name, provenance in self.provenance.items()},
            "volume": volume_identity(volume),
            "background": None if background is None else volume_identity(background),
            "windows": [list(each.window_by(rule)) for each in volumes for rule in rules],
            "voxel_um": list(volume.voxel_um),
            "precision": self.precision,
            "resample": self.resample,
        }

    def alone(self) -> list[Extractor]:
        """One extractor for each model, over the same crop, and one for each block that needs none."""
        parts = []
        if self.detector is not None:
            parts.append(replace(self, encoder=None, crop_zyx=self._crop_zyx, shape=None, amplitude=None))
        if self.encoder is not None:
            parts.append(
                replace(
                    self, detector=None, detector_score=False, brightness=False, shape=None, amplitude=None
                )
            )
        if self.shape is not None:
            parts.append(Extractor(shape=self.shape))
        if self.amplitude is not None:
            parts.append(Extractor(amplitude=self.amplitude))
        return parts

    def of_block(self, name: str) -> Extractor:
        """The extractor of one block's model; the pooled map is the same with or without the score."""
        return replace(self, detector_score=False, brightness=False) if name == DETECTOR else self

    @property
    def _crop_zyx(self) -> Zyx:
        if self.crop_zyx is not None:
            return self.crop_zyx
        return CROP_ZYX if self.encoder is None else self.encoder.config.architecture.crop_zyx


def _seen_by(model: Encoder | Detector, background: Volume | None) -> Volume | None:
    return background if model.config.architecture.channels == 2 else None
