"""Short form of `canvas-fm info`: the dozen fields that come first."""

from __future__ import annotations

from typing import Any

LINES = 12
_FIRST = {
    "volume": (
        *("marker", "shape_zyx", "voxel_um", "extent_mm", "dtype", "window", "checksums", "bytes_on_disk"),
        "bad_chunks",
    ),
    "run": ("step", "steps", "last_losses", "checkpoint", "encoder", "detector", "evaluation"),
    "encoder": (
        *("sha256", "crop_zyx", "patch_zyx", "dim", "depth", "parameters", "voxel_um", "pool"),
        "trained_on",
    ),
    "detector": ("sha256", "voxel_um", "threshold", "min_distance_um", "trained_on", "card", "figures"),
    "refiner": ("sha256", "features", "models", "threshold", "left_out", "trained_on", "figures"),
    "embeddings": (
        *("rows", "dim", "volume", "marker", "voxel_um", "pool", "precision", "encoder_sha256"),
        "columns",
    ),
}


def brief(described: dict[str, Any]) -> dict[str, Any]:
    """Of what `describe` gives the keys that tell most, in at most twelve lines, and how many there are more.

    Of a long list of dictionaries, a line each, the first ones are kept; a kind without a choice is cut.
    """
    keys = ("kind", "path", *_FIRST.get(described["kind"], described))
    shown: dict[str, Any] = {}
    left = LINES - 1
    for key in dict.fromkeys(key for key in keys if key in described):
        value = described[key]
        if left > 0:
            shown[key] = value[:left] if _is_table(value) else value
            left -= _lines(shown[key])
    more = sum(map(_lines, described.values())) - sum(map(_lines, shown.values()))
    return shown | ({"more": f"{more} lines with --all"} if more else {})


def _lines(value: Any) -> int:
    return len(value) if _is_table(value) else 1


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)
