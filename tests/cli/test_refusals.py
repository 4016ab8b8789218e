"""Bad input: each kind is one sentence, exit code 1, no traceback, and nothing left that looks done."""

from __future__ import annotations

import errno
import os
import socket

import numpy as np
import pytest
import zarr

from canvas_fm.data.volume.volume import Volume


@pytest.fixture
def embed(refusal, model, tmp_path):
    """`embed(volume, points)` → the sentence with which `canvas-fm embed` refuses; nothing is written."""

    def go(volume: object, points: object, *flags: object) -> str:
        out = tmp_path / "x.emb.zarr"
        sentence = refusal("embed", model, volume, "--points", points, "--out", out, *flags)
        assert not out.exists()
        return sentence

    return go


def plain(path, voxels: np.ndarray):
    """A plain Zarr array, which needs --voxel-um."""
    zarr.save_array(path, voxels)
    return path


def csv(path, *rows: str):
    path.write_text("\n".join(["z,y,x", *rows]) + "\n", encoding="utf-8")
    return path


def test_missing_files(refusal, embed, brain, points, model, tmp_path):
    assert embed(tmp_path / "nowhere.zarr", points) == f"{tmp_path}/nowhere.zarr does not exist"
    assert f"no points file at {tmp_path}/nowhere.csv" in embed(brain, tmp_path / "nowhere.csv")
    nowhere = tmp_path / "nowhere"
    assert "none is shipped by that name" in refusal(
        "embed", nowhere, brain, "--points", points, "--out", "x"
    )
    assert "none is shipped by that name" in refusal("pretrain", nowhere, "--volumes", brain, "--out", "x")
    assert f"{nowhere} does not exist" in refusal("export", nowhere, tmp_path / "x.npz")
    assert "the volume cube is not there" in refusal("serve", model, "--volume", f"cube={nowhere}")
    assert "folder" in refusal("reconstruct", model, brain, "--out", nowhere / "f.png")


def test_a_volume_without_a_voxel_size(embed, points, tmp_path):
    volume = plain(tmp_path / "plain.zarr", np.ones((24, 64, 72), np.uint16))
    assert "has no voxel size; give --voxel-um z y x once" in embed(volume, points)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((64, 64), "a volume has z, y and x"),
        ((3, 3, 3, 3), "has 3 along axis c: choose one with --c 0 to 2"),
        ((2, 2, 2, 3, 3, 3), "has a further axis of length 2; one can be chosen of t and c only"),
    ],
)
def test_a_volume_of_the_wrong_shape(embed, points, tmp_path, shape, expected):
    volume = plain(tmp_path / "plain.zarr", np.ones(shape, np.uint16))
    sentence = embed(volume, points, "--voxel-um", 4, 1.8, 1.8)
    assert "plain.zarr" in sentence
    assert expected in sentence


def test_a_volume_of_the_wrong_type(embed, points, tmp_path):
    volume = plain(tmp_path / "plain.zarr", np.ones((24, 64, 72), np.complex64))
    assert "complex64" in embed(volume, points, "--voxel-um", 4, 1.8, 1.8)


def test_an_empty_volume(embed, points, tmp_path):
    volume = plain(tmp_path / "plain.zarr", np.ones((0, 64, 72), np.uint16))
    assert "is empty" in embed(volume, points, "--voxel-um", 4, 1.8, 1.8)


def test_a_volume_that_holds_nan(embed, points, tmp_path):
    voxels = np.random.default_rng(0).random((24, 64, 72), dtype=np.float32)
    voxels[10:14, 28:34, 28:34] = np.nan
    volume = plain(tmp_path / "plain.zarr", voxels)
    assert "NaN" in embed(volume, points, "--voxel-um", 4, 1.8, 1.8)


def test_a_crop_larger_than_the_volume(embed, refusal, model, tmp_path):
    path = tmp_path / "thin.zarr"
    with Volume.create(path, (12, 64, 64), voxel_um=(4, 1.8, 1.8)) as writer:
        writer.write((0, 0, 0), np.random.default_rng(0).integers(0, 999, (12, 64, 64), dtype=np.uint16))
    message = "larger than"
    assert message in embed(path, csv(tmp_path / "one.csv", "6,32,32"))
    assert message in refusal("embed", model, path, "--grid", 8, 8, 8, "--out", tmp_path / "x.emb.zarr")
    assert message in refusal("reconstruct", model, path, "--out", tmp_path / "f.png")
    assert message in refusal("reconstruct", model, path, "--out", tmp_path / "f.png", "--at", 6, 32, 32)
    assert message in refusal("pretrain", "phantom", "--volumes", path, "--out", tmp_path / "run")


