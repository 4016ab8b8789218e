"""Segmenters of others: what they are given, what becomes of their labels, and what is missing by name.

Stand-ins of their interfaces take the place of the packages, whose weights cannot be shipped.
"""

from __future__ import annotations

import json
import sys
from types import ModuleType

import numpy as np
import pytest
from scipy.ndimage import label

from canvas_fm.analysis.segment.pretrained import segment_pretrained, stitch_planes
from canvas_fm.cli import main
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError
from canvas_fm.evaluation.metrics.segmentation import panoptic_quality
from canvas_fm.models.device import native_bf16
from tests.analysis.segment.test_segment import SHAPE, VOXEL_UM, phantom  # noqa: F401

pytest.importorskip("skimage")


@pytest.fixture
def stand_in(monkeypatch):
    """Puts a module of functions and classes where the package would be; returns the calls that it got."""

    def install(name, **members):
        whole, module = name.split(".")[0], ModuleType(name)
        for key, value in members.items():
            setattr(module, key, value)
        monkeypatch.setitem(sys.modules, whole, module if whole == name else ModuleType(whole))
        monkeypatch.setitem(sys.modules, name, module)

    return install


@pytest.fixture
def weights(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"weights")
    return tmp_path / "w.pth"


def bright(image):
    return label(image > 0.5 * image.max())[0] * 3  # labels with gaps


def test_cellpose_sam_gets_the_clipped_volume_and_its_anisotropy(phantom, stand_in, weights, tmp_path):  # noqa: F811
    seen = {}

    class CellposeModel:
        def __init__(self, pretrained_model, device, use_bfloat16):
            seen["weights"], seen["device"] = pretrained_model, str(device)
            assert use_bfloat16 == native_bf16(device)

        def eval(self, image, *, z_axis, do_3D, anisotropy, normalize):
            seen["range"] = float(image.min()), float(image.max())
            seen["options"] = z_axis, do_3D, anisotropy, normalize
            return bright(image), [], None

    stand_in("cellpose.models", CellposeModel=CellposeModel)
    image, _ = phantom
    volume = Volume.from_array(image, voxel_um=VOXEL_UM)
    cells = segment_pretrained("cellpose-sam", volume, tmp_path / "l.zarr", weights)
    assert seen == {
        "weights": str(weights), "device": "cpu", "range": (0.0, 1.0), "options": (0, True, 2.0, False),
    }  # fmt: skip
    window = np.percentile(image, [0.5, 99.5])
    expected = label(image > window.mean())[0]
    labels = Volume.open(tmp_path / "l.zarr").read((0, 0, 0), SHAPE)
    assert panoptic_quality(labels, expected).pq == pytest.approx(1, abs=0.02)
    assert np.unique(labels).tolist() == list(range(len(cells) + 1))
    assert cells.columns["volume_um3"] == pytest.approx(np.bincount(labels.ravel())[1:] * 2.0)
    at = np.argwhere(labels == 2).mean(0)
    assert cells.zyx[1] == pytest.approx(at)


def test_sam_goes_plane_by_plane_and_its_background_is_no_object(phantom, stand_in, weights, tmp_path):  # noqa: F811
    class Net:
        def to(self, device):
            assert device == "cpu"
            return self

    class SamAutomaticMaskGenerator:
        def __init__(self, net):
            assert isinstance(net, Net)

        def generate(self, image):
            assert image.dtype == np.uint8
            assert image.shape == (*SHAPE[1:], 3)
            found, count = label(image[:, :, 1] > 127)
            masks = [{"segmentation": found == one} for one in range(1, count + 1)]
            return [*masks, {"segmentation": found == 0}]

    def make(checkpoint):
        assert checkpoint == str(weights)
        return Net()

    stand_in(
        "segment_anything", SamAutomaticMaskGenerator=SamAutomaticMaskGenerator,
        sam_model_registry={"vit_l": make},
    )  # fmt: skip
    truth = np.where(phantom[1] < 6, phantom[1], 0)  # without the ball that touches another
    volume = Volume.from_array(np.where(truth > 0, 4000, 100).astype(np.uint16), voxel_um=VOXEL_UM)
    cells = segment_pretrained("sam", volume, tmp_path / "l.zarr", weights, model_type="vit_l")
    labels = Volume.open(tmp_path / "l.zarr").read((0, 0, 0), SHAPE)
    assert ((labels > 0) == (truth > 0)).all()
    assert panoptic_quality(labels, truth).as_dict()["pq"] == 1
    assert len(cells) == 5


