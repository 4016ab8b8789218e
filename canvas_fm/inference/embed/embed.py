"""Embeddings of crops or of points of a volume, shared by Python, command line and HTTP."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64

from canvas_fm.data.crops.reader import CropReader
from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.volume.window import Window
from canvas_fm.errors import CanvasError
from canvas_fm.files.locks import refuse_other_inputs
from canvas_fm.files.option_sets import takes
from canvas_fm.files.resumable import unfinished_folder
from canvas_fm.inference.embed.encoder_runner import Runner
from canvas_fm.inference.embed.point_crops import PointCrops, ahead, volume_identity
from canvas_fm.inference.embed.store.embedding_store import Embeddings, points_sha256
from canvas_fm.inference.embed.store.resumable_embeddings import ResumableEmbeddings
from canvas_fm.inference.input_checks import check_crops, check_points
from canvas_fm.inference.run_flags import EmbedOptions
from canvas_fm.models.load_model import Encoder
from canvas_fm.prepare.workers.dask_workers import map_tiles
from canvas_fm.progress import bar


def embed_crops(
    encoder: Encoder,
    crops: Any,
    *,
    pool: str | None = None,
    layer: int | None = None,
    batch: int = 256,
    device: str | torch.device | None = None,
    precision: str = "auto",
    backend: str = "torch",
    window: Window | tuple[float, float] | None = None,
) -> Float32[np.ndarray, "n ..."]:
    """Embeddings (n, d) float32 of crops (n, c, z, y, x), rows in the order given.

    `crops` are (n, c, z, y, x), of one channel also (n, z, y, x): float in [0, 1] after their volume's
    window, or raw integers with that `window`; `check_crops` says what is refused. `pool` is `mean`, `cls` or
    `centre`, by default the encoder's own, or `tokens` (n, 64, d) and `grid` (n, d, 4, 4, 4): a vector for
    each patch. `layer` is after how many blocks (None: all); `device=None` is where the encoder is.
    `precision` is fp32, bf16, auto or int8, `backend` is torch, cuda-graphs or openvino, as `Runner` says.
    The same batch gives the same vectors, another batch or backend the same to 1e-5 of their norm in fp32.
    """
    runner = Runner(encoder, pool, device, precision, layer, backend)
    ready = check_crops(crops, encoder.config, window=window)
    out = np.empty((len(ready), *runner.one_shape), np.float32)
    for start in range(0, len(ready), _positive(batch)):
        out[start : start + batch] = runner(ready[start : start + batch])
    return out


@takes(EmbedOptions)
def embed(
    encoder: Encoder,
    volume: Volume,
    points_zyx: Float[np.ndarray, "n 3"],
    *,
    background: Volume | None = None,
    reader: CropReader | None = None,
    show: bool | None = None,
    **options: Any,
) -> Float32[np.ndarray, "n ..."]:
    """Embeddings (n, d) float32 of points z, y, x of a volume, rows in the order given.

    Points are z, y, x in voxels of level 0; a crop around each goes through the volume's window by the
    model's rule, and one of `background`, the second channel of a model that takes it, through its own;
    `pool`, `layer`, `precision` and `backend` are as in `embed_crops`. Crops are read in chunk order; the
    result, 4·n·d bytes, is held in memory (`embed_to_store` is for more). `reader` keeps decoded chunks from
    call to call; it has to be a reader of this volume for this encoder.

    Raises CanvasError for points that are not there or lie outside and a crop larger than the volume,
    ModelMismatch where voxel sizes differ by more than 5 % and neither `resample` (read crops at the
    model's physical size) nor `ignore_voxel_size` is given, DamagedStore for damaged chunks.
    """
    opts = EmbedOptions.of(**options)
    runner = _runner(encoder, opts)
    points = check_points(points_zyx, volume.shape_zyx)
    source = PointCrops.of(
        encoder.config,
        volume,
        resample=opts.resample,
        ignore_voxel_size=opts.ignore_voxel_size,
        background=background,
        reader=reader,
    )
    out = np.empty((len(points), *runner.one_shape), np.float32)
    with bar("embedding", len(points), unit="crops", show=show) as advance:
        for rows, crops in ahead(source.batches(points, opts.batch)):
            out[rows] = runner(crops)
            advance(len(rows))
    return out


@takes(EmbedOptions)
def embed_to_store(
    encoder: Encoder,
    volume: Volume,
    points: Points,
    out: str | Path,
    *,
    background: Volume | None = None,
    workers: int = 1,
    scheduler: str | None = None,
    show: bool | None = None,
    **options: Any,
) -> Embeddings:
    """Embed points of a volume into `X.emb.zarr` and open it; the same call resumes after a kill.

    Raises as `embed` does. Until all is done the work lies in `X.emb.zarr.unfinished`; going on from it,
    or meeting a finished `out`, takes the same inputs (encoder, pooling, precision, volume, window,
    points and their columns), else CanvasError names what differs. Batch, device and backend may differ:
    vectors then agree to 1e-5 in fp32; with the same ones they are the same bytes as without the
    interruption. `workers` processes, or a Dask `scheduler` such as tcp://host:8786, embed blocks of 4,096
    points each. Memory does not grow with the vectors. Of `tokens` and `grid` the store holds (n, 64, d) or
    (n, d, 4, 4, 4).
    """
    out = Path(out)
    opts = EmbedOptions.of(**options)
    runner = _runner(encoder, opts)
    zyx = check_points(points.zyx, volume.shape_zyx)
    source = PointCrops.of(
        encoder.config, volume, resample=opts.resample, ignore_voxel_size=opts.ignore_voxel_size,
        background=background,
    )  # fmt: skip
    attributes = _attributes(runner, source, points)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        finished = Embeddings.open(out)
        refuse_other_inputs(out, finished.attributes["inputs"], attributes["inputs"])
        volume.add_bad_chunks(finished.attributes["bad_chunks"])
        shutil.rmtree(unfinished_folder(out), ignore_errors=True)
        return finished
    with (
        ResumableEmbeddings(out, attributes["inputs"], source.order(zyx), runner.one_shape) as work,
        bar("embedding", len(zyx), unit="crops", done=work.rows_done, show=show) as advance,
    ):
        if workers != 1 or scheduler is not None:
            blocks = {block: rows for block, rows in work.remaining()}
            sent = opts.model_copy(update={"precision": runner.precision})  # whatever processor a worker has
            job = EmbeddingBlocks(encoder, volume, zyx, blocks, sent, background)
            for block, (vectors, bad) in map_tiles(job, blocks, workers=workers, scheduler=scheduler):
                work.keep(block, vectors, bad)
                advance(len(vectors))
            remaining: Any = ()
        else:
            remaining = work.remaining()
        for block, batches in source.blocks(zyx, remaining, opts.batch):
            vectors = np.empty((len(work.rows(block)), *runner.one_shape), np.float32)
            for rows, crops in batches:
                vectors[rows] = runner(crops)
                advance(len(rows))
            work.keep(block, vectors, source.bad_chunks)
        volume.add_bad_chunks(work.bad_chunks)  # of workers and earlier runs too
        work.finish(points, attributes)
    return Embeddings.open(out)


@dataclass
class EmbeddingBlocks:
    """Blocks of points of a volume to be embedded; picklable, with a block as its tile."""

    encoder: Encoder
    volume: Volume
    zyx: Float64[np.ndarray, "n 3"]
    rows: dict[int, Int64[np.ndarray, " rows"]]
    options: EmbedOptions
    background: Volume | None = None
    _open: tuple[Runner, PointCrops] | None = field(init=False, default=None)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None}  # threads and decoded chunks stay here

    def tile(self, number: int) -> tuple[Float32[np.ndarray, "rows ..."], tuple[str, ...]]:
        """Vectors of one block, and the damaged chunks that were read as zeros on the way."""
        opts = self.options
        if self._open is None:
            source = PointCrops.of(
                self.encoder.config, self.volume, resample=opts.resample,
                ignore_voxel_size=opts.ignore_voxel_size, background=self.background,
            )  # fmt: skip
            self._open = _runner(self.encoder, opts), source
        runner, source = self._open
        points = self.zyx[self.rows[number]]
        vectors = np.empty((len(points), *runner.one_shape), np.float32)
        for rows, crops in ahead(source.batches(points, opts.batch)):
            vectors[rows] = runner(crops)
        return vectors, tuple(source.bad_chunks)


def _runner(encoder: Encoder, options: EmbedOptions) -> Runner:
    return Runner(encoder, options.pool, options.device, options.precision, options.layer, options.backend)


def _attributes(runner: Runner, source: PointCrops, points: Points) -> dict[str, Any]:
    """Attributes of the store; `inputs` determine its contents."""
    volume, encoder = source.volume, runner.encoder
    inputs = {
        "encoder": encoder.sha256,
        "pool": runner.pool,
        **({} if runner.layer is None else {"layer": runner.layer}),
        "precision": runner.precision,
        "volume": volume_identity(volume),
        "window": list(source.window),
        "voxel_um": list(volume.voxel_um),
        "resample_to_um": None if source.resample_to_um is None else list(source.resample_to_um),
        "points": points_sha256(points),
    }
    if source.background is not None:
        inputs["background"] = volume_identity(source.background.volume)
        inputs["background_window"] = list(source.background.window)
    return {
        "encoder_sha256": encoder.sha256,
        "encoder": encoder.name,
        "pool": runner.pool,
        **({} if runner.layer is None else {"layer": runner.layer}),
        "precision": runner.precision,
        "backend": runner.backend,
        "volume": volume.name,
        "marker": volume.marker,
        "voxel_um": list(volume.voxel_um),
        "model_voxel_um": list(encoder.config.voxel_um),
        "resample_to_um": inputs["resample_to_um"],
        "window": list(source.window),
        "window_rule": str(encoder.config.window_rule),
        "inputs": inputs,
    }


def _positive(batch: int) -> int:
    if batch < 1:
        raise CanvasError(f"batch is {batch}; give at least 1")
    return batch
