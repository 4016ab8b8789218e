"""Building and extending an index; measuring its recall."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

import canvas_fm.inference.search.inverted_lists as lists_of
from canvas_fm.errors import CanvasError, ModelMismatch, StorageFull
from canvas_fm.files.locks import take_lock
from canvas_fm.inference.embed.store.embedding_store import Embeddings
from canvas_fm.inference.search.hits import pooling_name, without
from canvas_fm.inference.search.index.index_store import (
    INDEX_FILE,
    METRICS,
    gather,
    parts_of,
    prepared,
    read_manifest,
    source_of,
    write_manifest,
    write_part,
)
from canvas_fm.inference.search.inverted_lists import propose_exactly
from canvas_fm.inference.search.nearest import NearestRows
from canvas_fm.progress import bar

_log = logging.getLogger(__name__)

_QUERIES, _NOVELTY_ROWS, _NEIGHBOURS = 200, 2000, 10
_RECALL = 0.995  # sought with one half of the queries, so that the other half's stays above .99
_PROBES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)
_GROWN = 1.1  # measured again once there are so many times the rows


def build(
    embeddings: list[Embeddings | str | Path], out: Path, *, metric: str, show: bool | None = None
) -> None:
    """Make the index `out` contain the rows of all these stores; rows it already has are skipped."""
    if metric not in METRICS:
        raise CanvasError(f"the metric is {metric!r}; give one of {', '.join(METRICS)}")
    stores = [each if isinstance(each, Embeddings) else Embeddings.open(each) for each in embeddings]
    if not stores:
        raise CanvasError("there are no embeddings to index; give at least one X.emb.zarr")
    _refuse_mixture(stores)
    _make_folder(out)
    lock = take_lock(out, out)
    try:
        manifest = read_manifest(out) if (out / INDEX_FILE).exists() else _empty(stores[0], metric)
        _refuse_other(out, manifest, stores, metric)
        known = [part["source"] for part in manifest["parts"]]
        new: list[Embeddings] = []
        for store in stores:
            if source_of(store) not in known:
                known.append(source_of(store))
                new.append(store)
            else:
                _log.info("%s is in %s already", store.path, out)
        if new or outgrown(manifest):
            _add(out, manifest, new, show)
    finally:
        os.close(lock)


def outgrown(manifest: dict[str, Any]) -> bool:
    """Whether a kill left parts without the inverted lists that so many rows need."""
    return lists_of.outgrown(manifest["lists"], manifest["rows"]) or manifest["recall"] is None


def _empty(store: Embeddings, metric: str) -> dict[str, Any]:
    return {
        "kind": "index",
        "format_version": 1,
        "encoder_sha256": store.encoder_sha256,
        "encoder": store.attributes.get("encoder"),
        "pool": store.pool,
        "layer": store.attributes.get("layer"),
        "precision": store.attributes.get("precision"),
        "metric": metric,
        "dim": store.shape[1],
        "rows": 0,
        "generation": 0,
        "recall": None,
        "novelty": None,
        "lists": None,
        "parts": [],
    }


def _add(out: Path, manifest: dict[str, Any], stores: list[Embeddings], show: bool | None) -> None:
    total = manifest["rows"] + sum(len(store) for store in stores)
    dtype = "float32" if lists_of.structure_for(total) == "flat" else "float16"
    _refuse_full_disk(out, sum(len(store) for store in stores), manifest["dim"], dtype)
    manifest["generation"] += 1
    with bar("indexing", total, unit="rows", done=manifest["rows"], show=show) as advance:
        for store in stores:
            folder = out / f"part-{len(manifest['parts']):04d}"
            part = write_part(folder, store, metric=manifest["metric"], dtype=dtype)
            _refuse_mixed_columns(manifest, part, store)
            manifest["parts"].append(part)
            manifest["rows"] += len(store)
            advance(len(store))
    parts = parts_of(out, manifest)
    rows, dim, generation = manifest["rows"], manifest["dim"], manifest["generation"]
    changed = lists_of.outgrown(manifest["lists"], rows)
    if changed:
        _log.info("%s: training %s on %d rows", out, lists_of.structure_for(rows), rows)
        manifest["lists"] = lists_of.train(parts, out, rows, dim, generation)
    if manifest["lists"] is not None:
        manifest["lists"] = lists_of.extend(manifest["lists"], parts, out, rows, dim, generation)
    if changed or manifest["recall"] is None or rows > _GROWN * manifest["recall"]["rows"]:
        _measure(out, manifest)
    write_manifest(out, manifest)


def _measure(out: Path, manifest: dict[str, Any]) -> None:
    """Choose the number of probed lists; measure recall@10 and neighbour distances."""
    rng, rows = np.random.default_rng(0), manifest["rows"]
    parts, dim = parts_of(out, manifest), manifest["dim"]
    at = min(_NEIGHBOURS, rows - 1)
    if manifest["lists"] is None or not at:
        manifest["recall"] = {"at": _NEIGHBOURS, "value": 1.0, "queries": 0, "rows": rows, "exact": True}
    else:
        sample = np.sort(rng.choice(rows, min(_QUERIES, rows), replace=False))
        queries = gather(parts, sample, dim)
        truth = NearestRows(out, manifest).decide(queries, propose_exactly(parts, queries, at + 9), at + 1)[
            1
        ][:, -1]
        choose = np.arange(len(sample)) % 2 == 0
        for factor, nprobe in _settings(manifest["lists"]):
            manifest["lists"] |= {"nprobe": nprobe, "k_factor": factor}
            nearest = NearestRows(out, manifest)
            if _recall(nearest, queries[choose], sample[choose], truth[choose], at) >= _RECALL:
                break
        value = _recall(nearest, queries[~choose], sample[~choose], truth[~choose], at)
        manifest["recall"] = {
            "at": at,
            "value": round(value, 4),
            "queries": int((~choose).sum()),
            "rows": rows,
        }
    manifest["novelty"] = _novelty(NearestRows(out, manifest), rng) if rows >= _NEIGHBOURS + 2 else None


def _settings(lists: dict[str, Any]) -> list[tuple[int, int]]:
    """(rows proposed for each result, lists probed), from the cheapest to exhaustive."""
    factors = [lists["k_factor"]] if lists["kind"] == "ivf-sq8" else [10, 20, 40]
    probes = [probe for probe in _PROBES if probe < lists["nlist"]]
    return [(factor, probe) for probe in [*probes, lists["nlist"]] for factor in factors]


def _recall(
    nearest: NearestRows, queries: np.ndarray, query_rows: np.ndarray, truth: np.ndarray, at: int
) -> float:
    """Recall@`at` against exact search; rows as near as the last one count."""
    rows, _ = without(*nearest.search(prepared(queries, nearest.metric), at + 1, None), query_rows, at)
    vectors = gather(nearest.parts, np.maximum(rows, 0).reshape(-1), nearest.dim).reshape(
        *rows.shape, nearest.dim
    )
    squared = ((queries[:, None] - vectors) ** 2).sum(axis=2)
    return float(((squared <= truth[:, None] * (1 + 1e-5) + 1e-12) & (rows >= 0)).mean())


def _novelty(nearest: NearestRows, rng: np.random.Generator) -> dict[str, Any]:
    """Quantiles, in thousandths, of the mean distance of the index's rows to their nearest others."""
    sample = np.sort(rng.choice(nearest.rows, min(_NOVELTY_ROWS, nearest.rows), replace=False))
    distances = nearest.mean_distance(gather(nearest.parts, sample, nearest.dim), _NEIGHBOURS, sample)
    quantiles = np.quantile(distances.astype(np.float64), np.linspace(0, 1, 1001))
    return {
        "neighbours": _NEIGHBOURS,
        "rows": len(sample),
        "quantiles": [float(f"{value:.6g}") for value in quantiles],
    }


