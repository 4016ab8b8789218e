"""The volumes that a model was trained on, as its config states them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def training_volumes(provenance: Mapping[str, Any]) -> set[str]:
    """Names of the volumes that a model, and the weights it started from, were trained on."""
    listed = [*(provenance.get("trained_on") or []), *(provenance.get("start_trained_on") or [])]
    return {str(volume["name"]) if isinstance(volume, Mapping) else str(volume) for volume in listed}
