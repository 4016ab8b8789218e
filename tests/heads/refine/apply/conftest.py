"""A refiner of two volumes, for candidates of a third."""

from __future__ import annotations

import pytest

from canvas_fm.heads.features.extractor import Extractor
from canvas_fm.heads.labels.candidates import label_brains
from canvas_fm.heads.refine.fit.fit import fit_labelled
from canvas_fm.heads.refine.refiner import Refiner


@pytest.fixture(scope="module")
def extractor(encoder, detector) -> Extractor:
    return Extractor(encoder=encoder, detector=detector, pool="centre", layer=1, device="cpu")


@pytest.fixture(scope="module")
def refiner_folder(brains, extractor, tmp_path_factory):
    """A refiner of volumes `a` and `b`, for candidates of `c`."""
    folder = tmp_path_factory.mktemp("refiners") / "refiner"
    trained = label_brains([volume for volume, _ in brains[:2]], [p for _, p in brains[:2]], labels="label")
    fit_labelled(Refiner(C=0.01, correction="centre"), trained, extractor, folder, show=False)
    return folder
