"""The volumes of a model's input channels: the signal, and the background where the model takes one."""

from __future__ import annotations

from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError


def input_channels(name: str, channels: int, volume: Volume, background: Volume | None) -> list[Volume]:
    """The volumes of a model's input channels, checked against its training and against each other."""
    if (background is None) != (channels == 1):
        raise CanvasError(
            f"{name} was trained {'with' if channels == 2 else 'without'} a background channel: "
            f"{'give --background VOLUME' if channels == 2 else 'leave --background out'}"
        )
    if background is None:
        return [volume]
    if background.shape_zyx != volume.shape_zyx:
        raise CanvasError(
            f"the background {background.path} has shape {background.shape_zyx}, the volume "
            f"{volume.path} {volume.shape_zyx}"
        )
    return [volume, background]