def test_micro_sam_segments_in_three_dimensions(phantom, stand_in, weights, tmp_path):  # noqa: F811
    def get(model_type, *, checkpoint, device):
        assert (model_type, checkpoint, device) == ("vit_b_lm", str(weights), "cpu")
        return "predictor", "segmenter"

    def segment(predictor, segmenter, image, *, ndim, verbose):
        assert (predictor, segmenter, ndim, image.dtype) == ("predictor", "segmenter", 3, np.uint8)
        return bright(image.astype(int))

    stand_in(
        "micro_sam.automatic_segmentation", get_predictor_and_segmenter=get,
        automatic_instance_segmentation=segment,
    )  # fmt: skip
    volume = Volume.from_array(phantom[0], voxel_um=VOXEL_UM)
    cells = segment_pretrained("micro-sam", volume, tmp_path / "l.zarr", weights)
    assert len(cells) == int(Volume.open(tmp_path / "l.zarr").read((0, 0, 0), SHAPE).max()) > 0


def test_micro_sams_decoder_is_a_file_of_its_own(phantom, stand_in, weights, tmp_path):  # noqa: F811
    """Without it the package falls back on SAM's own masks; its function of the encoder alone takes it."""
    decoder = tmp_path / "decoder.pt"
    decoder.write_bytes(b"decoder")

    def sam(*, model_type, device, checkpoint_path, decoder_path, return_state):
        assert (model_type, device, return_state) == ("vit_b_lm", "cpu", True)
        assert (checkpoint_path, decoder_path) == (str(weights), str(decoder))
        return "predictor", {"decoder_state": 1}

    def get(model_type, *, predictor, state, device):
        assert (model_type, predictor, state, device) == (
            "vit_b_lm", "predictor", {"decoder_state": 1}, "cpu",
        )  # fmt: skip
        return predictor, "segmenter"

    stand_in("micro_sam.util", get_sam_model=sam)
    stand_in(
        "micro_sam.automatic_segmentation", get_predictor_and_segmenter=get,
        automatic_instance_segmentation=lambda predictor, segmenter, image, **_: bright(image.astype(int)),
    )  # fmt: skip
    volume = Volume.from_array(phantom[0], voxel_um=VOXEL_UM)
    cells = segment_pretrained("micro-sam", volume, tmp_path / "l.zarr", weights, decoder=str(decoder))
    assert len(cells) > 0
    with pytest.raises(CanvasError, match=r"none\.pt is not a file"):
        segment_pretrained("micro-sam", volume, tmp_path / "m.zarr", weights, decoder="none.pt")
    stand_in("segment_anything")
    with pytest.raises(CanvasError, match="micro-sam's weights; sam has none"):
        segment_pretrained("sam", volume, tmp_path / "m.zarr", weights, decoder=str(decoder))


def test_one_plane_is_segmented_as_a_plane_and_weights_that_do_not_load_are_refused(
    stand_in, weights, tmp_path
):
    class CellposeModel:
        def __init__(self, pretrained_model, **_):
            if "bad" in pretrained_model:
                raise ValueError("not a CP4 model")

        def eval(self, image, *, normalize):
            assert image.ndim == 2
            return (bright(image),)

    stand_in("cellpose.models", CellposeModel=CellposeModel)
    plane = np.zeros((1, 16, 16), np.uint16)
    plane[0, 4:8, 4:9] = 900
    volume = Volume.from_array(plane, voxel_um=VOXEL_UM)
    assert len(segment_pretrained("cellpose-sam", volume, tmp_path / "l.zarr", weights)) == 1
    bad = tmp_path / "bad.pth"
    bad.write_bytes(b"")
    with pytest.raises(
        CanvasError, match=r"bad\.pth does not load .* \(ValueError: not a CP4 model\); it needs"
    ):
        segment_pretrained("cellpose-sam", volume, tmp_path / "m.zarr", bad)


