"""Options of an atlas and of the registration to it: of every verb that takes one, and of a study."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from canvas_fm.data.zyx import Zyx
from canvas_fm.files.option_sets import AnySequence, Flag, Options, Size

if TYPE_CHECKING:
    from canvas_fm.analysis.regions.atlas import Atlas

SizeUm = Annotated[tuple[Size, Size, Size], AnySequence]


class AtlasOptions(Options):
    """Options for opening an atlas, and for placing points in it."""

    table: Annotated[str | None, Flag("FILE")] = Field(
        None, description="names of the labels: .csv or .json with id and name"
    )
    atlas_voxel_um: SizeUm | None = Field(None, description="where the atlas does not state it")
    orientation: Annotated[str | None, Flag("LLL")] = Field(
        None,
        description="where the volume's z, y and x begin, by BrainGlobe's letters, such as psl; default: as "
        "the atlas, or as the registration's settings say",
    )
    atlas_orientation: Annotated[str | None, Flag("LLL")] = Field(
        None, description="the same of the atlas' label volume"
    )
    shape: Annotated[Zyx, AnySequence] | None = Field(
        None, description="size of the volume in voxels; default: the atlas' extent"
    )
    transform: Annotated[tuple[str, ...], AnySequence, Flag("FILE")] = Field(
        (),
        description="affine (4 × 4) or displacement field, in µm and z y x, from the volume to the atlas; in "
        "order",
    )
    field_voxel_um: SizeUm | None = Field(None, description="grid of a displacement field")
    hemispheres: Annotated[str | None, Flag("FILE")] = Field(
        None, description="label volume: 1 left, 2 right"
    )
    brainglobe: Annotated[str | None, Flag("DIR")] = Field(
        None, description="folder of BrainGlobe atlases; default ~/.brainglobe"
    )
    allow_outside: bool = Field(False, description="count what is inside, however many points are outside")

    def open(self, atlas: str, path: Callable[[str], str] = str) -> Atlas:
        """The atlas; `path` resolves relative paths."""
        from canvas_fm.analysis.regions.read_atlas import open_atlas

        table, hemispheres, folder = (
            None if name is None else path(name) for name in (self.table, self.hemispheres, self.brainglobe)
        )
        return open_atlas(
            path(atlas),
            table=table,
            atlas_voxel_um=self.atlas_voxel_um,
            atlas_orientation=self.atlas_orientation,
            hemispheres=hemispheres,
            brainglobe_folder=folder,
        )

    def placing(self, path: Callable[[str], str] = str) -> dict[str, Any]:
        """Keyword arguments of `place` and `count_regions`, the transforms opened."""
        from canvas_fm.analysis.regions.transform import read_transform

        return {
            "orientation": self.orientation,
            "shape_zyx": self.shape,
            "transforms": [read_transform(path(name), self.field_voxel_um) for name in self.transform],
            "allow_outside": self.allow_outside,
        }
