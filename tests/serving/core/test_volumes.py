"""Each volume of the service is opened by options of its own: command line, settings file, HTTP, Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

import canvas_fm as cf
from canvas_fm.cli import build_parser
from canvas_fm.errors import CanvasError
from canvas_fm.files.strict_yaml import read_settings
from canvas_fm.models.load_model import Encoder
from serving.client import Client
from serving.launch.bento.bento_package import Packed
from serving.launch.serve import settings_of
from serving.protocol.serve_flags import HostOptions, ServedVolume
from serving.protocol.settings import Limits, ServiceSettings
from tests.serving.conftest import SHAPE, VOXEL_UM, refused, same, transport_to

POINTS = np.array([[9.0, 20.0, 20.0], [12.2, 31.0, 25.4]])


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OME-Zarr of two channels that states no unit: it needs --c and --voxel-um."""
    path = tmp_path_factory.mktemp("two") / "two.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=2)
    voxels = np.random.default_rng(3).integers(200, 4000, (2, *SHAPE)).astype(np.uint16)
    group.create_array("0", shape=voxels.shape, chunks=(1, 8, 16, 16), dtype="uint16")[...] = voxels
    axes = [{"name": name, "type": "channel" if name == "c" else "space"} for name in "czyx"]
    scale = [{"type": "scale", "scale": [1, *VOXEL_UM]}]
    datasets = [{"path": "0", "coordinateTransformations": scale}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    return path


def test_flags_belong_to_the_volume_before_them() -> None:
    words = (
        "serve base --volume a=A.zarr b=B.zarr --c 1 --volume d=A.zarr --c 0 --voxel-um 4 1.8 1.8 --port 0"
    )
    volumes = build_parser().parse_args(words.split()).volumes
    assert {name: served.model_dump(exclude_unset=True) for name, served in volumes.items()} == {
        "a": {"path": "A.zarr", "c": 1},
        "b": {"path": "B.zarr", "c": 1},
        "d": {"path": "A.zarr", "c": 0, "voxel_um": (4.0, 1.8, 1.8)},
    }


def test_mistakes_are_told_together_and_name_the_volume(capsys) -> None:
    words = "serve base --c 1 --volume a=A.zarr --missing-chunks none --t x --volume a=B.zarr B.zarr"
    with pytest.raises(SystemExit, match="2"):
        build_parser().parse_args(words.split())
    said = capsys.readouterr().err
    assert "--c stands before any --volume" in said
    assert "--volume a: --missing-chunks is 'none'; expected 'error' or 'empty'" in said
    assert "--volume a: --t is 'x'" in said
    assert "two volumes are called 'a'" in said
    assert "'B.zarr' is not NAME=PATH" in said


def test_a_settings_file_has_the_same_options(tmp_path: Path, two: Path, model: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(f"volumes:\n  plain: {two}\n  green: {{path: {two}, c: 1, voxel_um: [4, 1.8, 1.8]}}\n")
    settings = settings_of(
        model,
        read_settings(path, Packed).volumes,
        models={},
        refiners={},
        indexes={},
        limits=Limits(),
        options=HostOptions.of(),
    )
    again = ServiceSettings.model_validate_json(settings.model_dump_json())  # as a worker reads it
    assert again.volumes["plain"].volume_keywords["c"] is None
    assert again.volumes["green"].volume_keywords["c"] == 1
    assert again.volumes["green"].volume_keywords["voxel_um"] == (4.0, 1.8, 1.8)
    path.write_text(f"volumes: {{green: {{path: {two}, channel: 1}}}}\n")
    with pytest.raises(CanvasError, match=r"unknown key 'volumes.green.channel'"):
        read_settings(path, Packed)


def test_python_gives_paths_or_mappings() -> None:
    volumes = ServedVolume.named({"a": Path("A.zarr"), "b": {"path": "B.zarr", "t": 2}})
    assert volumes["a"].path == "A.zarr"
    assert volumes["a"].volume_keywords == {}
    assert volumes["b"].volume_keywords == {"t": 2}
    with pytest.raises(CanvasError, match="the volume b: there is no option chanel"):
        ServedVolume.named({"b": {"path": "B.zarr", "chanel": 2}})
    with pytest.raises(CanvasError, match="the volume b: 5 was given; expected a path"):
        ServedVolume.named({"b": 5})


def test_two_channels_of_one_store_are_two_volumes(start, two: Path, encoder: Encoder) -> None:
    volumes = {
        name: {"path": str(two), "c": c, "voxel_um": VOXEL_UM} for name, c in (("red", 0), ("green", 1))
    }
    service = start(volumes=volumes, more={"roots": [str(two.parent)]})
    opened = [cf.Volume.open(two, c=c, voxel_um=VOXEL_UM) for c in (0, 1)]
    with Client("http://testserver", transport=transport_to(service), retry_s=0) as client:
        for name, volume in zip(volumes, opened, strict=True):
            same(client.embed_points(name, POINTS), cf.embed(encoder, volume, POINTS, device="cpu"))
        assert {name: info["c"] for name, info in client.info()["volumes"].items()} == {"red": 0, "green": 1}
        added = client.add_volume("again", "two.zarr", c=1, voxel_um=VOXEL_UM, marker="GFP")
        assert (added["c"], added["marker"]) == (1, "GFP")
        same(client.embed_points("again", POINTS), client.embed_points("green", POINTS))
        with pytest.raises(CanvasError, match="on_bad_chunk is 'maybe'"):
            client.add_volume("more", "two.zarr", on_bad_chunk="maybe")
    body = {"name": "more", "path": "two.zarr"}
    refused(service.post("/v1/volumes", json=body), 422, "2 along axis c")
    refused(service.post("/v1/volumes", json=body | {"c": "1"}), 422, "c: Input should be a valid integer")
    refused(service.post("/v1/volumes", json=body | {"chanel": 1}), 422, "chanel")


def test_damage_that_is_skipped_is_counted(start, two: Path, tmp_path: Path) -> None:
    import shutil

    path = tmp_path / "sparse.zarr"
    shutil.copytree(two, path)
    (path / "0" / "0.0.0.0").unlink()
    (path / "0" / "0.0.0.1").write_bytes(b"damaged")
    opening = {"path": str(path), "c": 0, "voxel_um": VOXEL_UM}
    opening |= {"missing_chunks": "empty", "on_bad_chunk": "skip"}
    service = start(volumes={"sparse": opening})
    assert service.get("/v1/info").json()["volumes"]["sparse"]["bad_chunks"] == 1
