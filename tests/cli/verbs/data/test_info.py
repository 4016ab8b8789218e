"""`info`: what any artefact is, as text and as JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest

from canvas_fm.data.points.points import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.viewing.info.summary import brief


def test_a_volume(result, brain):
    found = result("info", brain)
    volume = Volume.open(brain)
    assert found["kind"] == "volume"
    assert found["name"] == "brain"
    assert found["shape_zyx"] == [24, 64, 72]
    assert found["voxel_um"] == [4.0, 1.8, 1.8]
    assert found["extent_mm"] == [0.096, 0.1152, 0.1296]
    assert (found["dtype"], found["marker"]) == ("uint16", "PV")
    assert found["chunk_zyx"] == [8, 32, 32]
    assert found["checksums"] == "every file"
    on_disk = [path for path in brain.rglob("*") if path.is_file()]
    assert found["files"] == len(on_disk)
    assert found["bytes_on_disk"] == sum(path.stat().st_size for path in on_disk)
    assert found["bytes_decoded"] == 24 * 64 * 72 * 2
    # What `POST /v1/embed?window=` takes, to the last bit.
    assert found["window"] == [volume.window.low, volume.window.high]


def test_a_foreign_store_has_no_checksums(result, tmp_path):
    import zarr

    zarr.save_array(tmp_path / "plain.zarr", np.arange(4096, dtype=np.uint16).reshape(16, 16, 16))
    found = result("info", tmp_path / "plain.zarr", "--voxel-um", 4, 2, 2)
    assert found["checksums"] == "no checksums"
    assert found["voxel_um"] == [4.0, 2.0, 2.0]


def test_an_encoder(result, model):
    from canvas_fm.models.load_model import load

    found = result("info", model)
    encoder = load(model)
    assert found["kind"] == "encoder"
    assert found["sha256"] == encoder.sha256
    assert found["parameters"] == sum(p.numel() for p in encoder.net.parameters())
    assert found["decoder_parameters"] == sum(p.numel() for p in encoder.mae.decoder.parameters())
    assert found["trained_on"] == ["somewhere"]
    assert found["provenance"]["recipe"] == {"model": {"mask_ratio": 0.55}}


def test_an_encoder_without_its_decoder(result, model, tmp_path):
    import shutil

    shutil.copytree(model, tmp_path / "bare")
    (tmp_path / "bare" / "decoder.safetensors").unlink()
    assert result("info", tmp_path / "bare")["decoder_parameters"] is None


def test_points(result, points):
    found = result("info", points)
    assert (found["kind"], found["rows"], found["columns"]) == ("points", 4, ["score"])
    assert found["from_zyx"] == [8.0, 10.4, 20.0]
    assert found["to_zyx"] == [20.0, 40.0, 60.0]


def test_no_points_at_all_are_described_too(result, tmp_path):
    Points(np.zeros((0, 3))).write(tmp_path / "none.csv")
    assert result("info", tmp_path / "none.csv")["rows"] == 0


def test_a_recipe(result, recipe):
    found = result("info", recipe)
    assert (found["kind"], found["steps"], found["batch"], found["dim"]) == ("recipe", 3, 4, 24)


def test_text_says_the_same_as_json(run, result, brain):
    code, out, _ = run("info", brain, "--all")
    assert code == 0
    shown = dict(line.split(maxsplit=1) for line in out.splitlines())
    found = result("info", brain)
    assert list(shown) == list(found)
    assert shown["shape_zyx"].split() == ["24", "64", "72"]
    assert shown["kind"] == "volume"


def lines_of(out: str) -> dict[str, str]:
    return dict([*line.split(maxsplit=1), ""][:2] for line in out.splitlines() if not line.startswith(" "))


def test_a_dozen_lines_tell_what_matters_and_how_much_more_there_is(run, result, brain, model, points):
    for path, most in ((brain, "window"), (model, "pool"), (points, "rows")):
        out = run("info", path)[1]
        everything = run("info", path, "--all")[1]
        shown, whole = lines_of(out), lines_of(everything)
        more = shown.pop("more", "0 lines").split()[0]
        assert len(out.splitlines()) <= 12
        assert len(everything.splitlines()) == len(shown) + int(more)
        assert shown.items() <= whole.items()
        assert list(shown)[:2] == ["kind", "path"]
        assert most in shown
        assert list(result("info", path)) == list(whole)


@pytest.mark.parametrize("name", ["detector-microglia", "base", "refiner-cfos"])
def test_a_shipped_model_takes_a_dozen_lines_too(run, name):
    code, out, _ = run("info", name)
    assert (code, len(out.splitlines())) == (0, 12)
    assert out.splitlines()[-1].endswith("lines with --all")
    assert "sha256" in lines_of(out)


def test_a_table_is_cut_where_the_dozen_ends():
    described = {
        "kind": "run",
        "path": "r",
        "step": 1,
        "evaluation": [{"volume": n} for n in range(40)],
        "x": 1,
    }
    shown = brief(described)
    assert len(shown["evaluation"]) == 8
    assert shown["more"] == "33 lines with --all"
    assert "x" not in shown


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nothing", None, "nothing does not exist"),
        ("notes.md", "# no artefact", "notes.md is a file but no zip archive"),
        ("bad.csv", "a,b\n1,2\n", "bad.csv"),
        ("bad.yaml", "training: {stepz: 3}\n", "did you mean 'training.steps'?"),
        ("folder/notes.md", "x", "folder is no Zarr store"),
    ],
)
def test_what_it_does_not_know_is_a_sentence(refusal, tmp_path, monkeypatch, name, content, message):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    assert message in refusal("info", name.split("/")[0])


def test_damage_is_an_error_here_too(refusal, brain, model, tmp_path):
    import shutil

    shutil.copytree(brain, tmp_path / "brain.zarr")
    (tmp_path / "brain.zarr" / "zarr.json").write_text("{}", encoding="utf-8")
    assert "zarr.json" in refusal("info", tmp_path / "brain.zarr")
    shutil.copytree(model, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    assert "model.safetensors is damaged" in refusal("info", tmp_path / "model")


def test_json_is_one_object(run, points):
    _, out, _ = run("info", points, "--json")
    assert isinstance(json.loads(out), dict)
