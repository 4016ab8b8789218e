"""The volumes that a model was trained on, as its config states them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_LISTS = ("trained_on", "start_trained_on")


def training_volumes(provenance: Mapping[str, Any]) -> set[str]:
    """Names of the volumes that a model, and the weights it started from, were trained on."""
    return {name for name, _ in _listed(provenance)}


def volume_in_training(
    provenance: Mapping[str, Any], name: str | None, crop_of: str | None = None
) -> str | None:
    """The volume in words if a model was trained on it, or on tissue that it may share; else None.

    That is the larger volume that it is a crop of, a crop of it, or another crop of the same one, such as
    "the volume '695', of which 'cfos' is a crop".
    """
    listed = dict(_listed(provenance))
    if name is not None and name in listed:
        return f"the volume {name!r}"
    if crop_of is not None and crop_of in listed:
        return f"the volume {crop_of!r}, of which {name!r} is a crop"
    for crop, cube in listed.items():
        if cube is not None and cube == name:
            return f"the volume {crop!r}, which is a crop of {name!r}"
        if cube is not None and cube == crop_of:
            return f"the volume {crop!r}, which is a crop of {cube!r} as {name!r} is"
    return None


def _listed(provenance: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Names of training volumes, and of the larger ones that they are crops of."""
    for key in _LISTS:
        listed = provenance.get(key) or []
        for volume in listed:
            about = listed[volume] if isinstance(listed, Mapping) else volume
            about = about if isinstance(about, Mapping) else {}
            cube = about.get("crop_of")
            yield str(about.get("name", volume)), None if cube is None else str(cube)
