"""A volume: one channel of one brain, read by boxes from any storage format."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num
from numpy.typing import DTypeLike

from canvas_fm.data.dataset.dataset_addresses import volume_path
from canvas_fm.data.store.files import volume_name
from canvas_fm.data.store.remote.remote_store import Remote
from canvas_fm.data.volume.array.array_like import as_dask, as_xarray, read_padded, read_slice
from canvas_fm.data.volume.array.in_memory import InMemory
from canvas_fm.data.volume.stored.channel import Channel, ZarrPlace
from canvas_fm.data.volume.stored.open_source import open_source
from canvas_fm.data.volume.stored.voxel_size_and_marker import checked_voxel_um, crop_of, marker_of
from canvas_fm.data.volume.tiff.plane_bytes import PlaneBytes
from canvas_fm.data.volume.tiff.planes import Planes
from canvas_fm.data.volume.volume_flags import VolumeOptions
from canvas_fm.data.volume.window import DEFAULT_RULE, Window, WindowCache, WindowRule, find_window
from canvas_fm.data.volume.writer import CHUNK_ZYX, VolumeWriter, create
from canvas_fm.data.zyx import Zyx, ZyxLike, ZyxUm, ZyxUmLike, check_voxel_um, stop_inside, whole_zyx
from canvas_fm.errors import CanvasError
from canvas_fm.files.option_sets import takes

__all__ = ["Volume", "VolumeWriter", "Window", "WindowRule", "Zyx", "ZyxUm", "volume_name"]

_Source = Channel | Planes | InMemory  # boxes that lie inside the volume, in z, y, x


class Volume:
    """One channel of one brain: positions are z, y, x in voxels of level 0, `voxel_um` is z, y, x in µm.

    `chunk_zyx` is what decodes as one piece. `checksums` tells whether every file is compared with what was
    written. Safe to read from several threads; pickled, it is opened again by its path. Worker processes are
    best started by spawn or forkserver: a fork while another thread reads can hang.
    """

    path: Path
    name: str
    shape_zyx: Zyx
    dtype: np.dtype
    voxel_um: ZyxUm
    chunk_zyx: Zyx
    marker: str | None
    checksums: bool

    def __init__(
        self,
        path: Path,
        source: _Source,
        voxel_um: ZyxUm,
        options: dict[str, Any],
        written: dict[str, Any] | None = None,
    ) -> None:
        """Use `Volume.open`. `written` are the attributes of a store of ours, None for any other."""
        if source.dtype.kind not in "iuf" or source.dtype.itemsize > 8:
            raise CanvasError(
                f"{path} holds {source.dtype} values; a volume holds integers or floats up to 64 bits"
            )
        if min(source.shape_zyx) < 1:
            raise CanvasError(f"{path} is empty: its shape is {source.shape_zyx} (z, y, x)")
        self.path, self.name = path, volume_name(path)
        self.shape_zyx, self.chunk_zyx, self.dtype = source.shape_zyx, source.chunk_zyx, source.dtype
        self.voxel_um, self.checksums = voxel_um, written is not None
        self.marker = marker_of(path, (written or {}).get("marker"), options["marker"])
        self._source, self._options, self._written = source, options, written or {}
        self._windows: dict[WindowRule, Window] = {}
        self._contrast = 1.0

    @classmethod
    @takes(VolumeOptions)
    def open(cls, path: str | Path | Remote, *, follow_links: bool = True, **options: Any) -> Volume:
        """A volume from OME-Zarr 0.1 to 0.6, a plain Zarr array, either of them zipped, or TIFF planes;
        `sample:NAME` is a shipped one.

        `voxel_um` (z, y, x) is needed where the metadata gives none; where it gives another, the given one
        is used and a warning says so. `t` and `c` choose where there are several. `marker` is used where
        neither the store nor a `meta.json` beside it names one. `on_bad_chunk="skip"` reads damage as zeros
        and lists it in `bad_chunks`; `missing_chunks="empty"` reads what a store without checksums lacks as
        its fill value. Links out of a store are followed (git-annex, DataLad), unless `follow_links` is
        false, as for a service whose clients name the path. Raises CanvasError with what to do about it,
        DamagedStore where a file is not what was written, Unreachable where a remote store does not answer.
        """
        remote = path if isinstance(path, Remote) else None
        path = Path(str(path)) if isinstance(path, Remote) else volume_path(path)
        opts = VolumeOptions.of(**options)
        options = opts.model_dump() | {"follow_links": follow_links}
        opened = open_source(path, remote, opts, follow_links=follow_links)
        voxel_um = checked_voxel_um(path, opened.voxel_um, opened.why_no_voxel, opts.voxel_um)
        return cls(path, opened.source, voxel_um, options, opened.written)

    @classmethod
    def create(
        cls,
        path: str | Path,
        shape_zyx: ZyxLike,
        *,
        voxel_um: ZyxUmLike,
        dtype: DTypeLike = "uint16",
        chunk_zyx: ZyxLike = CHUNK_ZYX,
        shard_zyx: ZyxLike | None = None,
        marker: str | None = None,
        source: str | None = None,
        levels: int = 1,
    ) -> VolumeWriter:
        """Start writing an OME-Zarr 0.5 at a new path; write its boxes, then close it (or use `with`).

        Integers or floats of up to 64 bits; shards of 4 × 4 × 4 chunks, each chunk Blosc zstd-1 with byte
        shuffle and a crc32c; `levels` counts the volume itself. `source` is a note on where the voxels come
        from.
        """
        return create(path, shape_zyx, voxel_um, dtype, chunk_zyx, shard_zyx, marker, source, levels)

    @classmethod
    def from_array(
        cls,
        voxels: Num[np.ndarray, "z y x"],
        *,
        voxel_um: ZyxUmLike,
        marker: str | None = None,
        name: str = "array",
    ) -> Volume:
        """A volume over an array in memory (z, y, x), not copied."""
        options = VolumeOptions.of(voxel_um=check_voxel_um(voxel_um), marker=marker).model_dump()
        volume = cls(Path(name), InMemory(voxels), check_voxel_um(voxel_um), options)
        volume.marker = marker
        return volume

    @property
    def array(self) -> InMemory | None:
        """The array of an in-memory volume, None for one on disk."""
        return self._source if isinstance(self._source, InMemory) else None

    def read(self, origin_zyx: ZyxLike, size_zyx: ZyxLike) -> Num[np.ndarray, "z y x"]:
        """Read a box (z, y, x) at level 0 in the stored dtype; zero outside the volume."""
        origin, size = whole_zyx(origin_zyx, "origin_zyx"), whole_zyx(size_zyx, "size_zyx")
        if min(size) < 0:
            raise CanvasError(f"size_zyx is {size}; expected sizes of at least 0")
        return read_padded(self._source.read, origin, size, self.shape_zyx, self.dtype)

    @property
    def shape(self) -> Zyx:
        """`shape_zyx`, as arrays call it."""
        return self.shape_zyx

    @property
    def ndim(self) -> int:
        """Three axes: z, y, x."""
        return 3

    def __getitem__(self, key: Any) -> Num[np.ndarray, ...]:
        """`volume[z0:z1, y, ...]` as in numpy, reading that box alone; `read` also reaches outside."""
        return read_slice(self, key)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        """All voxels (z, y, x) in memory: `np.asarray(volume)`."""
        if copy is False:
            raise ValueError("a volume's voxels are read from its store, which is a copy")
        return self.read((0, 0, 0), self.shape_zyx).astype(dtype or self.dtype, copy=False)

    def to_dask(self) -> Any:
        """The volume as a dask array, a task for each chunk, read when it is computed."""
        return as_dask(self)

    def to_xarray(self) -> Any:
        """The volume as a lazy xarray.DataArray with dimensions z, y, x in micrometres."""
        return as_xarray(self)

    def read_into(self, box: Num[np.ndarray, "z y x"], origin_zyx: ZyxLike) -> None:
        """Read a box that lies inside the volume into an array of its type; planes are decoded in place."""
        start = whole_zyx(origin_zyx, "origin_zyx")
        stop = stop_inside(start, box.shape, self.shape_zyx, self.path)
        if isinstance(self._source, Planes):
            self._source.read_into(box, start)
        else:
            box[:] = self._source.read(start, stop)

    def plane_bytes(self, z: int) -> PlaneBytes | None:
        """Byte range of an uncompressed TIFF plane in a file of its own; None for all else."""
        return self._source.plane_bytes(z) if isinstance(self._source, Planes) else None

    def read_chunk(self, index_zyx: ZyxLike) -> Num[np.ndarray, "z y x"]:
        """One decoded chunk, clipped at the volume's border; `index_zyx` counts chunks."""
        index = whole_zyx(index_zyx, "index_zyx")
        start = [i * size for i, size in zip(index, self.chunk_zyx, strict=True)]
        if not all(0 <= a < n for a, n in zip(start, self.shape_zyx, strict=True)):
            raise CanvasError(f"{self.path} has no chunk {index}: its shape is {self.shape_zyx}")
        stop = [min(a + s, n) for a, s, n in zip(start, self.chunk_zyx, self.shape_zyx, strict=True)]
        return self._source.read(start, stop)

    def check_chunk(self, index_zyx: ZyxLike) -> bool:
        """Verify a chunk's file: False if it is damaged and damage is skipped, else raises.

        For readers other than ours, before they read it from `zarr_place`; decoding can still fail.
        """
        if not isinstance(self._source, Channel):
            return True
        index = whole_zyx(index_zyx, "index_zyx")
        return self._source.check([i * size for i, size in zip(index, self.chunk_zyx, strict=True)])

    @property
    def zarr_place(self) -> ZarrPlace | None:
        """Location of the same voxels for other readers; None for zipped stores and TIFF planes."""
        return self._source.place if isinstance(self._source, Channel) else None

    def coarser(self) -> list[Channel]:
        """The stored levels of its pyramid after level 0; none for planes, arrays and single levels."""
        return self._source.coarser() if isinstance(self._source, Channel) else []

    @property
    def files(self) -> list[Path]:
        """The local files that it is read from, those of planes from z 0 up."""
        return list(self._source.files)

    @property
    def plane_0(self) -> str | None:
        """Name of the file of plane 0 in a folder of planes, whose numbers may begin elsewhere; else None."""
        return self._source.first_file if isinstance(self._source, Planes) else None

    @property
    def crop_of(self) -> str | None:
        """Name of the larger volume that it was cut from, where a `meta.json` beside it states its `cube`."""
        return None if self.array is not None or self.remote is not None else crop_of(self.path)

    @property
    def remote(self) -> Remote | None:
        """The remote store behind the volume, if any; `path` then only shows its address."""
        files = self._source.array.store.files if isinstance(self._source, Channel) else None
        return files if isinstance(files, Remote) else None

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of `open`."""
        return dict(self._options)

    @property
    def bad_chunks(self) -> list[str]:
        """Messages of the damaged chunks that `on_bad_chunk="skip"` read as zero so far."""
        return self._source.bad.sentences()

    def add_bad_chunks(self, sentences: Iterable[str]) -> None:
        """Count damage that another process, or an earlier run, read as zeros among `bad_chunks`."""
        self._source.bad.add(sentences)

    @property
    def window(self) -> Window:
        """Intensity window of the whole volume, percentiles 0.5 and 99.9, computed on first access."""
        return self.window_by(DEFAULT_RULE)

    def window_by(self, rule: WindowRule) -> Window:
        """The intensity window by a rule: kept in stores that we wrote, in the user's cache folder for
        others.

        Found on up to 64 M voxels. Raises CanvasError for a volume that is constant or holds NaN.
        """
        if rule not in self._windows:
            stored = self._written.get("window") if self._written.get("window_rule") == str(rule) else None
            self._windows[rule] = Window(*stored) if stored else self._find_window(rule)
        return self._windows[rule].at_contrast(self._contrast)

    def at_contrast(self, contrast: float) -> Volume:
        """The same volume at another staining contrast: windows narrower by that factor.

        It reads the same voxels; what looks at them through a window sees them brighter (above 1) or dimmer.
        """
        if not 0 < contrast < float("inf"):
            raise CanvasError(f"contrast is {contrast}; give a number above 0, 1 is the volume as it is")
        other = copy(self)
        other._contrast = self._contrast * contrast
        return other

    def _find_window(self, rule: WindowRule) -> Window:
        geometry = self.shape_zyx, self.chunk_zyx, self.dtype
        # Of a remote store, asking after every file takes as long as reading it.
        if self.array is not None or self.remote is not None:
            return find_window(str(self.path), self._source.read, *geometry, self._source.fill, rule)
        identity = (self.path.resolve(), self._options["t"], self._options["c"], self.shape_zyx, self.dtype)
        return WindowCache(identity, self._source).find(str(self.path), *geometry, rule)

    def __reduce__(self) -> tuple[Any, ...]:
        if (array := self.array) is not None:
            about = {"voxel_um": self.voxel_um, "marker": self.marker, "name": self.name}
            return _opened, (Volume.from_array, array.voxels, about, self._contrast)
        return _opened, (Volume.open, self.remote or self.path, self._options, self._contrast)

    def __repr__(self) -> str:
        about = f"shape_zyx={self.shape_zyx}, {self.dtype}, voxel_um={self.voxel_um}"
        about += "" if self._contrast == 1 else f", contrast={self._contrast:g}"
        return f"Volume({str(self.remote or self.path)!r}, {about})"


def _opened(by: Callable[..., Volume], voxels: Any, options: dict[str, Any], contrast: float) -> Volume:
    volume = by(voxels, **options)
    return volume if contrast == 1 else volume.at_contrast(contrast)  # which copies by way of this
