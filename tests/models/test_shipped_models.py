"""The models that ship stay the same bytes: refiners, embeddings, indexes know them by sha256."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

import canvas_fm

WEIGHTS = Path(canvas_fm.__file__).parent / "weights"
# Identity as config.json states it, and the sha256 of that file, which lists those of the weights.
SHIPPED = {
    "base": (
        "e1f10a0c58de6ef258ebb07f7564c0c517ce197c138ff3cec03c979722dada13",
        "bfc2ad41ab03b26691707e129efa42a086d5ec74cd745a1d438ae30862be67d0",
    ),
    "base-2": (
        "89b949f443a5b14011e119ca9149ddffea1d54dd2d1cc70a00c7f030ad28cdb1",
        "f65b7f1b04e3a6333961719fb2897ba9e8dc52bc4e979a5b1e82d5c069a6168e",
    ),
    "base-3": (
        "ca1af89257b32b572cf8ae33511b316685587cf39ad311319321cf23881c4d96",
        "2c6f368a5ec9ff2af9af9b24480fb5dd8796aa4fd64cacc00bfcf447d1a45b6b",
    ),
    "base-4": (
        "f5f56a16dcff757e30b41c81ff35937154c7ecc50fb1a57c2e8a1e11a9824a65",
        "48c8c75de3ce92dff339bed36b52d8acd5d30e83dc3c0de488ad1ee9de4f5cea",
    ),
    "base-5": (
        "67f6b9a2389a15a61c894cabf726ce3b49bfb7e4883768ead291c3cbf75dc6c1",
        "f864078bba90fd0ff5af3635964a772ca6c0908cd774a40de5c63ae98c385e23",
    ),
    "detector-all": (
        "cdba9a27fb7bc5fc2f8916ec29e703bfb2102baa86b9def5b4d8665b11d273a1",
        "51ca060a5be0e0631bbad6cc3f2191d8c5a320bd7a75386ce177cb997817b5c8",
    ),
    "detector-cfos": (
        "014a2286ba6cfa2a32ec713746fdd5bf66c60133b5b84b339ae848f392ec48b5",
        "917f4d46a48f2ae3391bc77ac6a984effc45e06f55871b22d52b1b7ddfc17eff",
    ),
    "detector-microglia": (
        "3e609df80142134005c81d06c62738b630ce1555567eb867ec7ae4eb81571f17",
        "b0afa68781806a2dbb88ebf649f8a757cada39c4b535ab5f349335ffc5ac573b",
    ),
    "detector-phantoms": (
        "69e0cc51339163f80f9ce5361316ecf9e863334b9487bfe4e20b14098120a1b6",
        "7f930610b02cfcf4ebe375e317dd1e2dbb77ef24fbd7e41d173a893dae8bf60d",
    ),
    "refiner-all": (
        "70d80d52db87faf313e142b4eafd17409556ffcf985c712a4d413c685fed3276",
        "00d56e12850ba34091dfa152f1ca9a202e00aa83d33f77440e2bd6c0e4771531",
    ),
    "refiner-cfos": (
        "40c36e58833f48484d359c50b97f75890fdc13f8ea6732a3c80dba5714182319",
        "51d279d4a0bc7893fa166addc781c5682ce032959729d65b5176bde0d731022b",
    ),
    "refiner-microglia": (
        "024373cc71024f61be5a02d4f4e6c444890a3eb9c58c5b6f973ae7cdd834a9ba",
        "d3b41317ceb2b4943abd46e0aa75a701bcb227e6dc6b5242cb4f97a187168c5a",
    ),
    "_older/refiner-all-1": (
        "5676c5aa138ff5619f7aa849b1abf69cdac44a5eff81f0fb8133035796f71fb0",
        "c212a4bb678da675e1d88ae1950a826125f5083d86d107b3867953a316e27b9b",
    ),
    "_older/refiner-cfos-1": (
        "f520e2fb165a499fa2c02899bab0f6b2bcb847af48220819f979bbcb48f9a1c3",
        "77acc94e20d2609353ecbafbce627e1e8e4cfc90fefbfa25e2d72572b9c35ff0",
    ),
    "_older/refiner-microglia-1": (
        "7647f1f3432a8e4487774661ddf1bb62ab73d6c44f61064b6380d40384eca2be",
        "d8a1b18204cad394331920003a3851982c336feec7489e39dffa558255110768",
    ),
    "_older/detector-all-1": (
        "aa46eff1dbcf0658380fc71a38aa8f88008f32daa115f7a8a0aa125647a609d2",
        "bea20e33a3719fac6c824a6eebc0b32ae6bee32c751a5f92944624a9040b0a74",
    ),
    "_older/detector-microglia-2": (
        "1235ad835d6f1be8a28348637c8a678157186f9f2220d732acce627a45a2e507",
        "3ac33d4a59700d628817bfb005e1b8f98f308794758104e8974ef54822d95992",
    ),
    "_older/detector-microglia-1": (
        "eeeb2895d6249d26fa41349d15c09de2c103564f7f76eeded449e38ca70262cf",
        "6420064255982ce7afb726bd8373f3b1c9ceadc8b6095a577a755b0989fb3264",
    ),
    "_older/detector-phantoms-2": (
        "3f8ece453230ae3967f42ad986797c014ca4f7770c99e3b8128175c12d6acb2e",
        "7016b9547423a2764de5aaed7b7ee387b768db40c8e7f54c6eaf8b14611f874f",
    ),
    "_older/detector-phantoms-1": (
        "d00d21b59a4cab038b6f3e538d1310223f4d5510f5433e6281c222fc6bf79d1c",
        "3c26e30e5d66dbf9500acd84d29ef44669fe10be09ace7a7aafd1d49e6a0eb19",
    ),
    "_older/detector-cfos-2": (
        "d96737b0cdf57abbc305a7a117960558e1c8882e2dc2721a704f5a3a7dcd844e",
        "599b11906791e44c33bee5376525923eba6caa1bfeedecdfb71e8c828757b110",
    ),
    "_older/detector-cfos-1": (
        "ab6ddf0b0476a9946fe6861a6416ab0e72ad125aff58e844134401cc9f586edc",
        "4a71fe6b908c59a83bee2e79a1e619d60f7c7562a1dc49d11acef67a87b27987",
    ),
}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_is_byte_for_byte_what_it_was(name):
    config = json.loads((WEIGHTS / name / "config.json").read_bytes())
    assert (config["sha256"], sha256(WEIGHTS / name / "config.json")) == SHIPPED[name]
    files = {path.name: sha256(path) for path in (WEIGHTS / name).iterdir() if path.name != "config.json"}
    assert files == config["weights"]


def test_every_shipped_model_stands_here():
    found = {path.parent.relative_to(WEIGHTS).as_posix() for path in WEIGHTS.rglob("config.json")}
    assert found == set(SHIPPED)
