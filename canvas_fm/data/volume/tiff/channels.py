"""The channels of an image, before one of them is opened as a volume."""

from __future__ import annotations

from pathlib import Path

from canvas_fm.data.store.files import open_files
from canvas_fm.data.store.ome.metadata import read_image, read_node
from canvas_fm.data.store.tar_index import in_tar
from canvas_fm.data.volume.stored.unsupported_formats import refuse_unsupported
from canvas_fm.data.volume.tiff.ome_folder import stack_of
from canvas_fm.data.volume.tiff.pages import SUFFIXES, is_file
from canvas_fm.data.volume.tiff.plane_series import channels_in
from canvas_fm.data.volume.tiff.stack import channels_of_stack, planes_in
from canvas_fm.errors import CanvasError


def list_channels(path: Path) -> dict[int, str | None]:
    """Values of `c` in `Volume.open` with the channels' names, if any; empty for a lone channel.

    Raises CanvasError for what is no image.
    """
    try:
        is_folder = path.is_dir() or (in_tar(path) is not None and not _is_stack(path))
        planes = planes_in(path) if is_folder else []
    except OSError as problem:
        raise CanvasError(f"{path} cannot be opened: {problem.strerror}") from problem
    if planes and (whole := stack_of(path, planes)) is not None:
        path = whole
    elif planes:
        return dict(channels_in(path, planes))
    if _is_stack(path):
        several = channels_of_stack(path)
        return dict.fromkeys(range(several)) if several > 1 else {}
    refuse_unsupported(path)
    files = open_files(path, follow_links=True)
    image = read_image(files, read_node(files, ""))
    if "c" not in image.axes:
        return {}
    node = read_node(files, image.array)
    assert node is not None
    several = int(node.metadata["shape"][image.axes.index("c")])
    named = len(image.channels) == several
    return {c: image.channels[c] if named else None for c in range(several)} if several > 1 else {}


def _is_stack(path: Path) -> bool:
    return is_file(path) and path.suffix.lower() in SUFFIXES
