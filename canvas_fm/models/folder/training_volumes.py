"""The volumes that a model was trained on, as its config states them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def training_volumes(provenance: Mapping[str, Any]) -> set[str]:
    """Names of the volumes that a model, and the weights it started from, were trained on."""
    listed = [*(provenance.get("trained_on") or []), *(provenance.get("start_trained_on") or [])]
    return {str(volume["name"]) if isinstance(volume, Mapping) else str(volume) for volume in listed}


def volume_in_training(
    provenance: Mapping[str, Any], name: str | None, crop_of: str | None = None
) -> str | None:
    """The volume in words if a model was trained on it, or on the larger one that it is a crop of; else None.

    Such as "the volume '695', of which 'cfos' is a crop".
    """
    seen = training_volumes(provenance)
    if name is not None and name in seen:
        return f"the volume {name!r}"
    if crop_of is not None and crop_of in seen:
        return f"the volume {crop_of!r}, of which {name!r} is a crop"
    return None
