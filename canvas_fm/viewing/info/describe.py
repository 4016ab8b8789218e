"""Description of a path for `info`: volume, run, model, embeddings or points."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from canvas_fm.data.dataset.dataset_addresses import volume_path
from canvas_fm.data.points.formats.cellfinder_yaml import YAML
from canvas_fm.data.points.formats.npy_table import NPY, is_table
from canvas_fm.data.points.formats.read_write import suffix_of, suffixes
from canvas_fm.data.precomputed.read_annotations import is_annotations
from canvas_fm.data.store.files import missing_path
from canvas_fm.data.store.keys import METADATA
from canvas_fm.data.store.tar_index import in_tar, on_disk
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError
from canvas_fm.files.shipped import find, is_address, shipped
from canvas_fm.viewing.info.models import describe_model, describe_run, disk_size


def describe(path: str | Path, **volume_options: Any) -> dict[str, Any]:
    """Describe a path as a JSON-ready dictionary, `kind` first; `volume_options` go to `Volume.open`.

    Everything that is described is checked as its own reader does, so damage is an error here too. Raises
    CanvasError for what is not there, damaged, or none of the known artefacts.
    """
    if is_address(path):
        return describe_model(find("model", path))
    path = volume_path(path)
    if not path.exists() and in_tar(path) is None:
        if str(path) in shipped("model"):
            from canvas_fm.evaluation.cards.card import figures_of

            return describe_model(find("model", path)) | figures_of(str(path))
        if path.is_symlink():
            raise missing_path(path)
        raise CanvasError(f"{path} does not exist, and no shipped model has that name")
    if _is_points(path):
        return _describe_points(path)
    if path.is_file() and path.suffix.lower() in YAML:
        return _describe_recipe(path)
    if path.is_dir() and _is_run(path):
        return describe_run(path)
    if path.is_dir() and (path / "config.json").is_file():
        return describe_model(path)
    if path.name.endswith(".emb.zarr") or _is_embeddings(path):
        return describe_embeddings(path)
    return describe_volume(Volume.open(path, **volume_options))


def describe_volume(volume: Volume) -> dict[str, Any]:
    """Shape, voxel size, dtype, chunks, window, and whether checksums protect the store."""
    window = volume.window
    described: dict[str, Any] = {
        "kind": "volume",
        "path": str(volume.path),
        "name": volume.name,
        "marker": volume.marker,
        "shape_zyx": list(volume.shape_zyx),
        "voxel_um": list(volume.voxel_um),
        "extent_mm": [
            round(n * um / 1000, 4) for n, um in zip(volume.shape_zyx, volume.voxel_um, strict=True)
        ],
        "dtype": str(volume.dtype),
        "chunk_zyx": list(volume.chunk_zyx),
        "window": [window.low, window.high],
        "checksums": "every file" if volume.checksums else "no checksums",
        **disk_size(on_disk(volume.path)),
        "bytes_decoded": math.prod(volume.shape_zyx) * volume.dtype.itemsize,
    }
    if volume.bad_chunks:
        described["bad_chunks"] = volume.bad_chunks
    return described


def describe_embeddings(path: str | Path) -> dict[str, Any]:
    """Rows, dimension, encoder, pooling and columns; every file is verified."""
    from canvas_fm.inference.embed.store.embedding_store import Embeddings

    embeddings = Embeddings.open(path)
    embeddings.verify()
    rows, *sizes = embeddings.whole_shape
    return {
        "kind": "embeddings",
        "path": str(path),
        "rows": rows,
        "dim": sizes[0] if len(sizes) == 1 else sizes,
        "volume": embeddings.volume,
        "marker": embeddings.marker,
        "voxel_um": list(embeddings.voxel_um),
        "pool": embeddings.pool,
        "precision": embeddings.precision,
        "encoder_sha256": embeddings.encoder_sha256,
        "columns": list(embeddings.columns),
        "checksums": "every file",
        **disk_size(Path(path)),
    }


def _describe_points(path: Path) -> dict[str, Any]:
    from canvas_fm.data.points.points import Points

    points = Points.read(path)
    bounds = (
        {"from_zyx": points.zyx.min(0).tolist(), "to_zyx": points.zyx.max(0).tolist()} if len(points) else {}
    )
    return {
        "kind": "points",
        "path": str(path),
        "rows": len(points),
        "columns": list(points.columns),
        **bounds,
        "meta": points.meta,
    }


def _describe_recipe(path: Path) -> dict[str, Any]:
    from canvas_fm.training.recipe.detector_recipe import DetectorRecipe
    from canvas_fm.training.recipe.joint_recipe import JointRecipe
    from canvas_fm.training.recipe.read_recipe import read_recipe_of, recipe_class
    from canvas_fm.training.recipe.recipe import Recipe

    kind, about = "recipe", {}
    recipe = read_recipe_of(recipe_class(path), path)
    if isinstance(recipe, JointRecipe):
        kind, net = "recipe of a joint embedding", recipe.model.encoder.model_dump(mode="json")
        about = {"loss": recipe.loss.kind, "visible": recipe.model.visible} | net
    elif isinstance(recipe, DetectorRecipe):
        kind = "recipe of a detector"
        about = {"crop_zyx": list(recipe.data.crop_zyx)} | recipe.model.model_dump(mode="json")
    elif isinstance(recipe, Recipe):
        encoder = recipe.model.encoder
        about = {
            "mask_ratio": recipe.model.mask_ratio,
            "crop_zyx": list(encoder.crop_zyx),
            "patch_zyx": list(encoder.patch_zyx),
            "dim": encoder.dim,
            "depth": encoder.depth,
        }
    head = {"kind": kind, "path": str(path), "steps": recipe.steps, "batch": recipe.training.batch}
    return head | about | {"seed": recipe.seed}


def _is_points(path: Path) -> bool:
    """Whether a path is a file of points by its suffix, or a folder of Neuroglancer's annotations."""
    if path.is_dir():
        return is_annotations(path)
    if not path.is_file() or suffix_of(path) not in suffixes() or path.name in METADATA:
        return False
    if path.suffix.lower() in YAML:  # of cellfinder, else a recipe
        return b"candidate_cells" in path.read_bytes()
    return suffix_of(path) != NPY or is_table(path)


def _is_run(path: Path) -> bool:
    return (path / "recipe.yaml").is_file()


def _is_embeddings(path: Path) -> bool:
    return path.is_dir() and (path / "embeddings").is_dir() and (path / "points").is_dir()