def _make_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise CanvasError(f"{out} is a file; give the name of a folder, as X.index")
    if not out.parent.is_dir():
        raise CanvasError(f"{out} cannot be written: there is no folder {out.parent}")
    if out.is_dir() and not (out / INDEX_FILE).exists():
        strangers = [
            path.name for path in out.iterdir() if not path.name.startswith((*_OURS, ".index.json."))
        ]
        if strangers:
            raise CanvasError(f"{out} holds {strangers[0]} and is no index; give another name")
    out.mkdir(exist_ok=True)


_OURS = ("part-", "lists-", "trained-", "lock", ".index.json.")


def _refuse_full_disk(out: Path, rows: int, dim: int, dtype: str) -> None:
    import shutil

    needed = rows * dim * (np.dtype(dtype).itemsize + (dtype == "float16"))
    free = shutil.disk_usage(out).free
    if free < needed:
        raise StorageFull(f"{out} needs {needed / 1e6:,.1f} MB more, the disk has {free / 1e6:,.1f} MB left")


def _refuse_mixture(stores: list[Embeddings]) -> None:
    first = stores[0]
    for store in stores:
        if len(store) == 0:
            raise CanvasError(f"{store.path} holds no embeddings; leave it out")
        _refuse_model(str(first.path), _empty(first, "cosine"), store)


def _refuse_other(out: Path, manifest: dict[str, Any], stores: list[Embeddings], metric: str) -> None:
    for store in stores:
        _refuse_model(str(out), manifest, store)
    if metric != manifest["metric"]:
        raise CanvasError(
            f"{out} is of metric {manifest['metric']}, {metric} was asked for; build another index for that"
        )


def _refuse_model(name: str, manifest: dict[str, Any], store: Embeddings) -> None:
    ours, store_manifest = manifest, _empty(store, "cosine")
    if any(ours[key] != store_manifest[key] for key in ("encoder_sha256", "pool", "layer", "dim")):
        kinds = [
            f"{each['encoder_sha256'][:12]}, {pooling_name(each['pool'], each['layer'])}, "
            f"{each['dim']} numbers"
            for each in (store_manifest, ours)
        ]
        raise ModelMismatch(
            f"{store.path} is of encoder {kinds[0]}; {name} is of {kinds[1]}: "
            "one index holds vectors of one kind"
        )
    known, own = ours.get("precision"), store_manifest["precision"]
    if None not in (known, own) and known != own:  # older indexes do not state it
        raise ModelMismatch(
            f"{store.path} was embedded in {own}, {name} in {known}: brains would differ by that alone; "
            f"embed it again with --precision {known}"
        )


def _refuse_mixed_columns(manifest: dict[str, Any], part: dict[str, Any], store: Embeddings) -> None:
    for other in manifest["parts"]:
        for name, kind in part["columns"].items():
            if name != "id" and other["columns"].get(name, kind) != kind:
                raise CanvasError(
                    f"the column {name!r} is {kind} in {store.path} and {other['columns'][name]} in what is "
                    "indexed already; make it the same kind in both"
                )
