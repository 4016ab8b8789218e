"""Export of embeddings: `.npz` (numpy), `.parquet` (tables), `.h5ad` (AnnData)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.errors import CanvasError, MissingExtra
from canvas_fm.files.atomic import write_atomic
from canvas_fm.inference.embed.store.embedding_store import Embeddings

_ROWS = 16_384  # rows of one Parquet row group
_OURS = (
    "id",
    "z",
    "y",
    "x",
    "embedding",
)  # names of a table's columns that a column of the points may not take


def export(embeddings: Embeddings | str | Path, out: str | Path, *, overwrite: bool = False) -> Path:
    """Write embeddings as `.npz`, `.parquet` or `.h5ad`, by the suffix of `out`; returns that path.

    - `.npz`: `embeddings` (n, d) float32, of `tokens` and `grid` as they are, `points_zyx` (n, 3) in voxels,
      `ids`, a `column/NAME` for each column of the points, and `about`: JSON with the encoder's sha256,
      pooling, volume, voxel size, window.
    - `.parquet`: a row a point: id, z, y, x, the columns, `embedding` (d float32); `about` in the metadata
      under `canvas_fm`. Written in pieces, so memory stays small.
    - `.h5ad`: `X`, `obs` (columns and volume), `obsm["spatial"]` (x, y, z in µm: scanpy plots the
      first two), `obsm["zyx"]` (voxels), `uns["encoder"]`.

    The file appears whole or not at all. Raises CanvasError for another suffix or an `out` that is there
    already, MissingExtra without pyarrow or anndata, StorageFull, and DamagedStore as `Embeddings` does.
    """
    path = Path(out)
    writers: dict[str, Callable[[Embeddings, Path], None]] = {
        ".npz": _write_npz,
        ".parquet": _write_parquet,
        ".h5ad": _write_h5ad,
    }
    writer = writers.get(path.suffix)
    if writer is None:
        raise CanvasError(f"{path} ends in {path.suffix!r}; embeddings export to {', '.join(writers)}")
    if path.exists() and not overwrite:
        raise CanvasError(f"{path} is there already; give another name, or --overwrite to replace it")
    if not path.parent.is_dir():
        raise CanvasError(f"{path} cannot be written: there is no folder {path.parent}")
    _require(path.suffix)
    opened = embeddings if isinstance(embeddings, Embeddings) else Embeddings.open(embeddings)
    write_atomic(path, lambda temporary: writer(opened, temporary))
    return path


def _require(suffix: str) -> None:
    """Raise MissingExtra before anything is read."""
    try:
        if suffix == ".parquet":
            import pyarrow.parquet  # noqa: F401
        elif suffix == ".h5ad":
            import anndata  # noqa: F401
    except ImportError as problem:
        package, extra = ("pyarrow", "parquet") if suffix == ".parquet" else ("anndata", "anndata")
        raise MissingExtra(package, extra, f"writing {suffix} files") from problem


def about(embeddings: Embeddings) -> dict[str, Any]:
    """Provenance of the embeddings, small enough for every export."""
    return {
        "encoder_sha256": embeddings.encoder_sha256,
        "pool": embeddings.pool,
        **({"layer": layer} if (layer := embeddings.attributes.get("layer")) is not None else {}),
        "precision": embeddings.precision,
        "volume": embeddings.volume,
        "marker": embeddings.marker,
        "voxel_um": list(embeddings.voxel_um),
        "window": list(embeddings.window),
    }


def _write_npz(embeddings: Embeddings, path: Path) -> None:
    arrays = {
        "embeddings": embeddings.vectors,
        "points_zyx": embeddings.zyx,
        "ids": embeddings.ids,
        "about": np.array(json.dumps(about(embeddings))),
    }
    columns = {f"column/{name}": values for name, values in embeddings.columns.items()}
    save: Any = np.savez  # typed as if no array could have a name
    with path.open("wb") as file:
        save(file, **arrays, **columns)


def _write_parquet(embeddings: Embeddings, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    n, dim = embeddings.shape
    zyx = embeddings.zyx
    columns: dict[str, np.ndarray] = {"id": embeddings.ids, "z": zyx[:, 0], "y": zyx[:, 1], "x": zyx[:, 2]}
    for name, values in embeddings.columns.items():
        columns["column_embedding" if name == "embedding" else name] = values
    arrays = {
        name: pa.array(values if values.dtype.kind in "biuf" else values.astype(object))
        for name, values in columns.items()
    }
    fields = [pa.field(name, values.type) for name, values in arrays.items()]
    schema = pa.schema(
        [*fields, pa.field("embedding", pa.list_(pa.float32(), dim))],
        metadata={"canvas_fm": json.dumps(about(embeddings))},
    )
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, n, _ROWS):
            rows = slice(first, min(n, first + _ROWS))
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.read(rows).reshape(-1)), dim)
            piece = [values[rows] for values in arrays.values()]
            writer.write_table(pa.Table.from_arrays([*piece, vectors], schema=schema))


def _write_h5ad(embeddings: Embeddings, path: Path) -> None:
    import anndata
    import pandas as pd

    ids = embeddings.ids.astype(str).astype(object)
    unique = len(set(ids)) == len(ids)
    obs = pd.DataFrame(
        {
            name: values if values.dtype.kind in "biuf" else values.astype(object)
            for name, values in embeddings.columns.items()
        },
        # AnnData wants one name for each row; ids that repeat stay in their column.
        index=pd.Index(ids if unique else np.arange(len(ids)).astype(str).astype(object)),
    )
    if not unique and "id" not in obs:
        obs["id"] = ids
    obs["volume"] = pd.Categorical([embeddings.volume] * len(ids))
    uns = about(embeddings)
    encoder = {"sha256": uns["encoder_sha256"], "pool": uns["pool"], "precision": uns["precision"]}
    table = anndata.AnnData(
        X=embeddings.vectors,
        obs=obs,
        obsm={
            "spatial": (embeddings.zyx * np.asarray(embeddings.voxel_um))[:, ::-1],
            "zyx": embeddings.zyx,
        },
        uns={"encoder": encoder, "spatial_axes": "x, y, z in micrometres", "about": json.dumps(uns)},
    )
    table.write_h5ad(path)