def test_planes_are_joined_where_objects_overlap():
    planes = np.zeros((4, 10, 20), np.int32)
    planes[0, 2:8, 2:8], planes[0, 2:8, 10:16] = 1, 2
    planes[1, 2:8, 3:9], planes[1, 2:8, 10:13], planes[1, 2:8, 13:16] = 5, 6, 7  # the second one splits
    planes[2, 2:8, 3:9] = 1
    planes[3, 2:8, 8:14] = 1  # hardly above the first
    found = stitch_planes(planes)
    assert found[:3, 4, 4].tolist() == [1, 1, 1]
    assert found[0, 4, 11] == found[1, 4, 11] == 2
    assert found[1, 4, 14] not in (0, 1, 2)
    assert found[3, 4, 10] not in found[:3]
    assert ((found > 0) == (planes > 0)).all()


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("cellpose-sam", ["pip install 'canvas-fm[cellpose]'", "CC-BY-NC"]),
        ("sam", ["pip install 'canvas-fm[sam]'", "Apache-2.0"]),
        ("micro-sam", ["pip install 'canvas-fm[micro-sam]'", "licence"]),
    ],
)
def test_what_is_missing_is_named_with_its_licence(model, named, phantom, tmp_path, monkeypatch, capsys):  # noqa: F811
    with Volume.create(tmp_path / "image.zarr", SHAPE, voxel_um=VOXEL_UM) as writer:
        writer.write((0, 0, 0), phantom[0])
    words = ["segment", str(tmp_path / "image.zarr"), "--out", str(tmp_path / "l.zarr"), "--table"]
    words += [str(tmp_path / "m.csv"), "--model", model]
    assert main(words) == 1
    assert "needs --weights FILE" in capsys.readouterr().err
    modules = (
        "cellpose",
        "cellpose.models",
        "segment_anything",
        "micro_sam",
        "micro_sam.automatic_segmentation",
    )
    for name in modules:
        monkeypatch.setitem(sys.modules, name, None)
    assert main([*words, "--weights", str(tmp_path / "none.pth")]) == 1
    sentence = " ".join(capsys.readouterr().err.split())
    assert all(part in sentence for part in (f"{model} is not installed", *named)), sentence
    for name in modules:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    assert main([*words, "--weights", str(tmp_path / "none.pth")]) == 1
    sentence = " ".join(capsys.readouterr().err.split())
    assert "there are no weights at" in sentence
    assert named[-1] in sentence
    assert main([*words, "--weights", "w", "--level", "0.4"]) == 1
    assert "--level is of the watershed" in capsys.readouterr().err
    assert not (tmp_path / "l.zarr").exists()


def test_the_verb_writes_labels_and_table(phantom, stand_in, weights, tmp_path, capsys):  # noqa: F811
    class CellposeModel:
        def __init__(self, **_):
            pass

        def eval(self, image, **_):
            return (bright(image),)

    stand_in("cellpose.models", CellposeModel=CellposeModel)
    with Volume.create(tmp_path / "image.zarr", SHAPE, voxel_um=VOXEL_UM) as writer:
        writer.write((0, 0, 0), phantom[0])
    words = ["segment", tmp_path / "image.zarr", "--out", tmp_path / "l.zarr", "--table", tmp_path / "m.csv"]
    words += ["--model", "cellpose-sam", "--weights", weights, "--json"]
    assert main([str(one) for one in words]) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert cells == Volume.open(tmp_path / "l.zarr").read((0, 0, 0), SHAPE).max()


def test_labels_of_another_shape_and_volumes_too_large_are_refused(stand_in, weights, tmp_path, monkeypatch):
    class CellposeModel:
        def __init__(self, **_):
            pass

        def eval(self, image, **_):
            return (image[0] > 0,)

    stand_in("cellpose.models", CellposeModel=CellposeModel)
    volume = Volume.from_array(np.arange(256, dtype=np.uint16).reshape(4, 8, 8), voxel_um=VOXEL_UM)
    with pytest.raises(CanvasError, match=r"gave labels of shape \(8, 8\) for a volume of \(4, 8, 8\)"):
        segment_pretrained("cellpose-sam", volume, tmp_path / "l.zarr", weights)
    monkeypatch.setattr("canvas_fm.analysis.segment.pretrained._MOST_VOXELS", 255)
    with pytest.raises(CanvasError, match="the volume has 256 voxels and cellpose-sam takes it as a whole"):
        segment_pretrained("cellpose-sam", volume, tmp_path / "l.zarr", weights)
