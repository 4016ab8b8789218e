"""Reading volumes: whatever holds them and however it is stored, the voxel asked for comes back."""

from __future__ import annotations

import inspect
import json
import pickle
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import zarr

from canvas_fm.data.volume.volume import Volume, volume_name
from canvas_fm.errors import CanvasError

SHAPE = (20, 30, 26)
VOXELS = (np.arange(1, 1 + np.prod(SHAPE)) % 65_521).astype(np.uint16).reshape(SHAPE)
ZYX = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}


def write_ome(
    path: Path,
    voxels: np.ndarray = VOXELS,
    axes: list[dict] | str = "zyx",
    scale: list[float] | None = None,
    *,
    zarr_format: int = 2,
    steps: list[dict] | None = None,
    **image,
) -> Path:
    """An OME-Zarr as other software writes it: 0.4 in Zarr v2, 0.5 in v3."""
    if isinstance(axes, str):
        axes = [
            {"name": name, "type": TYPES[name]} | ({"unit": "micrometer"} if name in "zyx" else {})
            for name in axes
        ]
    scale = scale or [{"z": 4.0, "y": 1.8, "x": 1.5}.get(str(axis.get("name")), 1.0) for axis in axes]
    dataset = {
        "path": "0",
        "coordinateTransformations": [{"type": "scale", "scale": scale}] if steps is None else steps,
    }
    multiscales = [{"version": "0.4", "axes": axes, "datasets": [dataset]} | image]
    if zarr_format == 3:
        multiscales[0].pop("version")
        attributes: dict = {"ome": {"version": "0.5", "multiscales": multiscales}}
    else:
        attributes = {"multiscales": multiscales}
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    group.attrs.update(attributes)
    chunks = tuple(min(n, 8) for n in voxels.shape)
    array = group.create_array("0", shape=voxels.shape, chunks=chunks, dtype=voxels.dtype)
    array[...] = voxels
    return path


def oracle(voxels: np.ndarray, origin: tuple[int, ...], size: tuple[int, ...]) -> np.ndarray:
    """One voxel at a time."""
    box = np.zeros(size, voxels.dtype)
    for at in np.ndindex(*size):
        where = tuple(o + i for o, i in zip(origin, at, strict=True))
        if all(0 <= w < n for w, n in zip(where, voxels.shape, strict=True)):
            box[at] = voxels[where]
    return box


BOXES = [
    ((0, 0, 0), (3, 4, 5)),
    ((7, 15, 15), (4, 3, 2)),
    ((-2, -3, -1), (5, 6, 4)),
    ((18, 27, 24), (5, 6, 4)),
    ((-4, -4, -4), (30, 40, 36)),
    ((50, 0, 0), (2, 2, 2)),
    ((-9, 0, 0), (3, 2, 2)),
    ((0, 0, 0), (0, 2, 2)),
]


@pytest.mark.parametrize(("origin", "size"), BOXES)
def test_any_box_is_what_lies_there_and_zero_outside(position_volume, origin, size):
    path, voxels = position_volume(SHAPE)
    box = Volume.open(path).read(origin, size)
    assert box.dtype == voxels.dtype
    np.testing.assert_array_equal(box, oracle(voxels, origin, size))


def test_boxes_far_away_and_huge_cost_nothing_but_their_zeros(position_volume):
    volume = Volume.open(position_volume(SHAPE)[0])
    assert not volume.read((10**12, -(10**12), 5), (2, 2, 2)).any()
    with pytest.raises(CanvasError, match=r"does not fit in memory"):
        volume.read((0, 0, 0), (10**7, 10**7, 10**7))


@pytest.mark.parametrize(
    ("origin", "size", "message"),
    [
        ((0, 0), (1, 1, 1), "origin_zyx is .* expected three whole numbers"),
        ((0.5, 0, 0), (1, 1, 1), "origin_zyx"),
        ((0, 0, 0), (1, -1, 1), "size_zyx .* at least 0"),
    ],
)
def test_a_box_that_is_none_is_refused(position_volume, origin, size, message):
    with pytest.raises(CanvasError, match=message):
        Volume.open(position_volume(SHAPE)[0]).read(np.array(origin), np.array(size))


