"""Models at addresses, against a stand-in on 127.0.0.1: pushed, fetched once, verified, used offline."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest

import canvas_fm as cf
from canvas_fm.cli import build_parser, main
from canvas_fm.errors import CanvasError
from canvas_fm.files.hub import cache_folder, fetch
from canvas_fm.files.shipped import find, is_address
from canvas_fm.models.folder.push import push
from tests.files.fake_hub import fake_hub

REPO = "lab/nuclei"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    with fake_hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        yield running


@pytest.fixture
def pushed(hub):
    return push("detector-cfos", f"hf://{REPO}")


def packed(**changed: bytes) -> bytes:
    """A zip of a shipped detector in a folder, with files added or changed."""
    folder = find("model", "detector-cfos")
    files = {path.name: path.read_bytes() for path in folder.iterdir()} | changed
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"mine/{name}", content)
    return data.getvalue()


def at(hub, data: bytes) -> str:
    hub.plain["/files/mine.zip"] = data
    return f"{hub.address}/files/mine.zip#sha256={hashlib.sha256(data).hexdigest()}"


def test_a_pushed_model_comes_back_the_same_and_needs_no_network_again(hub, pushed, capsys):
    assert main(["info", f"hf://{REPO}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sha256"] == cf.load("detector-cfos").sha256
    before = len(hub.requests)
    model = cf.load(f"hf://{REPO}", kind="detector")
    assert (model.name, model.sha256) == ("nuclei", cf.load("detector-cfos").sha256)
    assert len(hub.requests) == before > 0


def test_the_card_is_the_readme(hub, pushed):
    readme = hub.repos[REPO][0]["README.md"].decode()
    assert readme.startswith("---\nlicense: apache-2.0\n")
    assert find("card", "detector-cfos").read_text("utf-8") in readme
    assert sorted(pushed.files) == ["README.md", "config.json", "model.safetensors"]


def test_a_revision_is_what_it_was(hub, pushed):
    again = push("detector-all", f"hf://{REPO}")
    assert again.address != pushed.address
    assert cf.load(pushed.address).sha256 == cf.load("detector-cfos").sha256
    assert cf.load(f"hf://{REPO}").sha256 == cf.load("detector-all").sha256
    with pytest.raises(CanvasError, match="could not be fetched"):
        fetch(f"hf://{REPO}@v9")


def test_refiners_too(hub):
    address = push("refiner-cfos", "hf://lab/judge").address
    assert cf.Refiner.load(address).sha256_ == cf.Refiner.load("refiner-cfos").sha256_


@pytest.mark.parametrize("address", [f"hf://{REPO}@v1", "https://x.org/nuclei.zip#sha256=" + "0" * 64])
@pytest.mark.parametrize(
    "words",
    [
        "detect MODEL brain.zarr --out cells.csv --refiner MODEL",
        "count brain.zarr --detector MODEL --refiner MODEL --out counts.csv",
        "embed MODEL brain.zarr --points cells.csv --out cells.emb.zarr",
        "refine apply MODEL brain.zarr cells.csv --out refined.csv --encoder MODEL",
        "adapt MODEL brain.zarr --points few.csv --roi boxes.csv --out mine",
        "export-onnx MODEL out.onnx",
        "serve MODEL",
    ],
)
def test_every_verb_takes_an_address(address, words):
    args = build_parser().parse_args(words.replace("MODEL", address).split())
    named = vars(args).get("model") or vars(args).get("detector") or args.models[0]
    assert named in (address, ("nuclei", address))


def test_other_arguments_take_none(capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["detect", "detector-cfos", "https://x.org/a.zarr", "--out", "cells.csv"])
    assert "https://x.org/a.zarr is an address" in capsys.readouterr().err


def test_a_pickle_is_neither_fetched_nor_opened(hub, pushed, tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    hub.repos[REPO][0] |= {"model.pt": pickle.dumps(Trap()), "model.safetensors.pkl": pickle.dumps(Trap())}
    folder = fetch(f"hf://{REPO}")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    zipped = fetch(at(hub, packed(**{"model.pt": pickle.dumps(Trap())})))
    assert sorted(path.name for path in zipped.iterdir()) == ["config.json", "model.safetensors"]
    assert not [line for line in hub.requests if "model.pt" in line or ".pkl" in line]
    assert not (tmp_path / "sprung").exists()


def test_damage_on_the_way_is_refused_and_leaves_nothing(hub, pushed):
    weights = bytearray(hub.repos[REPO][0]["model.safetensors"])
    weights[-1] ^= 1
    hub.repos[REPO][0]["model.safetensors"] = bytes(weights)
    with pytest.raises(
        CanvasError, match=r"model\.safetensors is damaged: its sha256 is not the one in config"
    ):
        fetch(f"hf://{REPO}")
    with pytest.raises(CanvasError, match=r"model\.safetensors is damaged"):
        fetch(at(hub, packed(**{"model.safetensors": bytes(weights)})))
    assert not list(cache_folder().glob("*/*"))


def test_a_zip_is_the_one_that_its_address_states(hub):
    address = at(hub, packed())
    assert cf.load(address).name == "mine"
    hub.plain.clear()
    assert cf.load(address).sha256 == cf.load("detector-cfos").sha256  # from the cache
    at(hub, packed(LICENSE=b"other"))
    with pytest.raises(CanvasError, match=r"has the sha256 .*; the address states 0000"):
        fetch(address.partition("=")[0] + "=" + "0" * 64)


@pytest.mark.parametrize(
    ("name", "content"), [("../../../escaped.safetensors", b"x"), ("other/config.json", b"{}")]
)
def test_a_zip_writes_nothing_elsewhere(hub, tmp_path, name, content):
    address = at(hub, packed(**{name: content}))
    if "escaped" in name:
        assert {path.parent for path in fetch(address).iterdir()} == {fetch(address)}
    else:
        with pytest.raises(CanvasError, match="holds several models"):
            fetch(address)
    outside = [path for path in tmp_path.rglob("*escaped*") if cache_folder() not in path.parents]
    assert outside == []


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("hf://detector", "it looks like hf://owner/name"),
        ("https://x.org/model.zip", r"it looks like https://host/model\.zip#sha256=HEX"),
        ("https://x.org/model.pt#sha256=" + "0" * 64, "is no model's address"),
    ],
)
def test_other_addresses_say_how_they_look(hub, address, sentence):
    assert is_address(address)
    with pytest.raises(CanvasError, match=sentence):
        cf.load(address)


def test_what_does_not_answer_says_what_to_do(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for address in (f"hf://{REPO}", "http://127.0.0.1:9/m.zip#sha256=" + "0" * 64):
        with pytest.raises(CanvasError, match=r"could not be fetched .*fetched once needs no network"):
            fetch(address)


def test_a_push_without_a_login_or_of_a_revision_is_refused(hub, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(CanvasError, match=r"was not written .*hf auth login"):
        push("detector-cfos", f"hf://{REPO}")
    with pytest.raises(CanvasError, match="names a revision"):
        push("detector-cfos", f"hf://{REPO}@v1")
    assert hub.repos == {}
