"""Source of a conversion: channels of planes, whatever file they lie in."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from canvas_fm.data.dataset.dataset_addresses import volume_path
from canvas_fm.data.store.files import looks_remote, missing_path
from canvas_fm.data.store.lfs_pointers import why_unfetched
from canvas_fm.data.store.tar_index import in_tar
from canvas_fm.data.volume.stored.voxel_size_and_marker import checked_voxel_um
from canvas_fm.data.volume.tiff.channels import list_channels
from canvas_fm.data.volume.volume import Volume
from canvas_fm.data.zyx import Zyx, ZyxUm
from canvas_fm.errors import CanvasError, DamagedStore, counted
from canvas_fm.prepare.convert_flags import ConvertOptions
from canvas_fm.prepare.sources.bioio_file import BIOIO, open_bioio
from canvas_fm.prepare.sources.hdf5 import HDF5, open_hdf5
from canvas_fm.prepare.sources.hdf5_dataset import Hdf5Channel
from canvas_fm.prepare.sources.opened_file import OpenedFile, Voxels
from canvas_fm.prepare.sources.tensorstore_folder import (
    files_below,
    find_folder,
    open_folder,
    refuse_missing_files,
)


@dataclass(frozen=True)
class Source:
    """Channels of one shape and type with their names, and the files that they lie in.

    `reopen` opens them once more, in a worker that it is pickled for.
    """

    path: Path
    channels: Sequence[Voxels]
    names: Sequence[str]
    markers: Sequence[str | None]
    voxel_um: ZyxUm
    files: Sequence[Path]
    reopen: Callable[[], Source] | None = None

    @property
    def shape_zyx(self) -> Zyx:
        return self.channels[0].shape_zyx

    @property
    def dtype(self) -> np.dtype:
        return self.channels[0].dtype

    @property
    def bad_chunks(self) -> list[str]:
        return [sentence for channel in self.channels for sentence in channel.bad_chunks]

    def close(self) -> None:
        """Close the files that stay open for reading, those of HDF5."""
        for channel in self.channels:
            if isinstance(channel, Hdf5Channel):
                channel.close()

    def key(self, file: Path) -> str:
        """A file by its path below the source; one elsewhere by its path from the source's folder."""
        place = os.path.abspath(file)
        for folder in self._folders:
            if place == folder or place.startswith(folder + os.sep):
                return Path(os.path.relpath(place, folder)).as_posix()
        return Path(os.path.relpath(place, os.path.dirname(self._folders[0]))).as_posix()

    @cached_property
    def _folders(self) -> tuple[str, str]:
        """Absolute path of the source as given, and with links followed: files are listed below either."""
        return os.path.abspath(self.path), os.path.realpath(self.path)

    def identity(self) -> str:
        """A hash of the names, sizes and times of all files: another one where any of them changed."""
        stamps = []
        for file in self.files:
            elsewhere = why_unfetched(file) if file.is_symlink() else None
            if elsewhere is not None:
                raise DamagedStore(file.parent, "files", file.name, *elsewhere)
            status = file.stat()
            stamps.append([self.key(file), status.st_size, status.st_mtime_ns])
        return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()


def open_source(path: str | Path, options: ConvertOptions) -> Source:
    """The channels to convert; CanvasError for what is no image, and for channels that are not alike."""
    if looks_remote(str(path)):
        raise CanvasError(
            f"{path} is an address; copy it to the disk, remote stores are read by `serve` alone"
        )
    path = volume_path(path)
    suffix = path.suffix.lower()
    if not path.exists() and in_tar(path) is None:
        raise missing_path(path)
    if suffix in (*HDF5, *BIOIO):
        _refuse_absent_content(path)
        opened = (open_hdf5 if suffix in HDF5 else open_bioio)(path, options)
        source = _opened(path, opened, options, [path])
        if suffix in HDF5:
            source = _with_external_files(source, options)
    elif (array_folder := find_folder(path)) is not None:
        files = files_below(array_folder.folder)
        if options.missing_chunks == "error":
            refuse_missing_files(path, array_folder, files)
        source = _opened(path, open_folder(path, array_folder, options), options, files)
    else:
        source = _volumes(path, options)
    _check_alike(source)
    return replace(source, reopen=partial(open_source, path.absolute(), options))


def _refuse_absent_content(path: Path) -> None:
    """Raise CanvasError for a file whose content is elsewhere: in an archive, or not fetched yet."""
    archive = in_tar(path)
    if archive is not None:
        raise CanvasError(f"{path} lies in {archive[0].archive.name}, of which TIFF alone is read; unpack it")
    unfetched = why_unfetched(path)
    if unfetched is not None:
        raise CanvasError(f"{path} {'; '.join(unfetched)}")


def _volumes(path: Path, options: ConvertOptions) -> Source:
    channels = list_channels(path)
    chosen: Sequence[int | None] = options.c or list(channels) or [None]
    how: dict[str, Any] = {"voxel_um": options.voxel_um, "t": options.t}
    how |= {"on_bad_chunk": options.on_bad_chunk, "missing_chunks": options.missing_chunks}
    volumes = [Volume.open(path, c=c, **how) for c in chosen]
    names = [(channels.get(c) if c is not None else None) or f"channel {c or 0}" for c in chosen]
    files = list(dict.fromkeys(file for volume in volumes for file in volume.files))
    stated = [volume.marker for volume in volumes]
    return Source(path, volumes, names, _markers(stated, options), volumes[0].voxel_um, files)


def _opened(path: Path, opened: OpenedFile, options: ConvertOptions, files: Sequence[Path]) -> Source:
    voxel_um = checked_voxel_um(path, opened.voxel_um, opened.why_no_voxel, options.voxel_um)
    chosen = options.c or range(len(opened.channels))
    for c in chosen:
        if not 0 <= c < len(opened.channels):
            listing = ", ".join(f"{at} ({name})" for at, name in enumerate(opened.names))
            raise CanvasError(f"{path} holds the channels {listing}: there is no c={c}")
    channels, names = [opened.channels[c] for c in chosen], [opened.names[c] for c in chosen]
    return Source(path, channels, names, _markers([None] * len(names), options), voxel_um, files)


def _with_external_files(source: Source, options: ConvertOptions) -> Source:
    """The source with all HDF5 files of its channels; DamagedStore where voxels were never written."""
    channels = [channel for channel in source.channels if isinstance(channel, Hdf5Channel)]
    if options.missing_chunks == "error":
        for channel in channels:
            channel.refuse_unwritten()
    others = (file for channel in channels for file in channel.files if not file.samefile(source.path))
    return replace(source, files=list(dict.fromkeys([source.path, *others])))


def _markers(stated: Sequence[str | None], options: ConvertOptions) -> Sequence[str | None]:
    if options.marker and len(options.marker) != len(stated):
        raise CanvasError(
            f"--marker names {len(options.marker)} for {counted(len(stated), 'channel')}; give one for each"
        )
    return options.marker or stated


def _check_alike(source: Source) -> None:
    for name, channel in zip(source.names, source.channels, strict=True):
        if (channel.shape_zyx, channel.dtype) != (source.shape_zyx, source.dtype):
            raise CanvasError(
                f"{source.path}: {name} has shape {channel.shape_zyx}, {channel.dtype}; {source.names[0]} "
                f"has {source.shape_zyx}, {source.dtype}: convert them one by one with --c"
            )
