"""P(cell) of a volume's candidates block by block, in this process or by Dask workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, Int64

from canvas_fm.data.crops.reader import CropReader
from canvas_fm.data.volume.volume import Volume
from canvas_fm.heads.features.candidate_score import with_candidate_score
from canvas_fm.heads.features.extractor import Extractor
from canvas_fm.heads.features.feature_set import CANDIDATE_SCORE, FeatureSet, Moments
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.inference.detect.tiles.resumable_tiles import ResumableTiles
from canvas_fm.inference.detect.typical_amplitude import TypicalAmplitude
from canvas_fm.prepare.workers.dask_workers import map_tiles
from canvas_fm.progress import bar

BLOCK = 4096  # candidates that a kill can cost
SAMPLE = 20_000  # candidates by which a brain is corrected, drawn with a fixed seed where there are more


@runtime_checkable
class DetectorMaps(Protocol):
    """Protocol: the detector's features of candidates, kept since they were detected; picklable."""

    def blocks(self, rows: int) -> list[Int64[np.ndarray, " m"]]:
        """Row indices in batches of about `rows` whose features are stored together."""
        ...

    def features(self, rows: Int64[np.ndarray, " m"]) -> Float32[np.ndarray, "m d"]:
        """Columns of the extractor's detector blocks, side by side."""
        ...


class ScoredBlock(NamedTuple):
    """P(cell) of a block's rows, and of each volume the damaged chunks that were read as zeros."""

    rows: Int64[np.ndarray, " m"]
    p_cell: Float64[np.ndarray, " m"]
    bad_chunks: tuple[tuple[str, ...], ...]


@dataclass
class CandidateClassifier:
    """A refiner on the candidates of one volume; picklable, with a block of candidates as its tile.

    `maps` are the detector's features where they are known already, `typical` what brightness is compared
    with; without them they are computed.
    """

    refiner: Refiner
    extractor: Extractor
    volume: Volume
    background: Volume | None
    zyx: Float64[np.ndarray, "n 3"]
    score: Float32[np.ndarray, "n 1"] | None
    maps: DetectorMaps | None = None
    typical: TypicalAmplitude | None = None
    blocks: list[Any] = field(init=False)
    _moments: Moments | None = field(init=False, default=None)
    _reader: CropReader | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.blocks = (
            self.extractor.blocks(self.volume, self.zyx, BLOCK)
            if self.maps is None
            else self.maps.blocks(BLOCK)
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_reader": None}  # its threads and decoded chunks stay here

    def tile(self, number: int) -> ScoredBlock:
        """P(cell) of one block."""
        rows = self.blocks[number]
        p = self.refiner.predict_proba(self._features(rows), moments=self._moments)[:, 1]
        return ScoredBlock(rows, p, tuple(tuple(volume.bad_chunks) for volume in self._volumes))

    def all(
        self, numbers: Sequence[int], *, workers: int = 1, scheduler: str | None = None, show: bool | None
    ) -> Iterator[tuple[int, ScoredBlock]]:
        """Blocks as they are done."""
        done = len(self.zyx) - sum(len(self.blocks[number]) for number in numbers)
        if len(numbers) and self.typical is None:
            self.typical = self._compared(workers=workers, scheduler=scheduler, show=show)
        if len(numbers) and self.refiner.correction != "none" and self._moments is None:
            self._moments = self._measure()
        with bar("refining", len(self.zyx), unit="candidates", done=done, show=show) as advance:
            for number, scored in map_tiles(self, numbers, workers=workers, scheduler=scheduler):
                self._add_bad_chunks(scored.bad_chunks)
                advance(len(scored.rows))
                yield number, scored

    def resumed(
        self,
        work: ResumableTiles,
        *,
        prefix: str = "",
        workers: int = 1,
        scheduler: str | None = None,
        show: bool | None = None,
    ) -> Float32[np.ndarray, " n"]:
        """P(cell) of all candidates; blocks are stored in `work` under `prefix`, and taken from there."""
        p_cell, remaining = np.empty(len(self.zyx), np.float32), []
        for number in range(len(self.blocks)):
            part = work.read(f"{prefix}{number:06d}")
            if part is None:
                remaining.append(number)
            else:
                p_cell[part.arrays["rows"]] = part.arrays["p_cell"]
                self._add_bad_chunks(part.about["bad_chunks"])
        self._keep_moments(work)
        if remaining:
            self._keep_typical(work, prefix, workers=workers, scheduler=scheduler, show=show)
        for number, scored in self.all(remaining, workers=workers, scheduler=scheduler, show=show):
            p_cell[scored.rows] = scored.p_cell
            arrays = {"rows": scored.rows, "p_cell": p_cell[scored.rows]}
            work.write(f"{prefix}{number:06d}", arrays, {"bad_chunks": list(scored.bad_chunks)})
        return p_cell

    @property
    def _volumes(self) -> list[Volume]:
        return [self.volume] if self.background is None else [self.volume, self.background]

    def _add_bad_chunks(self, chunks: Sequence[Sequence[str]]) -> None:
        """Count chunks that workers and earlier runs read as zeros as damage of these volumes too."""
        for volume, sentences in zip(self._volumes, chunks, strict=True):
            volume.add_bad_chunks(sentences)

    def _keep_moments(self, work: ResumableTiles) -> None:
        """Load the brain's moments from earlier work, or store them."""
        if self.refiner.correction == "none" or not len(self.zyx):
            return
        if (part := work.read("moments")) is not None:
            self._moments = Moments(**part.arrays)
            return
        self._moments = self._measure()
        work.write("moments", {"mean": self._moments.mean, "covariance": self._moments.covariance})

    def _keep_typical(self, work: ResumableTiles, prefix: str, **running: Any) -> None:
        """Load what brightness is compared with from earlier work, or store it."""
        if self.typical is not None or not self.extractor.brightness:
            return
        if (part := work.read(f"{prefix}typical")) is not None:
            self.typical = TypicalAmplitude(**part.arrays)
        elif (typical := self._compared(**running)) is not None:
            self.typical = typical
            work.write(f"{prefix}typical", typical.arrays())

    def _compared(self, **running: Any) -> TypicalAmplitude | None:
        columns = self.extractor.columns
        if columns is None:
            return None
        return columns.typical(self.volume, self.zyx, background=self.background, **running)

    def _measure(self) -> Moments:
        rows = np.arange(len(self.zyx))
        if len(rows) > SAMPLE:
            rows = np.sort(np.random.default_rng(0).choice(len(rows), SAMPLE, replace=False))
        return Moments.of(self._features(rows).x)

    def _features(self, rows: Int64[np.ndarray, " m"]) -> FeatureSet:
        self._reader = self._reader or self.extractor.reader(self.volume)
        features = self.extractor.features(
            self.volume, self.zyx[rows], background=self.background, reader=self._reader, show=False,
            detector_maps=None if self.maps is None else self.maps.features(rows), typical=self.typical,
        )  # fmt: skip
        if self.score is None:
            return features
        return with_candidate_score(features, self.score[rows], self.refiner.provenance_[CANDIDATE_SCORE])