def test_chunks_tile_the_volume(position_volume):
    path, voxels = position_volume(SHAPE, chunk_zyx=(8, 16, 7))
    volume = Volume.open(path)
    again = np.zeros_like(voxels)
    for index in np.ndindex(*(-(-n // c) for n, c in zip(SHAPE, volume.chunk_zyx, strict=True))):
        chunk = volume.read_chunk(index)
        at = tuple(
            slice(i * c, i * c + n) for i, c, n in zip(index, volume.chunk_zyx, chunk.shape, strict=True)
        )
        again[at] = chunk
    np.testing.assert_array_equal(again, voxels)
    with pytest.raises(CanvasError, match=r"no chunk \(3, 0, 0\)"):
        volume.read_chunk((3, 0, 0))


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("axes", ["zyx", "xyz", "yzx", "czyx", "tzyx", "tczyx", "tcxyz"])
def test_every_legal_axis_order_gives_z_y_x(tmp_path, axes, zarr_format):
    stored = VOXELS.transpose(["zyx".index(letter) for letter in axes if letter in "zyx"])
    stored = stored.reshape([1] * (len(axes) - 3) + list(stored.shape))
    volume = Volume.open(write_ome(tmp_path / "a.zarr", stored, axes, zarr_format=zarr_format))
    assert volume.shape_zyx == SHAPE
    assert volume.voxel_um == (4.0, 1.8, 1.5)
    assert not volume.checksums
    np.testing.assert_array_equal(volume.read((3, 5, 7), (9, 8, 7)), VOXELS[3:12, 5:13, 7:14])
    np.testing.assert_array_equal(volume.read_chunk((1, 2, 3)), VOXELS[8:16, 16:24, 24:26])


def test_t_and_c_are_chosen_and_never_guessed(tmp_path):
    stored = np.stack([np.stack([VOXELS + 10 * t + c for c in range(3)]) for t in range(2)])
    path = write_ome(tmp_path / "a.zarr", stored, "tczyx")
    for t, c in [(0, 0), (1, 2)]:
        np.testing.assert_array_equal(Volume.open(path, t=t, c=c).read((0, 0, 0), SHAPE), VOXELS + 10 * t + c)
    with pytest.raises(CanvasError, match=r"2 along axis t: choose one with --t 0 to 1"):
        Volume.open(path, c=0)
    with pytest.raises(CanvasError, match=r"3 along axis c: choose one with --c 0 to 2"):
        Volume.open(path, t=0)
    with pytest.raises(CanvasError, match=r"there is no c=3"):
        Volume.open(path, t=0, c=3)


def test_channel_names_help_to_choose_and_a_missing_axis_has_no_choice(tmp_path):
    path = write_ome(tmp_path / "a.zarr", np.stack([VOXELS, VOXELS]), "czyx")
    zarr.open_group(path).attrs["omero"] = {"channels": [{"label": "NeuN"}, {"label": "cFos"}]}
    with pytest.raises(CanvasError, match=r"\(NeuN, cFos\)"):
        Volume.open(path)
    with pytest.raises(CanvasError, match="no axis c; there is no c=1"):
        Volume.open(write_ome(tmp_path / "b.zarr"), c=1)


@pytest.mark.parametrize(
    ("unit", "scale", "expected"),
    [
        ("nanometer", [4000, 1800, 1500], (4.0, 1.8, 1.5)),
        ("millimeter", [0.004, 0.0018, 0.0015], (4.0, 1.8, 1.5)),
        ("angstrom", [40000, 18000, 15000], (4.0, 1.8, 1.5)),
        ("inch", [0.001, 0.001, 0.001], (25.4, 25.4, 25.4)),
    ],
)
def test_voxel_size_in_any_unit(tmp_path, unit, scale, expected):
    axes = [axis | {"unit": unit} for axis in ZYX]
    assert Volume.open(write_ome(tmp_path / "a.zarr", axes=axes, scale=scale)).voxel_um == pytest.approx(
        expected
    )


def test_scales_of_level_and_image_multiply_and_units_may_differ(tmp_path):
    axes = [ZYX[0] | {"unit": "nanometer"}, *ZYX[1:]]
    outer = [{"type": "scale", "scale": [1000, 0.5, 3]}]
    steps = [{"type": "scale", "scale": [4, 3.6, 0.5]}, {"type": "translation", "translation": [9, 9, 9]}]
    path = write_ome(tmp_path / "a.zarr", axes=axes, steps=steps, coordinateTransformations=outer)
    assert Volume.open(path).voxel_um == pytest.approx((4.0, 1.8, 1.5))


@pytest.mark.parametrize("lacking", [{"unit": None}, {"unit": "pixel"}, {"unit": 3}])
def test_without_a_voxel_size_it_is_asked_for(tmp_path, lacking):
    path = write_ome(tmp_path / "brain.zarr", axes=[*ZYX[:2], ZYX[2] | lacking])
    with pytest.raises(CanvasError, match=r"brain.zarr has no voxel size; give --voxel-um z y x once"):
        Volume.open(path)
    assert Volume.open(path, voxel_um=(4, 1.8, 1.5)).voxel_um == (4.0, 1.8, 1.5)


def test_an_image_without_scale_has_no_voxel_size(tmp_path):
    with pytest.raises(CanvasError, match="give --voxel-um"):
        Volume.open(write_ome(tmp_path / "a.zarr", steps=[]))


def test_a_given_voxel_size_wins_and_says_so(tmp_path, caplog):
    path = write_ome(tmp_path / "a.zarr")
    assert Volume.open(path, voxel_um=(4.1, 1.8, 1.5)).voxel_um == (4.1, 1.8, 1.5)
    assert not caplog.records
    assert Volume.open(path, voxel_um=(5, 1.8, 1.5)).voxel_um == (5.0, 1.8, 1.5)
    assert "states a voxel of (4.0, 1.8, 1.5)" in caplog.text


@pytest.mark.parametrize(
    "given", [(1, 2), (0, 1, 1), (1, float("nan"), 1), (-1, 1, 1), "483", True, (True, True, True), {1: 1}]
)
def test_a_voxel_size_that_is_none_is_refused(tmp_path, given):
    with pytest.raises(CanvasError, match=r"voxel_um is .* expected three"):
        Volume.open(write_ome(tmp_path / "a.zarr"), voxel_um=given)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_plain_array_opens_with_a_voxel_size(tmp_path, zarr_format):
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=SHAPE, chunks=(8, 8, 8), dtype="uint16", zarr_format=zarr_format
    )
    array[...] = VOXELS
    with pytest.raises(CanvasError, match=r"a.zarr has no voxel size; give --voxel-um"):
        Volume.open(tmp_path / "a.zarr")
    volume = Volume.open(tmp_path / "a.zarr", voxel_um=(4, 2, 2))
    np.testing.assert_array_equal(volume.read((1, 2, 3), (9, 9, 9)), VOXELS[1:10, 2:11, 3:12])


def test_a_plain_array_goes_by_the_names_of_its_axes(tmp_path):
    def write(name: str, stored: np.ndarray, names: tuple[str, ...] | None) -> Path:
        array = zarr.create_array(
            tmp_path / name, shape=stored.shape, chunks=stored.shape, dtype="uint16", dimension_names=names
        )
        array[...] = stored
        return tmp_path / name

    flipped = write("flipped.zarr", VOXELS.T, ("x", "y", "z"))
    np.testing.assert_array_equal(Volume.open(flipped, voxel_um=(1, 1, 1)).read((0, 0, 0), SHAPE), VOXELS)
    leading = write("leading.zarr", VOXELS[None, None], None)
    np.testing.assert_array_equal(Volume.open(leading, voxel_um=(1, 1, 1)).read((0, 0, 0), SHAPE), VOXELS)
    for name, stored, names, message in [
        ("two.zarr", VOXELS[0], None, "a volume has z, y and x"),
        ("odd.zarr", VOXELS, ("z", "y", "q"), "needs each of z, y and x once"),
        ("four.zarr", np.stack([VOXELS, VOXELS]), None, "has 2 along axis c: choose one with --c"),
    ]:
        with pytest.raises(CanvasError, match=message):
            Volume.open(write(name, stored, names), voxel_um=(1, 1, 1))


@pytest.mark.parametrize("inside", ["", "brain.zarr"])
@pytest.mark.parametrize("kind", ["ours", "0.4", "0.5"])
def test_zipped_stores(tmp_path, position_volume, kind, inside):
    if kind == "ours":
        folder, voxels = position_volume(SHAPE)
    else:
        folder, voxels = write_ome(tmp_path / "brain.zarr", zarr_format=2 if kind == "0.4" else 3), VOXELS
    zipped = shutil.make_archive(
        str(tmp_path / "zipped"), "zip", tmp_path if inside else folder, inside or "."
    )
    volume = Volume.open(zipped)
    assert volume.checksums == (kind == "ours")
    assert volume.name == "zipped"
    np.testing.assert_array_equal(volume.read((0, 0, 0), SHAPE), voxels)
    assert volume.window == Volume.open(folder).window


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "int16", ">u2", "uint32", "int64", "uint64", "float16", ">f4", "float64"]
)
def test_integers_and_floats_come_back_exactly_in_native_order(tmp_path, dtype):
    kind = np.dtype(dtype)
    if kind.kind == "f":
        voxels = (VOXELS[:4, :5, :6] / 7).astype(kind)
    else:
        top = np.iinfo(kind)
        ends = [top.min, top.max]
        voxels = np.array(ends * 30 + [*range(60)], kind).reshape(4, 5, 6)
    volume = Volume.open(write_ome(tmp_path / "a.zarr", voxels))
    box = volume.read((0, 0, 0), (4, 5, 6))
    assert box.dtype == kind.newbyteorder("=") == volume.dtype
    np.testing.assert_array_equal(box, voxels)


