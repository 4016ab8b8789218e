"""Planes sampled from a whole channel, and what is learned from them: dark value and shading."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from canvas_fm.prepare.convert_flags import ConvertOptions
from canvas_fm.prepare.corrections.corrections import Correction
from canvas_fm.prepare.corrections.destripe import Destriper
from canvas_fm.prepare.corrections.flat_field.basicpy import fit_basicpy
from canvas_fm.prepare.corrections.flat_field.flat_field import (
    FlatField,
    estimate_flat_field,
    given_flat_field,
    read_flat,
)
from canvas_fm.prepare.corrections.flat_field.reduced import dark_value
from canvas_fm.prepare.sources.opened_file import Voxels
from canvas_fm.prepare.sources.source import Source

_FOR_DARK = 9


def corrections_of(source: Source, options: ConvertOptions) -> list[Correction]:
    """Corrections of the planes of each channel; always the same for the same source and options."""
    return [_correction(voxels, options) for voxels in source.channels]


def _correction(voxels: Voxels, options: ConvertOptions) -> Correction:
    flat_field = _flat_field(voxels, options)
    destriper = None
    if options.destripe:
        destriper = Destriper(options, dark_value(planes_of(voxels, _FOR_DARK)))
    return Correction(flat_field, destriper)


def _flat_field(voxels: Voxels, options: ConvertOptions) -> FlatField | None:
    dark = None if options.dark is None else read_flat(options.dark)
    if options.flat is not None:
        return given_flat_field(read_flat(options.flat), 0.0 if dark is None else dark)
    if options.flat_field:
        planes = planes_of(voxels, options.flat_planes)
        if options.flat_method == "basicpy":
            return fit_basicpy(planes, dark=dark)
        return estimate_flat_field(planes, degree=options.flat_degree, dark=dark)
    return None


def sample_planes(voxels: Voxels, count: int) -> list[np.ndarray]:
    """So many planes, evenly spaced from the first to the last."""
    return list(planes_of(voxels, count))


def planes_of(voxels: Voxels, count: int) -> Iterator[np.ndarray]:
    """The same one after the other: many planes are more than the memory of a conversion."""
    depth, height, width = voxels.shape_zyx
    for z in np.unique(np.linspace(0, depth - 1, min(count, depth)).round().astype(int)):
        yield voxels.read((int(z), 0, 0), (1, height, width))[0]
