"""`detect --refiner` gives the rows of `detect` and then `refine`, and makes the detector's map once."""

from __future__ import annotations

import numpy as np
import pytest

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError
from canvas_fm.heads.features.extractor import Extractor
from canvas_fm.heads.labels.candidates import label_brains
from canvas_fm.heads.refine.apply import apply
from canvas_fm.heads.refine.apply.apply import refine
from canvas_fm.heads.refine.fit.fit import fit_labelled
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.inference.detect.detect import detect
from canvas_fm.models.detector.convmixer import ConvMixerConfig, HeatMapNet
from canvas_fm.models.folder.network_config import AmplitudeConfig
from canvas_fm.models.load_model import load, save_detector
from canvas_fm.pipeline.detect_refined import detect_refined
from tests.heads.conftest import VOXEL_UM, make_encoder, spots

TILE = {"tile_zyx": (8, 24, 40), "device": "cpu"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    import torch

    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(1)
    net = HeatMapNet(ConvMixerConfig(dim=4, depth=1, kernel_zyx=(3, 3, 3)))
    torch.nn.init.normal_(net.head.weight, std=3.0)
    torch.nn.init.zeros_(net.head.bias)
    save_detector(folder / "det", net, voxel_um=VOXEL_UM, threshold=0.55, min_distance_um=6)
    make_encoder(folder / "enc")
    return load(folder / "det", kind="detector"), load(folder / "enc", kind="encoder")


@pytest.fixture(scope="module")
def volume(tmp_path_factory) -> Volume:
    return spots(tmp_path_factory.mktemp("brain") / "c.zarr", 2)[0]


FEATURES = ["centred, with logit and score", "plain", "encoder alone"]


@pytest.fixture(scope="module", params=FEATURES)
def refiner(request, models, tmp_path_factory):
    detector, encoder = models
    folder = tmp_path_factory.mktemp("refiner")
    brains = [spots(folder / f"{name}.zarr", seed) for seed, name in enumerate("ab")]
    parts = label_brains([v for v, _ in brains], [_scored(p) for _, p in brains], labels="label")
    plain, alone = request.param == "plain", request.param == "encoder alone"
    extractor = Extractor(
        encoder, None if alone else detector, device="cpu", detector_score=not (plain or alone)
    )
    settings = Refiner("mae" if alone else "concat", C=0.01)
    fit_labelled(settings, parts, extractor, folder / "r", candidate_score=not (plain or alone), show=False)
    return Refiner.load(folder / "r")


def _scored(points: Points) -> Points:
    score = np.random.default_rng(0).random(len(points))
    return Points(points.zyx, points.columns | {"score": score})


def both(models, volume, refiner, tmp_path, **options):
    detector, encoder = models
    needed = {"encoder": encoder} | ({"detector": detector} if "detector" in refiner.provenance_ else {})
    detect(detector, volume, out=tmp_path / "d.csv", **TILE, **options)
    candidates = Points.read(tmp_path / "d.csv")
    return candidates, refine(refiner, volume, candidates, out=tmp_path / "r.csv", device="cpu", **needed)


@pytest.mark.parametrize(
    "options", [{"subvoxel": True, "box": (2, 8, 8, 14, 60, 50)}, pytest.param({}, marks=pytest.mark.slow)]
)
def test_rows_are_those_of_one_after_the_other(models, volume, refiner, tmp_path, options, monkeypatch):
    candidates, wanted = both(models, volume, refiner, tmp_path, **options)
    assert len(candidates) > 20
    if "detector" in refiner.provenance_:
        monkeypatch.setattr(Extractor, "detector_blocks", lambda *_, **__: pytest.fail("a second map"))
    cells = detect_refined(
        models[0], volume, refiner, tmp_path / "one.csv", encoder=models[1], **TILE, **options, show=False
    )
    np.testing.assert_allclose(cells.zyx, wanted.zyx, atol=1e-4)
    for column in ("score", "p_cell"):
        np.testing.assert_allclose(cells.columns[column], wanted.columns[column], atol=1e-5)
    for key in ("p_cell_threshold", "detector_sha256", "refiner_sha256", "volume", "threshold"):
        assert cells.meta[key] == wanted.meta[key]
    assert float(cells.meta["expected_cells"]) == pytest.approx(
        float(wanted.meta["expected_cells"]), rel=1e-3
    )
    written = Points.read(tmp_path / "one.csv")
    np.testing.assert_array_equal(written.columns["p_cell"].astype(np.float32), cells.columns["p_cell"])


@pytest.mark.parametrize("refiner", [FEATURES[0]], indirect=True)
@pytest.mark.parametrize("same_map", [True, False])
def test_a_detector_of_the_same_net_with_other_scores_needs_no_second_map(
    models, volume, refiner, tmp_path, monkeypatch, same_map
):
    """As a detector shipped anew with the weights of before, on which the refiner was fitted."""
    fitted_on, encoder = models
    config = fitted_on.config
    amplitude = AmplitudeConfig(sigma_um=5.0, weight=0.5, unit=64.0)
    anew = save_detector(
        tmp_path / "anew", fitted_on.net, voxel_um=config.voxel_um, threshold=0.4,
        min_distance_um=config.min_distance_um, smooth_um=0.0 if same_map else 2.0, amplitude=amplitude,
    )  # fmt: skip
    monkeypatch.setattr(apply, "_shipped", lambda needed, kind: fitted_on)
    detect(anew, volume, out=tmp_path / "d.csv", **TILE)
    wanted = refine(refiner, volume, Points.read(tmp_path / "d.csv"), encoder=encoder, device="cpu")
    maps, real = [], Extractor.detector_blocks
    monkeypatch.setattr(Extractor, "detector_blocks", lambda *a, **k: (maps.append(1), real(*a, **k))[1])
    cells = detect_refined(anew, volume, refiner, tmp_path / "one.csv", encoder=encoder, **TILE, show=False)
    assert bool(maps) != same_map
    assert len(cells) > 20
    np.testing.assert_allclose(cells.columns["p_cell"], wanted.columns["p_cell"], atol=1e-5)


@pytest.mark.parametrize(
    "refiner",
    [FEATURES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in FEATURES[1:])],
    indirect=True,
)
def test_it_resumes_in_either_part_and_takes_what_is_finished(models, volume, refiner, tmp_path, monkeypatch):
    from canvas_fm.heads.refine.apply import candidate_classifier
    from canvas_fm.inference.detect.tiles.tiled_detection import TiledDetection

    call = (models[0], volume, refiner, tmp_path / "one.csv")
    options = {"encoder": models[1], "show": False, **TILE}
    monkeypatch.setattr(candidate_classifier, "BLOCK", 10)
    for owner, name, at in ((TiledDetection, "maxima", 3), (Refiner, "predict_proba", 2)):
        real, calls = getattr(owner, name), []

        def dying(self, *args, real=real, calls=calls, at=at, **more):
            calls.append(1)
            if len(calls) == at:
                raise KeyboardInterrupt
            return real(self, *args, **more)

        monkeypatch.setattr(owner, name, dying)
        with pytest.raises(KeyboardInterrupt):
            detect_refined(*call, **options)
        monkeypatch.setattr(owner, name, real)
    tiles = [path for path in (tmp_path / "one.csv.unfinished").glob("*.part") if path.name[0] == "0"]
    tiles[0].write_bytes(tiles[0].read_bytes()[:-1] + b"!")  # is computed again
    cells = detect_refined(*call, **options)
    _, wanted = both(models, volume, refiner, tmp_path)
    np.testing.assert_allclose(cells.columns["p_cell"], wanted.columns["p_cell"], atol=1e-5)
    monkeypatch.setattr(TiledDetection, "maxima", lambda *_, **__: pytest.fail("detected again"))
    again = detect_refined(*call, **options)
    np.testing.assert_array_equal(again.columns["p_cell"].astype(np.float32), cells.columns["p_cell"])
    with pytest.raises(CanvasError, match="made from other inputs"):
        detect_refined(*call, **options, threshold=0.6)
