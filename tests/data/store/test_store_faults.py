"""Injected damage: none is silent in a store of ours, and in others what can be detected is an error."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr

from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError

SHAPE = (16, 32, 32)
VOXELS = np.random.default_rng(0).poisson(200, SHAPE).astype(np.uint16)
KINDS = ("flip", "cut", "delete", "append", "zero", "swap", "rename", "shift")


def damage(store: Path, kind: str, random: np.random.Generator) -> str:
    """Change one file (two for a swap) so that it holds other bytes than before; says what was done."""
    files = sorted(path for path in store.rglob("*") if path.is_file())
    path = files[random.integers(len(files))]
    content = path.read_bytes()
    at = int(random.integers(len(content)))
    if kind == "flip":
        changed = bytearray(content)
        changed[at] ^= 1 << int(random.integers(8))
        path.write_bytes(changed)
    elif kind == "cut":
        path.write_bytes(content[:at])
    elif kind == "delete":
        path.unlink()
    elif kind == "append":
        path.write_bytes(content + random.bytes(1 + at % 50))
    elif kind == "zero":
        start = next(i for i in [*range(at, len(content)), *range(at)] if content[i])
        path.write_bytes(content[:start] + bytes(len(content[start : start + 8])) + content[start + 8 :])
    elif kind == "swap":
        other = next(p for p in [*files[files.index(path) + 1 :], *files] if p.read_bytes() != content)
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
        return f"swap {path.name} with {other.name}"
    elif kind == "rename":
        path.rename(path.with_name(f"{path.name}9"))
    else:
        path.write_bytes(content[at:] + content[:at] if at else content[1:])
    return f"{kind} {path.relative_to(store)} at {at}"


def read_all(store: Path) -> np.ndarray:
    volume = Volume.open(store, voxel_um=(4, 2, 2))
    return volume.read((0, 0, 0), volume.shape_zyx)


def test_no_damage_to_a_store_that_we_wrote_is_silent(tmp_path):
    """80 damages over chunks, metadata and manifest: each is one sentence, at open or when all is read."""
    whole = tmp_path / "whole.zarr"
    with Volume.create(
        whole, SHAPE, voxel_um=(4, 2, 2), chunk_zyx=(8, 8, 8), shard_zyx=(8, 16, 16), levels=1
    ) as writer:
        writer.write((0, 0, 0), VOXELS)
    random = np.random.default_rng(1)
    silent, where = [], Counter()
    for number in range(80):
        store = tmp_path / f"{number}.zarr"
        shutil.copytree(whole, store)
        done = damage(store, KINDS[number % len(KINDS)], random)
        try:
            read_all(store)
        except CanvasError as sentence:
            where[type(sentence).__name__] += 1
            if "\n" in str(sentence):
                silent.append(f"{done}: more than one line")
        else:
            silent.append(done)
        shutil.rmtree(store)
    assert not silent
    assert where["DamagedStore"] > 65


@pytest.mark.parametrize("codec", ["blosc", "zstd", "none"])
def test_damage_to_a_foreign_store_is_an_error_where_it_can_be_detected(tmp_path, codec):
    """Lost and cut chunks always show; nothing that is done raises anything but a sentence."""
    codecs = {"zstd": zarr.codecs.ZstdCodec(), "none": None}
    whole = tmp_path / "whole.zarr"
    if codec == "blosc":
        array = zarr.create_array(
            whole,
            shape=SHAPE,
            chunks=(8, 16, 16),
            dtype="uint16",
            zarr_format=2,
            compressors=numcodecs.Blosc(),
        )
    else:
        array = zarr.create_array(
            whole, shape=SHAPE, chunks=(8, 16, 16), dtype="uint16", compressors=codecs[codec]
        )
    array[...] = VOXELS
    random = np.random.default_rng(2)
    silent = []
    for number in range(48):
        store = tmp_path / f"{number}.zarr"
        shutil.copytree(whole, store)
        kind = KINDS[number % len(KINDS)]
        done = damage(store, kind, random)
        try:
            same = np.array_equal(read_all(store), VOXELS)
        except CanvasError as sentence:
            assert "\n" not in str(sentence), done  # noqa: PT017 - one of many, the others pass silently
        else:
            lost = kind in ("cut", "delete", "rename") and ".z" not in done and "zarr.json" not in done
            if lost or (kind == "append" and not same):
                silent.append(done)
        shutil.rmtree(store)
    assert not silent
