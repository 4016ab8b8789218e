"""Addresses of stores: what they mean, and what is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from canvas_fm.data.store.remote.address import Address
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError


@pytest.mark.parametrize(
    "given", ["https://data.example.org/brain.zarr", "s3://bucket/brain.zarr", "http://a/b.zarr"]
)
def test_the_library_reads_no_address(given: str):
    for path in (given, Path(given)):
        with pytest.raises(CanvasError, match="read by the service alone"):
            Volume.open(path)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("https://Data.Example.org/a/brain.zarr/", "https://data.example.org/a/brain.zarr"),
        ("https://data.example.org:443/b.zarr", "https://data.example.org/b.zarr"),
        ("https://data.example.org:9000/b c%20d.zarr", "https://data.example.org:9000/b%20c%20d.zarr"),
        ("https://[FD00::1]:9000/b.zarr", "https://[fd00::1]:9000/b.zarr"),
        ("https://10.0.0.5/b.zarr", "https://10.0.0.5/b.zarr"),
        ("s3://bucket/a/brain.zarr", "https://bucket.s3.amazonaws.com/a/brain.zarr"),
        ("s3://dotted.bucket/a/brain.zarr", "https://s3.amazonaws.com/dotted.bucket/a/brain.zarr"),
    ],
)
def test_addresses_are_taken_apart(given: str, meant: str):
    assert str(Address.parse(given)) == meant
    assert Address.parse(meant) == Address.parse(given)


@pytest.mark.parametrize(
    "given",
    [
        "http://data.example.org/b.zarr",
        "ftp://data.example.org/b.zarr",
        "file:///etc/passwd",
        "https:///b.zarr",
        "https://data.example.org:0/b.zarr",
        "https://data.example.org:99999/b.zarr",
        "https://data.example.org:x/b.zarr",
        "https://ex ample/b.zarr",
        "https://exa\\mple/b.zarr",
        "https://bücher.example/b.zarr",
        "https://[fe80::1%25eth0]/b.zarr",
        "https://[::1/b.zarr",
        "s3://bucket",
        "s3://bucket/",
        "s3://UPPER/b.zarr",
    ],
)
def test_what_is_no_address_of_a_store_is_refused(given: str):
    with pytest.raises(CanvasError, match=r"is no |names no store"):
        Address.parse(given)


@pytest.mark.parametrize(
    "given",
    [
        "https://me:hunter2@h.example/b",
        "https://hunter2@h.example/b",
        "https://h.example/b?sig=hunter2",
        "s3://b@b/k#hunter2",
    ],
)
def test_an_address_with_a_secret_is_refused_and_not_repeated(given: str):
    with pytest.raises(CanvasError, match="without credentials") as found:
        Address.parse(given)
    assert "hunter2" not in str(found.value)
