"""The end of a conversion: window, sources, manifest, metadata; then the store takes its name."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np

from canvas_fm.data.store.checked_store import NAMESPACE, CheckedStore, write_manifest
from canvas_fm.data.store.files import volume_name
from canvas_fm.data.store.ome.write import write_channels
from canvas_fm.data.volume.window import DEFAULT_RULE, SAMPLE, find_window
from canvas_fm.errors import CanvasError, DamagedStore
from canvas_fm.files.atomic import disk_full_as_error, sync_path
from canvas_fm.files.checksum import Algorithm, file_checksum
from canvas_fm.files.resumable import unfinished_folder
from canvas_fm.prepare.convert.layout import Layout, image_metadata, open_arrays
from canvas_fm.prepare.convert.shards.written_chunks import WrittenChunks
from canvas_fm.prepare.convert.slab_progress import SlabResult, SlabWork, source_list
from canvas_fm.prepare.convert.window_sample import WindowSample
from canvas_fm.prepare.convert_flags import ConvertOptions
from canvas_fm.prepare.sources.source import Source

SOURCES = "canvas_fm_sources.json"
_READ_BYTES = 4 * 10**9  # of a finished store that are compared with their checksums: seconds
_log = logging.getLogger(__name__)


def attributes(out: Path) -> dict[str, Any] | None:
    """Our attributes of a store, None where there is none or it is no store of ours."""
    for name in ("zarr.json", ".zattrs"):
        try:
            content = json.loads((out / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        attributes = content.get("attributes", content) if isinstance(content, dict) else {}
        extension = attributes.get(NAMESPACE)
        return extension if isinstance(extension, dict) else None
    return None


def is_done(out: Path, digest: str) -> bool:
    """Whether OUT is there from the same inputs; CanvasError where it is anything else.

    Its files have to be those that were written: all are read up to 4 GB, of a larger store their sizes are
    compared, and the metadata. Raises DamagedStore.
    """
    if not (out.exists() or out.is_symlink()):
        return False
    if not out.exists():
        raise CanvasError(
            f"{out} is a link to {os.readlink(out)}, which is not there; give that path, or delete the link"
        )
    if (attributes(out) or {}).get("inputs_sha256") != digest:
        raise CanvasError(
            f"{out} is there already and was made from another source or with other options; give another "
            "name, or delete it to convert again"
        )
    store = CheckedStore(out)
    store.check_written(attributes(out))
    if store.verify_sizes() <= _READ_BYTES:
        store.verify_all()
    else:
        _log.info("%s is there already; its files have the sizes written, --verify reads them too", out)
    shutil.rmtree(unfinished_folder(out), ignore_errors=True)  # of a kill right after the store took its name
    return True


def finish(
    work: SlabWork,
    source: Source,
    layout: Layout,
    done: SlabResult,
    sample: WindowSample,
    digest: str,
    options: ConvertOptions,
) -> None:
    """Window, sources, manifest and metadata; then the store takes its name."""
    root = work.store
    windows = [None] * layout.channels if options.labels else _windows(root, layout, source, sample)
    listed = {"source": str(source.path), "files": source_list(source, done.sources)}
    rules = {"window_rule": None if options.labels else str(DEFAULT_RULE)}
    extension: dict[str, Any] = {
        "source": source.path.name,
        "inputs_sha256": digest,
        "complete": True,
        **rules,
    }
    extension["bad_chunks"] = done.bad_chunks
    each = [{"marker": m, "window": w} for m, w in zip(source.markers, windows, strict=True)]
    extension |= {"channels": each} if layout.has_c else each[0]
    image = image_metadata(layout, volume_name(work.out))
    if layout.has_c:
        names = [marker or name for marker, name in zip(source.markers, source.names, strict=True)]
        image["omero"] = write_channels(names, windows, layout.dtype)
    pending = {SOURCES: _json(listed)}
    if layout.ome == "0.5":
        attributes = {"ome": image, NAMESPACE: extension}
        group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        pending |= {"zarr.json": _json(group)}
    else:
        pending |= {".zgroup": _json({"zarr_format": 2}), ".zattrs": _json({**image, NAMESPACE: extension})}
    known = {key: (int(size), int(crc)) for key, (size, crc) in done.files.items()}
    with disk_full_as_error(work.out):
        write_manifest(root, pending, known)
        for name, content in pending.items():
            (root / name).write_bytes(content)
        root.replace(work.out)
        sync_path(work.out.parent)
    work.remove()


def verify_sources(out: Path, source: Source) -> None:
    """Compare the source files with the checksums that were kept; DamagedStore names one that differs."""
    listed = json.loads((out / SOURCES).read_text(encoding="utf-8"))["files"]
    for file in source.files:
        entry = listed.get(source.key(file), {})
        for algorithm in get_args(Algorithm):
            kept = entry.get(algorithm)
            if kept is not None and file_checksum(file, algorithm) != kept:
                raise DamagedStore(
                    source.path,
                    "files",
                    source.key(file),
                    f"has another {algorithm} than when {out} was written from it",
                    f"copy the file again, or delete {out} and convert again",
                )


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=2).encode()


def _windows(root: Path, layout: Layout, source: Source, sample: WindowSample) -> list[list[float] | None]:
    """The intensity window of each channel; None where there is none, as for an empty one."""
    level = layout.levels[0]
    opened = cache(lambda: open_arrays(root, layout)[0])  # which takes longer than a small volume's slabs
    windows: list[list[float] | None] = []
    for channel in range(layout.channels):

        def read(start: Sequence[int], stop: Sequence[int], channel: int = channel) -> np.ndarray:
            box: Any = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
            return np.asarray(opened()[(channel, *box)] if layout.has_c else opened()[box])

        sampled = math.prod(level.shape_zyx) > SAMPLE
        reader = WrittenChunks(root, layout, channel).read if sampled else read
        try:
            window = find_window(
                str(source.path),
                reader,
                level.shape_zyx,
                level.chunk_zyx,
                layout.dtype,
                0,
                counted=sample.counted(channel),
            )
            windows.append(list(window))
        except CanvasError:
            windows.append(None)
    return windows
