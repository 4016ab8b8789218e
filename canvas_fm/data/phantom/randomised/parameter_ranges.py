"""Parameter ranges of randomised phantom brains, and one draw of all parameters.

In the manner of domain randomisation (Tobin et al. 2017; SynthSeg, Billot et al. 2023): wider than what real
brains show, so that a real one is one more draw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, Strict, model_serializer, model_validator

from canvas_fm.files.strict_yaml import StrictModel

CellKind = Literal["nuclei", "somata"]
Range = Annotated[tuple[float, float], Strict(False)]
_TINY = 1e-12


class Autofluorescence(StrictModel):
    """Ranges of a phantom's autofluorescence, and of its background channel, which sees nothing else.

    The background channel shows tissue, vessels, fibres, specks and haze of the signal's, and bodies that
    look like cells there and are none: blood cells, lipofuscin. Of cells it shows what bleeds through. Its
    fine texture is the signal's in part only, as the grain of two channels is in real brains.
    """

    bodies: Range = (0.2, 1.2)  # how many, as a multiple of the number of cells
    diameter: Range = (0.7, 1.3)  # a multiple of the cells'
    amplitude: Range = (0.4, 1.6)  # in the signal, a multiple of the cells'
    ratio: Range = (0.4, 1.8)  # background channel over signal, against tissue
    ratio_spread: Range = (0.05, 0.3)  # from body to body, σ of its logarithm
    bleed_through: Range = (0.0, 0.15)  # share of the cells' light in the background channel
    texture_shared: Range = (0.0, 1.0)  # correlation of the fine texture of both channels
    photons: Range = (15.0, 3000.0)  # of the tissue's level
    level_counts: Range = (60.0, 6000.0)

    @model_validator(mode="after")
    def _ranges_rise(self) -> Autofluorescence:
        _check_ranges(self)
        return self


class Families(StrictModel):
    """Ranges of a randomised phantom's parameters; each pair is the lowest and highest value of a draw.

    Lengths are µm. Amplitudes are multiples of the tissue's level, but for those of what is no cell, which
    are multiples of the cells' amplitude. Ranges of sizes, densities and amplitudes are drawn evenly in their
    logarithm, the rest evenly.
    """

    kinds: Annotated[tuple[CellKind, ...], Strict(False), Field(min_length=1)] = ("nuclei", "somata")
    voxel_z_um: Range = (2.0, 7.0)
    voxel_yx_um: Range = (1.0, 2.6)
    nucleus_um: Range = (5.0, 12.0)  # diameter
    soma_um: Range = (9.0, 24.0)
    size_spread: Range = (0.03, 0.25)  # of the diameter from cell to cell, σ of its logarithm
    elongation: Range = (1.0, 1.9)
    density_mm3: Range = (1500.0, 120_000.0)
    fewest_cells: int | None = Field(default=None, ge=0)  # of a volume, about; without it 40
    filled: float = Field(default=0.2, gt=0, le=0.4)  # share of the volume that is cell, at most
    touching: Range = (0.75, 2.2)  # least distance of two centres in diameters
    amplitude: Range = (0.3, 16.0)
    amplitude_spread: Range = (0.08, 0.65)  # from cell to cell, σ of its logarithm
    processes: Range = (0.0, 1.0)  # brightness of processes against their soma
    faint: Range = (0.02, 0.25)  # amplitude of cell-like shapes that are no cells
    faint_level: Range = (0.05, 0.6)  # the same, against the tissue's level
    specks: Range = (0.0, 300.0)  # how many in a volume of 10⁶ voxels
    speck_amplitude: Range = (0.3, 6.0)
    fibres: Range = (0.0, 40.0)  # how many, the same
    vessels: Range = (0.0, 8.0)
    haze: Range = (0.0, 1.2)
    texture: Range = (0.0, 0.2)
    cloud: Range = (0.0, 0.5)
    layer_contrast: Range = (1.0, 3.0)
    blur_yx_um: Range = (0.4, 3.6)
    blur_z_um: Range = (1.2, 8.0)
    attenuation: Range = (0.0, 1.4)
    shading: Range = (0.0, 0.5)
    stripes: Range = (0.0, 0.25)
    seam: Range = (0.0, 0.25)
    level_counts: Range = (60.0, 6000.0)
    offset_counts: Range = (0.0, 400.0)
    photons: Range = (15.0, 3000.0)  # of the tissue's level
    camera_noise: Range = (0.5, 14.0)  # counts
    autofluorescence: Autofluorescence | None = None  # with it a phantom has a background channel

    @model_validator(mode="after")
    def _ranges_rise(self) -> Families:
        _check_ranges(self)
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, write: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """What is not set is left out, as before there was any: the sha256 of models trained so stays."""
        return {key: value for key, value in write(self).items() if value is not None}


def _check_ranges(families: StrictModel) -> None:
    for name, value in families:
        if isinstance(value, tuple) and name != "kinds" and not 0 <= value[0] <= value[1]:
            raise ValueError(f"{name} is {value}; a range rises from 0 or more")
