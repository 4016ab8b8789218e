"""The verbs do what the public functions do, and print it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from canvas_fm import Embeddings, Points, Volume, embed, load
from canvas_fm.cli.verbs.data.info import MARKERS
from serving.protocol.serve_flags import ServedVolume


def test_phantom(result, tmp_path):
    from canvas_fm.data.phantom import phantom

    assert MARKERS == phantom.MARKERS  # the parser keeps its own list, so that --help imports nothing
    found = result("phantom", tmp_path / "ph", "--shape", 16, 40, 48, "--markers", "PV", "--seed", 3)
    assert found == {"PV": str(tmp_path / "ph" / "PV" / "raw.zarr")}
    volume = Volume.open(found["PV"])
    assert (volume.shape_zyx, volume.marker, volume.voxel_um) == ((16, 40, 48), "PV", (4.0, 1.8, 1.8))


def test_pretrain_then_info(result, refusal, brain, recipe, tmp_path):
    command = [
        "pretrain",
        recipe,
        "--volumes",
        brain,
        "--out",
        tmp_path / "run",
        "--device",
        "cpu",
        "--seed",
        5,
    ]
    done = result(*command, "--set", "training.steps=2", "training.batch=2")
    assert (done["kind"], done["step"], done["steps"]) == ("run", 2, 2)
    assert result("info", tmp_path / "run") == done
    assert len(done["last_losses"]) == 2
    assert done["evaluation"][0]["psnr_masked"] > 0
    assert load(done["encoder"]).config.provenance["recipe"]["seed"] == 5
    assert "already holds a training; give --resume" in refusal(*command)
    again = result(*command, "--set", "training.steps=2", "training.batch=2", "--resume")
    assert again == done


def test_held_out_is_names_or_a_number(monkeypatch, brain, run):
    seen = []
    monkeypatch.setattr(
        "canvas_fm.training.mae.pretrain.pretrain", lambda *a, **k: seen.append(k) or interrupt()
    )

    def interrupt():
        raise KeyboardInterrupt

    for words in (["2"], ["2", "3"], ["brain"], []):
        flags = ["--held-out", *words] if words else []
        run("pretrain", "phantom", "--volumes", brain, "--out", "o", *flags, "--resample", 4, 2, 2)
    assert [kept["held_out"] for kept in seen] == [2, ["2", "3"], ["brain"], []]
    assert seen[0]["resample_to"] == (4.0, 2.0, 2.0)


def test_embed_is_what_python_gives(result, brain, model, points, tmp_path):
    out = tmp_path / "cells.emb.zarr"
    found = result(
        "embed", model, brain, "--points", points, "--out", out, "--device", "cpu", "--pool", "centre"
    )
    assert (found["rows"], found["dim"], found["pool"]) == (4, 24, "centre")
    python = embed(load(model), Volume.open(brain), Points.read(points).zyx, pool="centre", device="cpu")
    stored = Embeddings.open(out)
    assert np.array_equal(stored.vectors, python)
    assert stored.encoder_sha256 == found["encoder"] == load(model).sha256
    assert stored.columns["score"].tolist() == [0.5, 0.25, 1, 0]
    assert result("info", out)["rows"] == 4


def test_embed_on_a_grid(result, brain, model, tmp_path):
    out = tmp_path / "grid.emb.zarr"
    assert result("embed", model, brain, "--grid", 8, 16, 40, "--out", out)["rows"] == 2 * 3 * 2
    zyx = Embeddings.open(out).zyx
    assert zyx[0].tolist() == [8, 16, 16]  # the first crop starts at the first voxel
    assert zyx[-1].tolist() == [16, 48, 56]


def test_a_resampled_grid_lies_inside_and_starts_at_the_border(result, model, tmp_path):
    path = tmp_path / "fine.zarr"
    with Volume.create(path, (48, 96, 96), voxel_um=(2.0, 0.9, 0.9)) as writer:
        writer.write((0, 0, 0), np.random.default_rng(0).integers(0, 999, (48, 96, 96), dtype=np.uint16))
    out = tmp_path / "grid.emb.zarr"
    command = ["embed", model, path, "--grid", 8, 16, 16, "--resample", "--out", out]
    assert result(*command)["rows"] == 2 * 2 * 2  # a crop covers about 32 × 64 × 64 of these voxels
    assert Embeddings.open(out).zyx.min(0).tolist() == pytest.approx([16, 32, 32], abs=1)


def test_export(result, refusal, brain, model, points, tmp_path):
    out = tmp_path / "cells.emb.zarr"
    result("embed", model, brain, "--points", points, "--out", out)
    found = result("export", out, tmp_path / "cells.npz")
    assert found == {"written": str(tmp_path / "cells.npz"), "rows": 4, "dim": 24}
    with np.load(tmp_path / "cells.npz") as held:
        assert np.array_equal(held["embeddings"], Embeddings.open(out).vectors)
    assert "is there already" in refusal("export", out, tmp_path / "cells.npz")
    result("export", out, tmp_path / "cells.npz", "--overwrite")


def test_reconstruct(result, brain, model, tmp_path):
    figure = tmp_path / "fig.png"
    found = result("reconstruct", model, brain, "--out", figure, "--at", 12, 30, 30, "--seed", 1)
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert found["at_zyx"] == [12.0, 30.0, 30.0]
    assert (found["mask_ratio"], found["masked_patches"]) == (0.55, 36)  # the ratio it was trained with
    # The oracle has seen the patches: nothing that is one value a patch comes nearer.
    oracle = found["patch_mean"]["psnr_masked"]
    assert oracle >= max(found[name]["psnr_masked"] for name in ("crop_mean", "neighbours_mean"))
    assert found["psnr_composite"] > found["psnr_masked"]
    again = ["reconstruct", model, brain, "--out", figure, "--overwrite", "--seed", 1]
    assert result(*again, "--at", 12, 30, 30) == found
    other = result(*again, "--mask-ratio", 0.75)
    assert other["masked_patches"] == 48


def test_a_drawn_crop_holds_signal(result, brain, model, tmp_path):
    for seed in range(2):
        at = result("reconstruct", model, brain, "--out", tmp_path / f"{seed}.png", "--seed", seed)["at_zyx"]
        assert abs(at[1] - 30) <= 26  # the bright part spans 20 to 40, half a crop is 16
        assert abs(at[2] - 30) <= 26


def test_skipped_chunks_are_named_on_stderr_and_in_the_result(run, model, points, brain, tmp_path):
    import shutil

    damaged = tmp_path / "brain.zarr"
    shutil.copytree(brain, damaged)
    chunk = max((p for p in damaged.glob("0/c/**/*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    command = ["embed", model, damaged, "--points", points, "--out", tmp_path / "x.emb.zarr"]
    code, _, err = run(*command)
    assert code == 1
    assert "does not match its checksum" in err
    code, out, err = run(*command, "--on-bad-chunk", "skip", "--json")
    assert code == 0, err
    skipped = json.loads(out)["bad_chunks"][str(damaged)]
    assert skipped
    assert all(sentence in err for sentence in skipped)


def test_serve_hands_everything_on(monkeypatch, run, tmp_path):
    seen = {}

    def serve(model, volumes, **options):
        seen.update(options, model=model, volumes=volumes)

    monkeypatch.setattr("serving.launch.serve.serve", serve)
    flags = [
        "--port",
        0,
        "--host",
        "::1",
        "--limit",
        "max_points=7",
        "max_body_mb=1.5",
        "--ignore-voxel-size",
    ]
    assert run("serve", "m", "--volume", "cube=a.zarr", *flags)[0] == 0
    assert (seen["model"], seen["volumes"]) == ("m", {"cube": ServedVolume(path="a.zarr")})
    assert (seen["port"], seen["host"], seen["ignore_voxel_size"]) == (0, "::1", True)
    assert (seen["limits"].max_points, seen["limits"].max_body_mb) == (7, 1.5)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("max_pts=3", "no limit is called 'max_pts'; known: max_body_mb"),
        ("max_points", "KEY=VALUE"),
        ("max_points=-1", "max_points"),
    ],
)
def test_wrong_limits(refusal, limit, message):
    assert message in refusal("serve", "m", "--limit", limit)
