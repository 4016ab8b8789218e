"""TIFF files whose list of pages is parsed once, not anew for each page that is read of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tifffile


class ParsedFiles:
    """The last file of each thread, parsed; parsing is linear in its pages, for all of them quadratic.

    Handles are closed between uses, so that none is shared by processes after a fork, and no file is kept
    from being moved. A file that changed is parsed again.
    """

    def __init__(self) -> None:
        self._local = threading.local()

    @contextmanager
    def opened(
        self, path: Path, *, alone: bool, part: Mapping[str, Any] | None = None
    ) -> Iterator[tifffile.TiffFile]:
        """Context manager: a file on the disk, or `part` of one (`offset` and `size`); `alone` leaves out
        other files that OME metadata name."""
        status, part = path.stat(), dict(part or {})
        stamp = path, alone, status.st_ino, status.st_size, status.st_mtime_ns, *part.values()
        kept = getattr(self._local, "kept", None)
        self._local.kept = None
        if kept is not None and kept[0] == stamp:
            tiff = kept[1]
            tiff.filehandle.open()
        else:
            tiff = tifffile.TiffFile(path, is_ome=False if alone else None, **part)
        try:
            yield tiff
        finally:
            tiff.close()
        if len(tiff._files) == 1:  # of several, tifffile opens the others by itself
            self._local.kept = stamp, tiff
