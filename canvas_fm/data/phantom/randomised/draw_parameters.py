"""One draw of all parameters of a randomised phantom from its ranges."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from canvas_fm.data.phantom.randomised.parameter_ranges import _TINY, Autofluorescence, CellKind, Families
from canvas_fm.data.zyx import ZyxUm


@dataclass(frozen=True)
class BackgroundParameters:
    """One draw of the autofluorescence and background channel of a randomised phantom."""

    bodies: float
    diameter_um: float
    amplitude: float
    ratio: float
    ratio_spread: float
    bleed_through: float
    texture_shared: float
    level_counts: float
    photons: float


@dataclass(frozen=True)
class PhantomParameters:
    """One draw of all parameters of a randomised phantom, cell positions excepted."""

    kind: CellKind
    voxel_um: ZyxUm
    diameter_um: float
    size_spread: float
    elongation: float
    profile: Literal["solid", "domed", "ring"]
    density_mm3: float
    apart_um: float
    patchiness: float
    amplitude: float
    amplitude_spread: float
    processes: float  # brightness against the soma, 0 for none
    process_um: float
    faint: float
    faint_share: float  # so many times as many as cells
    specks: float
    speck_um: float
    speck_amplitude: float
    fibres: float
    fibre_amplitude: float
    vessels: float
    vessel_um: float
    vessel_amplitude: float  # below 0: dark lumina
    debris: float
    haze: float
    haze_um: float
    texture: float
    texture_um: float
    cloud: float
    cloud_um: float
    layers: int
    layer_contrast: float
    silent_layers: int  # without cells, but not without what resembles them
    outside: float  # share of the volume that is no tissue, about
    outside_level: float
    blur_um: ZyxUm
    attenuation: float
    attenuation_axis: int
    shading: float
    stripes: float
    stripe_um: float
    stripe_axis: int
    seam: float
    flicker: float
    level_counts: float
    offset_counts: float
    photons: float
    camera_noise: float
    saturation: float  # the share of voxels that is saturated
    bits: int

    def as_dict(self) -> dict[str, Any]:
        """As a dictionary for `json.dumps`."""
        return asdict(self)

    def of_background(self, background: BackgroundParameters) -> PhantomParameters:
        """The same brain as the camera of the background channel sees it."""
        return replace(self, photons=background.photons, level_counts=background.level_counts, saturation=0.0)


def draw_parameters(
    families: Families,
    random: np.random.Generator,
    voxel_um: ZyxUm | None = None,
    kind: CellKind | None = None,
) -> PhantomParameters:
    """Draw the parameters of one phantom; `voxel_um` and `kind` may be fixed."""
    even = _Draw(random)
    kind = kind or families.kinds[int(random.integers(len(families.kinds)))]
    if voxel_um is None:
        across = even.log(families.voxel_yx_um)
        voxel_um = (max(across, even.log(families.voxel_z_um)), across, across)
    small = kind == "nuclei"
    diameter = even.log(families.nucleus_um if small else families.soma_um)
    room = 1e9 * families.filled / (math.pi / 6 * diameter**3)
    amplitude = even.log(families.amplitude)
    photons, texture = even.log(families.photons), even.often(0.8) * even(families.texture)
    level, camera = even.log(families.level_counts), even.log(families.camera_noise)
    # A cell has to be seen: above the noise of a voxel, and above the texture.
    amplitude = max(amplitude, 2.0 * math.sqrt(1 / photons + (camera / level) ** 2), 3.0 * texture)
    # Faint shapes are so bright against the cells, or against the tissue: labels follow either.
    faint = even(families.faint)
    if random.random() < 0.5:
        faint = min(even(families.faint_level) / amplitude, 0.4)
    layers = int(random.choice([1, 1, 2, 3, 4]))
    silent = int(random.integers(layers)) if layers > 1 and random.random() < 0.5 else 0
    values: dict[str, Any] = {
        "kind": kind,
        "voxel_um": voxel_um,
        "diameter_um": diameter,
        "size_spread": even(families.size_spread),
        "elongation": even(families.elongation),
        "profile": random.choice(["solid", "domed", "domed", "ring"] if not small else ["solid", "domed"]),
        "density_mm3": min(even.log(families.density_mm3) / (1 if small else 2.5), room),
        "apart_um": diameter * even.log(families.touching),
        "patchiness": even.often(0.6) * even((0.2, 1.0)),
        "amplitude": amplitude,
        "amplitude_spread": even(families.amplitude_spread),
        "processes": even.often(0.1 if small else 0.65) * even(families.processes),
        "process_um": even.log((10.0, 50.0)),
        "faint": faint,
        "faint_share": (1 if silent else even.often(0.5)) * even((0.2, 2.0)),
        "specks": even.often(0.7) * even(families.specks) ** 2 / max(families.specks[1], 1.0),
        "speck_um": min(even.log((1.0, 3.5)), 0.4 * diameter),
        "speck_amplitude": even.log(families.speck_amplitude),
        "fibres": even.often(0.5) * even(families.fibres),
        "fibre_amplitude": even.log((0.1, 1.5)),
        "vessels": even.often(0.5) * even(families.vessels),
        "vessel_um": even.log((2.5, 14.0)),
        "vessel_amplitude": even((0.1, 1.2)) if random.random() < 0.6 else -even((0.3, 1.0)),
        "debris": even.often(0.25) * even((0.0, 4.0)),
        "haze": even.often(0.7) * even(families.haze),
        "haze_um": even.log((12.0, 60.0)),
        "texture": texture,
        "texture_um": even.log((1.5, 14.0)),
        "cloud": even.often(0.8) * even(families.cloud),
        "cloud_um": even.log((40.0, 250.0)),
        "layers": layers,
        "silent_layers": silent,
        "layer_contrast": even.log(families.layer_contrast),
        "outside": even.often(0.3) * even((0.05, 0.75)),
        "outside_level": even.log((0.02, 0.5)),
        "blur_um": (even.log(families.blur_z_um), *[even.log(families.blur_yx_um)] * 2),
        "attenuation": even.often(0.6) * even(families.attenuation),
        "attenuation_axis": int(random.choice([0, 0, 1, 2])),
        "shading": even.often(0.5) * even(families.shading),
        "stripes": even.often(0.4) * even(families.stripes),
        "stripe_um": even.log((3.0, 20.0)),
        "stripe_axis": int(random.choice([1, 2])),
        "seam": even.often(0.25) * even(families.seam),
        "flicker": even.often(0.4) * even((0.0, 0.06)),
        "level_counts": level,
        "offset_counts": even.often(0.8) * even(families.offset_counts),
        "photons": photons,
        "camera_noise": camera,
        "saturation": even.often(0.15) * even.log((1e-4, 1e-2)),
        "bits": int(random.choice([8, 12, 16, 16, 16])),
    }
    assert set(values) == {field.name for field in fields(PhantomParameters)}
    return PhantomParameters(**values)


def draw_background(
    ranges: Autofluorescence, look: PhantomParameters, random: np.random.Generator
) -> BackgroundParameters:
    """Draw the autofluorescence of a phantom whose other parameters are drawn already."""
    draw = _Draw(random)
    return BackgroundParameters(
        bodies=draw(ranges.bodies),
        diameter_um=look.diameter_um * draw.log(ranges.diameter),
        amplitude=look.amplitude * draw.log(ranges.amplitude),
        ratio=draw.log(ranges.ratio),
        ratio_spread=draw(ranges.ratio_spread),
        bleed_through=draw(ranges.bleed_through),
        level_counts=draw.log(ranges.level_counts),
        photons=draw.log(ranges.photons),
        texture_shared=draw(ranges.texture_shared),
    )


class _Draw:
    """Random numbers of a range, uniform or log-uniform."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random

    def __call__(self, ends: tuple[float, float]) -> float:
        return float(self.random.uniform(*ends))

    def log(self, ends: tuple[float, float]) -> float:
        low, high = (math.log(max(end, _TINY)) for end in ends)
        return math.exp(self.random.uniform(low, high))

    def often(self, chance: float) -> float:
        """1 with this probability, else 0."""
        return float(self.random.random() < chance)