@pytest.mark.parametrize("dtype", ["complex64", "U4", "S3"])
def test_other_types_are_refused(tmp_path, dtype):
    with pytest.raises(CanvasError, match="a volume holds integers or floats"):
        Volume.open(write_ome(tmp_path / "a.zarr", np.zeros((4, 5, 6), dtype)))


def test_a_type_with_fields_is_refused(tmp_path):
    voxels = np.zeros((4, 5, 6), [("a", "u1"), ("b", "u2")])
    with pytest.raises(CanvasError, match=r"integers or floats|cannot be used"):
        Volume.open(write_ome(tmp_path / "a.zarr", voxels))


def test_an_empty_volume_is_refused(tmp_path):
    path = write_ome(tmp_path / "a.zarr", np.ones((4, 5, 6), "u2"))
    metadata = json.loads((path / "0/.zarray").read_text())
    (path / "0/.zarray").write_text(json.dumps(metadata | {"shape": [4, 0, 6]}))
    with pytest.raises(CanvasError, match=r"is empty: its shape is \(4, 0, 6\)"):
        Volume.open(path)


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(CanvasError, match="does not exist"):
        Volume.open(tmp_path / "nothing.zarr")
    (tmp_path / "text.zarr").write_text("hello")
    with pytest.raises(CanvasError, match="no zip archive"):
        Volume.open(tmp_path / "text.zarr")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CanvasError, match="neither a Zarr store nor a folder of TIFF planes: it is empty"):
        Volume.open(tmp_path / "folder")
    with pytest.raises(CanvasError, match="on_bad_chunk is 'ignore'; expected 'error' or 'skip'"):
        inspect.unwrap(Volume.open.__func__)(Volume, tmp_path, on_bad_chunk="ignore")


