"""Planes sampled from a whole channel, and what is learned from them: dark value and shading."""

from __future__ import annotations

import numpy as np

from canvas_fm.prepare.corrections import Correction
from canvas_fm.prepare.destripe import Destriper
from canvas_fm.prepare.flat_field import (
    FlatField,
    dark_value,
    estimate_flat_field,
    given_flat_field,
    read_flat,
)
from canvas_fm.prepare.options import ConvertOptions
from canvas_fm.prepare.sources.source import Source
from canvas_fm.prepare.sources.voxels import Voxels

_FOR_DARK = 9


def corrections_of(source: Source, options: ConvertOptions) -> list[Correction]:
    """What is done to the planes of each channel; always the same for the same source and options."""
    return [_correction(voxels, options) for voxels in source.channels]


def _correction(voxels: Voxels, options: ConvertOptions) -> Correction:
    flat_field = _flat_field(voxels, options)
    destriper = None
    if options.destripe:
        planes = sample_planes(voxels, _FOR_DARK)
        destriper = Destriper(options, dark_value(planes))
    return Correction(flat_field, destriper)


def _flat_field(voxels: Voxels, options: ConvertOptions) -> FlatField | None:
    dark = None if options.dark is None else read_flat(options.dark)
    if options.flat is not None:
        return given_flat_field(read_flat(options.flat), 0.0 if dark is None else dark)
    if options.flat_field:
        planes = sample_planes(voxels, options.flat_planes)
        return estimate_flat_field(planes, degree=options.flat_degree, dark=dark)
    return None


def sample_planes(voxels: Voxels, count: int) -> list[np.ndarray]:
    """So many planes, evenly spaced from the first to the last."""
    depth, height, width = voxels.shape_zyx
    places = np.unique(np.linspace(0, depth - 1, min(count, depth)).round().astype(int))
    return [voxels.read((int(z), 0, 0), (1, height, width))[0] for z in places]