def test_points_outside(embed, refusal, model, brain, tmp_path):
    sentence = embed(brain, csv(tmp_path / "far.csv", "1,1,1", "100,1,1"))
    assert "outside the volume: 1 of 2, first at row 2" in sentence
    figure = tmp_path / "f.png"
    assert "outside" in refusal("reconstruct", model, brain, "--out", figure, "--at", 24, 1, 1)
    assert not figure.exists()


def test_points_in_another_axis_order(embed, brain, tmp_path):
    """x, y, z under the names z, y, x."""
    points = csv(tmp_path / "xyz.csv", "70,60,20", "65,10,3")
    assert "are the columns z, y, x in voxels" in embed(brain, points)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no points"),
        (["1,2,nan"], "x"),
        (["1,2"], "1"),
        (["1,2,three"], "three"),
    ],
)
def test_files_of_points_that_are_none(embed, brain, tmp_path, rows, message):
    assert message in embed(brain, csv(tmp_path / "bad.csv", *rows))


def test_an_unknown_recipe_key(refusal, brain, tmp_path):
    command = ["pretrain", "phantom", "--volumes", brain, "--out", tmp_path / "run"]
    assert "did you mean 'training.steps'?" in refusal(*command, "--set", "training.stepz=3")
    assert "KEY=VALUE was expected" in refusal(*command, "--set", "training.steps")
    assert not (tmp_path / "run").exists()


def test_an_encoder_for_another_voxel_size(embed, refusal, model, points, tmp_path):
    path = tmp_path / "fine.zarr"
    with Volume.create(path, (48, 96, 96), voxel_um=(2.0, 0.9, 0.9)) as writer:
        writer.write((0, 0, 0), np.random.default_rng(0).integers(0, 999, (48, 96, 96), dtype=np.uint16))
    figure = tmp_path / "f.png"
    for sentence in (embed(path, points), refusal("reconstruct", model, path, "--out", figure)):
        assert "2 × 0.9 × 0.9" in sentence
        assert "4 × 1.8 × 1.8" in sentence
        assert "--resample" in sentence
        assert "--ignore-voxel-size" in sentence
    sentence = refusal("embed", model, path, "--grid", 8, 8, 8, "--out", tmp_path / "x.emb.zarr")
    assert "--resample" in sentence


def test_a_port_in_use(refusal, model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} on 127.0.0.1 is in use" in refusal("serve", model, "--port", port)
    assert "ports go from 1 to 65535" in refusal("serve", model, "--port", 70_000)


def test_a_device_that_is_not_there(embed, brain, points):
    assert "device 'cuda:77'" in embed(brain, points, "--device", "cuda:77")
    assert "device 'abacus'" in embed(brain, points, "--device", "abacus")


def test_a_model_that_cannot_reconstruct(refusal, model, brain, tmp_path):
    import shutil

    shutil.copytree(model, tmp_path / "bare")
    (tmp_path / "bare" / "decoder.safetensors").unlink()
    sentence = refusal("reconstruct", tmp_path / "bare", brain, "--out", tmp_path / "f.png")
    assert "no decoder.safetensors, so it cannot reconstruct" in sentence


@pytest.mark.parametrize("ratio", [0, 1, -1, 1.5])
def test_masks_of_nothing_or_everything(refusal, model, brain, tmp_path, ratio):
    command = ["reconstruct", model, brain, "--out", tmp_path / "f.png", "--mask-ratio", ratio]
    assert "masks nothing or everything" in refusal(*command)


@pytest.mark.parametrize("verb", ["embed", "pretrain", "phantom", "export", "reconstruct"])
def test_a_full_disk(verb, refusal, run, model, brain, points, recipe, tmp_path, monkeypatch):
    held, out = tmp_path / "held.emb.zarr", tmp_path / "full"
    commands = {
        "embed": ["embed", model, brain, "--points", points, "--out", out],
        "pretrain": ["pretrain", recipe, "--volumes", brain, "--out", out],
        "phantom": ["phantom", out, "--shape", 16, 32, 32, "--markers", "PV"],
        "export": ["export", held, out.with_suffix(".npz")],
        "reconstruct": ["reconstruct", model, brain, "--out", out.with_suffix(".png")],
    }
    if verb == "export":
        assert run("embed", model, brain, "--points", points, "--out", held)[0] == 0

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert "no space left on the disk while writing" in refusal(*commands[verb])
    for written in (out.with_suffix(".npz"), out.with_suffix(".png"), out / "last.pt", out / "PV"):
        assert not written.exists()


def test_the_demo_replaces_only_a_demo(refusal, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years", encoding="utf-8")
    assert "holds something that no demo left there" in refusal("demo", "--out", tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text(encoding="utf-8") == "years"
    assert "is a file" in refusal("demo", "--out", tmp_path / "mine" / "thesis.tex")
