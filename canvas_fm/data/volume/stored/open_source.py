"""The voxels of a path, whatever stores them: TIFF planes, or the image of a checked Zarr store."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from canvas_fm.data.store.checked_store import NAMESPACE, CheckedStore
from canvas_fm.data.store.files import is_store, open_files
from canvas_fm.data.store.ome.metadata import read_image, read_node
from canvas_fm.data.store.remote.remote_store import Remote
from canvas_fm.data.volume.stored.channel import Channel
from canvas_fm.data.volume.stored.chunked_array import ChunkedArray
from canvas_fm.data.volume.stored.unsupported_formats import refuse_converted, refuse_unsupported
from canvas_fm.data.volume.stored.voxel_size_and_marker import refuse_single_level
from canvas_fm.data.volume.tiff.planes import Planes, open_planes
from canvas_fm.data.volume.volume_flags import VolumeOptions
from canvas_fm.data.zyx import ZyxUm


class OpenedSource(NamedTuple):
    """A volume's voxels, its voxel size or why none is stated, and the attributes of a store of ours."""

    source: Channel | Planes
    voxel_um: ZyxUm | None
    why_no_voxel: str
    written: dict[str, Any] | None


def open_source(
    path: Path, remote: Remote | None, options: VolumeOptions, *, follow_links: bool
) -> OpenedSource:
    """Open a path, or a remote store that it stands for; see `Volume.open`."""
    t, c, skip = options.t, options.c, options.on_bad_chunk == "skip"
    empty = options.missing_chunks == "empty"
    is_zarr = remote is not None or is_store(path)
    planes = None if is_zarr else open_planes(path, t=t, c=c, skip=skip, fill_gaps=empty)
    if planes is not None:
        why = "its TIFF metadata do not state z, y and x as lengths"
        return OpenedSource(planes, planes.voxel_um, why, None)
    if remote is None:
        (refuse_unsupported if follow_links else refuse_converted)(path)
    store = CheckedStore(remote or open_files(path, follow_links=follow_links))
    refuse_single_level(path, store)
    root = read_node(store.files, "")
    extension = None if root is None else root.attributes.get(NAMESPACE)
    written = extension if store.check_written(extension) else None
    image = read_image(store.files, root)
    array = ChunkedArray(
        store,
        image.array,
        image.zarr_format,
        on_bad_chunk=options.on_bad_chunk,
        missing_chunks=options.missing_chunks,
    )
    source = Channel(array, image, t, c)
    written = None if written is None else source.attributes(written)
    return OpenedSource(source, image.voxel_um, image.why_no_voxel, written)
