"""A detector and a volume of blobs."""

from __future__ import annotations

import pytest

from tests.inference.detect.nets import blobs, make_detector, write


@pytest.fixture(scope="session")
def detector(tmp_path_factory):
    return make_detector(tmp_path_factory.mktemp("models") / "run" / "detector")


@pytest.fixture(scope="session")
def volume(tmp_path_factory, _own_cache):
    return write(tmp_path_factory.mktemp("volumes") / "brain.zarr", blobs())
