"""Pages of TIFF files: opened, decoded, and the planes that one file holds."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tifffile

from canvas_fm.data.store.lfs_pointers import why_unfetched
from canvas_fm.data.store.tar_index import in_tar, member_of
from canvas_fm.data.volume.tiff.parsed_files import ParsedFiles
from canvas_fm.errors import CanvasError, DamagedStore, counted

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

_COLOURS = 4  # values of a pixel that are colours
SUFFIXES = (".tif", ".tiff", ".btf", ".tf2", ".tf8")


def is_file(path: Path) -> bool:
    """Whether there is such a file, on the disk or in a `.tar`."""
    archive = in_tar(path)
    return path.is_file() if archive is None else archive[1] in archive[0].files


def use_tiff(
    path: Path,
    use: Callable[[tifffile.TiffFile], _Result],
    *,
    alone: bool = False,
    parsed: ParsedFiles | None = None,
) -> _Result:
    """Call `use` with the opened file; any decoding error becomes DamagedStore that names the file.

    `alone` leaves out what OME metadata say of other files, which tifffile would open all. `parsed` keeps the
    list of pages for the next call.
    """
    try:
        member = member_of(path)
        part: dict[str, Any] = {} if member is None else {"offset": member.offset, "size": member.size}
        file = path if member is None else member.archive
        if parsed is not None:
            with parsed.opened(file, alone=alone, part=part) as tiff:
                return use(tiff)
        with tifffile.TiffFile(file, is_ome=False if alone else None, **part) as tiff:
            return use(tiff)
    except CanvasError:
        raise
    except Exception as problem:
        # A damaged TIFF raises TiffFileError, ValueError, zlib.error, struct.error, KeyError and more.
        if isinstance(problem, ImportError) or "imagecodecs" in str(problem):
            raise CanvasError(
                f"{path} is compressed in a way whose decoder is not installed ({problem}): pip install "
                "imagecodecs"
            ) from problem
        text = " ".join(str(problem).split())[:200]
        elsewhere = why_unfetched(path) if member is None else None
        if elsewhere is not None:
            raise DamagedStore(path.parent, "planes", path.name, *elsewhere) from problem
        if is_file(path) and (path.stat().st_size if member is None else member.size) == 0:
            raise DamagedStore(
                path.parent, "planes", path.name, "is empty: 0 bytes", "copy the file again"
            ) from problem
        cause = f"cannot be decoded ({type(problem).__name__}: {text})"
        raise DamagedStore(path.parent, "planes", path.name, cause, "copy the file again") from problem


def page_of(
    tiff: tifffile.TiffFile, index: int, out: np.ndarray | None, *, alone: bool
) -> tuple[int, np.ndarray]:
    """Number of planes in a file, and one of them; by page number where the file is read `alone`."""
    if alone:
        return len(tiff.pages), _decoded(tiff.pages[index], out)
    series = next((image for image in tiff.series if not image.keyframe.is_reduced), tiff.series[0])
    n_planes = math.prod(series.shape[:-2])
    if len(series) == n_planes:
        page = series[index]
        if page is None:
            raise ValueError(f"plane {index} is missing")
        return n_planes, _decoded(page, out)
    # One page describes many planes that lie one after another: map the file, touch only what is asked for.
    if tiff.filehandle.size != Path(tiff.filehandle.path).stat().st_size:
        raise CanvasError(f"{tiff.filehandle.path} holds a stack of which one page describes all; unpack it")
    stack = tifffile.memmap(tiff.filehandle.path, series=0, mode="r")
    return n_planes, stack.reshape(-1, *series.shape[-2:])[index]


def _decoded(page: Any, out: np.ndarray | None) -> np.ndarray:
    """Pixels of a page, in `out` where that fits; some writers count the byte that pads a Zstandard frame."""
    if 0 in page.databytecounts:  # tifffile reads such a part as zeros
        lacking = page.databytecounts.count(0)
        raise ValueError(f"{lacking} of its {len(page.databytecounts)} strips or tiles were never written")
    fits = out is not None and page.dtype is not None and (page.shape, page.dtype) == (out.shape, out.dtype)
    how = {"out": out, "maxworkers": 1} if fits else {}
    try:
        plane = page.asarray(**how)
    except RuntimeError:
        if page.compression not in (tifffile.COMPRESSION.ZSTD, tifffile.COMPRESSION.ZSTD_DEPRECATED):
            raise
        page.databytecounts = tuple(count - 1 for count in page.databytecounts)
        plane = page.asarray(**how)
    return out if fits and out is not None else plane


def count_planes(tiff: tifffile.TiffFile) -> int:
    """Pages of a file without the coarser levels and thumbnails that are marked as such."""
    if len(tiff.pages) == 1:
        return 1
    return sum(not getattr(page, "is_reduced", False) for page in tiff.pages)


def samples_refusal(path: Path | str, axes: str, shape: Sequence[int]) -> CanvasError:
    """Advice about pages that hold several values a pixel, such as colours."""
    count = shape[axes.index("S")]
    how = (
        "save it as grey, or each colour as a channel (Fiji: Image > Color > Split Channels)"
        if count <= _COLOURS
        else f"if these are planes, write them as {count} pages"
    )
    return CanvasError(
        f"{path} has {count} values a pixel ({axes} {tuple(shape)}), and a volume has one: {how}"
    )


class Layout(NamedTuple):
    """Axes, shape and dtype of the planes in a file; `pages` where each is an image of its own there."""

    axes: str
    shape: tuple[int, ...]
    dtype: np.dtype
    pages: tuple[int, ...] | None = None


def layout_of(tiff: tifffile.TiffFile) -> Layout:
    """The planes of a file; some writers mark z as I or Q.

    Pages of one shape that a writer described one by one are planes along z; thumbnails are none.
    """
    _refuse_cut(tiff)
    every = [image for image in tiff.series if not image.keyframe.is_reduced] or list(tiff.series)
    series = every[0]
    shape = tuple(int(n) for n in series.shape)
    axes = re.sub("[IQ]", "Z", series.axes)
    if axes.count("Z") > 1:
        raise CanvasError(
            f"{tiff.filename} has the axes {series.axes} of shape {shape}, and nothing says which of them is "
            "z: save it with named axes (ImageJ, OME-TIFF)"
        )
    if series.dtype is None or min(shape, default=0) < 1:
        raise ValueError(f"it holds no plane, its shape is {shape}")
    warn_inverted(tiff)
    alike = all((image.shape, image.dtype) == (series.shape, series.dtype) for image in every)
    if axes == "YX" and len(every) > 1 and alike and not tiff.is_ome:
        pages = tuple(int(image.keyframe.index) for image in every)
        return Layout("ZYX", (len(every), *shape), series.dtype, pages)
    if "S" in axes:
        raise samples_refusal(tiff.filename, axes, shape)
    if len(shape) < 2 or axes[-2:] != "YX":
        raise CanvasError(
            f"{tiff.filename} has the axes {series.axes} of shape {shape}; planes have the axes y, x: "
            "save it with the axes z, y, x"
        )
    _refuse_other_images(tiff, every)
    _refuse_lost_pages(tiff, series)
    _refuse_stopped(tiff, shape)
    if len(series) not in (1, math.prod(shape[:-2])):
        raise ValueError(f"it holds {len(series)} planes of {math.prod(shape[:-2])}")
    return Layout(axes, shape, series.dtype)


def _refuse_stopped(tiff: tifffile.TiffFile, shape: Sequence[int]) -> None:
    """Raise CanvasError where ImageJ states channels or times that the pages are no multiple of: tifffile
    hands over all pages as one axis."""
    about = (tiff.imagej_metadata or {}) if tiff.is_imagej else {}
    stated = {axis: int(about.get(axis, 1)) for axis in ("channels", "slices", "frames")}
    held = math.prod(shape[:-2])
    if stated["channels"] * stated["frames"] > 1 and math.prod(stated.values()) != held:
        listing = ", ".join(f"{count} {axis}" for axis, count in stated.items() if count > 1)
        raise CanvasError(
            f"{tiff.filename}: its ImageJ metadata state {listing}, and it holds {counted(held, 'plane')}, "
            "as where an acquisition was stopped; save what is there with its own dimensions (Fiji: Image > "
            "Hyperstacks), or copy it again"
        )


def _refuse_other_images(tiff: tifffile.TiffFile, every: Sequence[Any]) -> None:
    """Raise CanvasError for several images, unless the first is a stack and the others show it smaller."""
    first, others = every[0].shape, [image.shape for image in every[1:]]
    if not others:
        return
    listing = ", ".join(f"{image.axes} {image.shape}" for image in every[:8])
    if len(first) > 2 and all(_is_overview(shape, first) for shape in others):
        _log.warning("%s holds the images %s; the first is read", tiff.filename, listing)
        return
    raise CanvasError(
        f"{tiff.filename} holds {len(every)} images ({listing}); a volume is one: save it as a "
        "file of its own"
    )


def _is_overview(shape: Sequence[int], of: Sequence[int]) -> bool:
    """Whether an image is one plane, or a level of a pyramid whose planes are smaller."""
    if len(shape) != len(of):
        return math.prod(shape[:-2]) == 1
    return shape[-2] < of[-2] and shape[-1] < of[-1]


def _refuse_lost_pages(tiff: tifffile.TiffFile, series: Any) -> None:
    """Raise CanvasError where OME metadata state more planes than the file has pages; warn of fewer."""
    if not tiff.is_ome or len(series) == 1:
        return
    stated, held = len(series), sum(page is not None for page in series.pages)
    if held < stated:
        raise CanvasError(
            f"{tiff.filename}: its OME metadata state {stated} planes, and it holds {held}, as where an "
            "acquisition was stopped; save what is there as a stack of its own (Fiji), or copy it again"
        )
    if len(tiff.series) == 1 and (pages := count_planes(tiff)) > stated:
        _log.warning(
            "%s: its OME metadata state %d planes, and it has %d pages; the others are left out",
            tiff.filename,
            stated,
            pages,
        )


def warn_inverted(tiff: tifffile.TiffFile) -> None:
    """Log a warning for a file in which 0 is shown white, as Fiji writes it under an inverting table, and for
    signed values, which ImageJ keeps as unsigned ones."""
    if tiff.pages.first.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        _log.warning("%s shows 0 as white; its values are read as they are", tiff.filename)
    about = tiff.imagej_metadata or {}
    if tiff.is_imagej and (about.get("c0"), about.get("c1")) == (-32768, 1):
        _log.warning(
            "%s holds signed values, which ImageJ keeps 32768 higher than it shows them; they are read as "
            "they are kept: save it as 32-bit to keep the sign",
            tiff.filename,
        )


def _refuse_cut(tiff: tifffile.TiffFile) -> None:
    """Raise ValueError where the file ends before its list of pages, or before the planes that ImageJ writes
    behind a single page: tifffile leaves the rest out."""
    place = tiff.pages.next_page_offset
    if place is not None:
        tiff.filehandle.seek(place)
        link = tiff.filehandle.read(tiff.tiff.offsetsize)
        if len(link) < tiff.tiff.offsetsize or any(link):
            raise ValueError(f"it is cut short after {counted(len(tiff.pages), 'page')}")
    if tiff.is_imagej and len(tiff.pages) == 1:
        page, planes = tiff.pages.first, int((tiff.imagej_metadata or {}).get("images", 1))
        if planes > 1 and tiff.filehandle.size < page.dataoffsets[0] + planes * page.nbytes:
            raise ValueError(f"it is cut short: it states {counted(planes, 'plane')}")
