"""An opened file of any format: channels with their names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from canvas_fm.data.zyx import Zyx, ZyxLike, ZyxUm, ZyxUmLike, check_voxel_um
from canvas_fm.errors import CanvasError


@runtime_checkable
class Voxels(Protocol):
    """One channel: `chunk_zyx` is what decodes as one piece; read from several threads."""

    @property
    def shape_zyx(self) -> Zyx: ...

    @property
    def chunk_zyx(self) -> Zyx: ...

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def bad_chunks(self) -> list[str]: ...

    def read(self, origin_zyx: ZyxLike, size_zyx: ZyxLike) -> np.ndarray:
        """A box that lies inside."""
        ...

    def read_into(self, box: np.ndarray, origin_zyx: ZyxLike) -> None:
        """The same into an array of that shape and type."""
        ...


class OpenedFile(NamedTuple):
    """The channels of a file with their names, and the voxel size where it is stated, else why it is not."""

    channels: Sequence[Voxels]
    names: Sequence[str]
    voxel_um: ZyxUm | None
    why_no_voxel: str = "the file states none"


def usable_voxel_um(stated: ZyxUmLike) -> ZyxUm | None:
    """A stated voxel size, None where it is no three positive lengths, so that a given one can replace it."""
    try:
        return check_voxel_um(stated)
    except CanvasError:
        return None