def test_names_and_markers(tmp_path, position_volume, caplog):
    assert volume_name(tmp_path / "brain.ome.zarr") == "brain"
    assert volume_name(tmp_path / "brain.zarr.zip") == "brain"
    assert volume_name("x/y.v2.tif") == "y.v2"
    assert volume_name("cube/raw.zarr") == "cube"
    assert volume_name("NeuN_1/image") == "NeuN_1"
    assert Volume.open(position_volume(SHAPE, "a.zarr", marker="TH")[0], marker="PV").marker == "TH"
    assert "the given marker PV is not used" in caplog.text
    foreign = write_ome(tmp_path / "b.zarr")
    assert Volume.open(foreign).marker is None
    assert Volume.open(foreign, marker="PV").marker == "PV"
    (tmp_path / "meta.json").write_text('{"marker": "cFos"}')
    assert Volume.open(foreign).marker == "cFos"


def test_a_volume_travels_to_other_processes_by_its_path(tmp_path):
    path = write_ome(tmp_path / "a.zarr", np.stack([VOXELS, VOXELS + 1]), "czyx")
    volume = pickle.loads(pickle.dumps(Volume.open(path, c=1, voxel_um=(9, 9, 9), marker="TH")))
    assert (volume.voxel_um, volume.marker) == ((9.0, 9.0, 9.0), "TH")
    np.testing.assert_array_equal(volume.read((0, 0, 0), SHAPE), VOXELS + 1)


def test_several_threads_read_the_same_volume(position_volume):
    path, voxels = position_volume((40, 50, 60))
    volume, wrong = Volume.open(path), []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(25):
            origin = random.integers(-4, 40, 3)
            size = random.integers(1, 20, 3)
            padded = np.pad(voxels, 30)
            at = tuple(slice(o + 30, o + 30 + s) for o, s in zip(origin, size, strict=True))
            if not np.array_equal(volume.read(origin, size), padded[at]):
                wrong.append((origin, size))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_real_cubes_open(real_data):
    volume = Volume.open(real_data / "delivr_cFos/1008/raw.zarr")
    assert (volume.shape_zyx, volume.voxel_um) == ((200, 200, 200), (6.0, 1.62, 1.62))
    assert (volume.name, volume.marker, volume.checksums) == ("1008", "cFos", False)
    stored = zarr.open_array(real_data / "delivr_cFos/1008/raw.zarr/0", mode="r")
    np.testing.assert_array_equal(volume.read((45, 95, 95), (10, 10, 10)), stored[45:55, 95:105, 95:105])
