"""CZI, ND2 and LIF through bioio: a stand-in for what it opens, and real CZI files where it is installed."""

from __future__ import annotations

import struct
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import canvas_fm as cf
from canvas_fm.errors import CanvasError

V = np.arange(2 * 6 * 40 * 50, dtype=np.uint16).reshape(2, 6, 40, 50)
UM = {"scale_x": 1.8e-6, "scale_y": 1.8e-6, "scale_z": 4e-6}


@pytest.mark.parametrize(
    ("axis", "message"),
    [("S", "3 colours a pixel"), ("V", "3 views"), ("I", "3 illuminations"), ("Q", "3 places of an axis Q")],
)
def test_a_further_axis_is_refused(tmp_path, monkeypatch, axis, message):
    """bioio takes the first of it without a word."""
    dims = SimpleNamespace(order=f"TCZYX{axis}", shape=(1, 1, 6, 40, 50, 3), T=1, C=1)
    image = SimpleNamespace(dims=dims, scenes=("one",))
    monkeypatch.setitem(sys.modules, "bioio", SimpleNamespace(BioImage=lambda path, reader: image))
    monkeypatch.setitem(sys.modules, "bioio_lif", SimpleNamespace(Reader=None))
    (tmp_path / "a.lif").write_bytes(b"x")
    with pytest.raises(CanvasError, match=f"holds {message}; a volume is one"):
        cf.convert(tmp_path / "a.lif", tmp_path / "a.zarr")


def test_what_its_reader_cannot_open_is_no_missing_reader(tmp_path, monkeypatch):
    class UnsupportedFileFormatError(Exception):
        pass

    class Image:
        @property
        def scenes(self):
            raise UnsupportedFileFormatError("bad header")

    monkeypatch.setitem(sys.modules, "bioio", SimpleNamespace(BioImage=lambda path, reader: Image()))
    monkeypatch.setitem(sys.modules, "bioio_nd2", SimpleNamespace(Reader=None))
    (tmp_path / "a.nd2").write_bytes(b"x")
    with pytest.raises(
        CanvasError, match=r"a\.nd2 cannot be opened by bioio-nd2 \(Unsupp.*bad header\); copy"
    ):
        cf.convert(tmp_path / "a.nd2", tmp_path / "a.zarr")


@pytest.fixture
def write_czi(tmp_path):
    czi = pytest.importorskip("pylibCZIrw.czi", reason="the extra vendors is not installed")
    pytest.importorskip("bioio_czi")

    def write(planes, names=None, **about):
        with czi.create_czi(str(tmp_path / "a.czi")) as file:
            for c, z in np.ndindex(planes.shape[:2]):
                scene = {"scene": c, "location": (200 * c, 0)} if about.get("scenes") else {}
                place = {"T": 0, "Z": z, "C": 0 if scene else c}
                file.write(data=planes[c, z].reshape(40, 50, -1), plane=place, **scene)
            file.write_metadata("brain", channel_names=names, **UM)
        return tmp_path / "a.czi"

    return write


def test_channels_of_a_czi(write_czi, tmp_path):
    done = cf.convert(write_czi(V, {0: "cFos", 1: "NeuN"}), tmp_path / "a.zarr", verify=True)
    assert (done.channels, done.voxel_um) == (("cFos", "NeuN"), pytest.approx((4, 1.8, 1.8)))
    for c in (0, 1):
        np.testing.assert_array_equal(np.asarray(cf.Volume.open(tmp_path / "a.zarr", c=c)), V[c])


def write_lif(path, voxels, um_zyx):
    """A LIF file of one image: XML in UTF-16, then a block of memory. Lengths are between centres."""
    channels, *shape = voxels.shape
    size, steps = voxels.nbytes // channels, (2 * shape[1] * shape[2], 2 * shape[2], 2)
    listed = "".join(
        f'<ChannelDescription DataType="0" ChannelTag="0" Resolution="16" NameOfMeasuredQuantity="" Min="0" '
        f'Max="65535" Unit="" LUTName="{name}" IsLUTInverted="0" BytesInc="{c * size}" BitInc="0"/>'
        for c, name in zip(range(channels), ("Green", "Red"), strict=True)
    )
    axes = "".join(
        f'<DimensionDescription DimID="{3 - at}" NumberOfElements="{n}" Origin="0" '
        f'Length="{(n - 1) * um * 1e-6:.9e}" Unit="m" BitInc="0" BytesInc="{step}"/>'
        for at, (n, um, step) in reversed(list(enumerate(zip(shape, um_zyx, steps, strict=True))))
    )
    xml = (
        '<LMSDataContainerHeader Version="2"><Element Name="a.lif"><Data><Experiment IsSavedFlag="1"/></Data>'
        '<Memory Size="0" MemoryBlockID="MemBlock_0"/><Children><Element Name="brain"><Data><Image>'
        f"<ImageDescription><Channels>{listed}</Channels><Dimensions>{axes}</Dimensions></ImageDescription>"
        f'</Image></Data><Memory Size="{voxels.nbytes}" MemoryBlockID="MemBlock_1"/><Children/></Element>'
        "</Children></Element></LMSDataContainerHeader>"
    ).encode("utf-16-le")
    content = struct.pack("<IIBI", 0x70, 5 + len(xml), 0x2A, len(xml) // 2) + xml
    for name, block in (("MemBlock_0", b""), ("MemBlock_1", voxels.astype("<u2").tobytes())):
        text = name.encode("utf-16-le")
        content += struct.pack("<IIBQBI", 0x70, 14 + len(text), 0x2A, len(block), 0x2A, len(name))
        content += text + block
    path.write_bytes(content)
    return path


def test_channels_of_a_lif(tmp_path):
    """A stack that was taken downwards has a negative step."""
    pytest.importorskip("bioio_lif", reason="the extra vendors is not installed")
    done = cf.convert(write_lif(tmp_path / "a.lif", V, (4, 1.8, 1.5)), tmp_path / "a.zarr", verify=True)
    assert (done.channels, done.voxel_um) == (("Green", "Red"), pytest.approx((4, 1.8, 1.5)))
    for c in (0, 1):
        np.testing.assert_array_equal(np.asarray(cf.Volume.open(tmp_path / "a.zarr", c=c)), V[c])
    down = write_lif(tmp_path / "down.lif", V, (-4, 1.8, 1.5))
    assert cf.convert(down, tmp_path / "b.zarr").voxel_um == pytest.approx((4, 1.8, 1.5))


@pytest.mark.parametrize("suffix", ["czi", "nd2", "lif"])
def test_damaged_files_are_a_sentence_of_their_reader(write_czi, tmp_path, suffix):
    pytest.importorskip(f"bioio_{suffix}")
    whole = {"czi": write_czi(V[:1]).read_bytes(), "nd2": b"\xda\xce\xbe\x0a", "lif": b"\x70\0\0\0"}[suffix]
    for number, content in enumerate([b"", b"x" * 50, whole[:600].ljust(600, b"\0")]):
        file = tmp_path / f"{number}.{suffix}"
        file.write_bytes(content)
        with pytest.raises(CanvasError, match=rf"{file.name} cannot be opened by bioio-{suffix}"):
            cf.convert(file, tmp_path / "a.zarr", voxel_um=(4, 1.8, 1.8))


def test_colours_and_unnamed_scenes_of_a_czi_are_refused(write_czi, tmp_path):
    colours = np.repeat(V[:1, ..., None] % 200, 3, axis=-1).astype(np.uint8)
    with pytest.raises(CanvasError, match="holds 3 colours a pixel"):
        cf.convert(write_czi(colours), tmp_path / "a.zarr")
    (tmp_path / "a.czi").unlink()
    with pytest.raises(CanvasError, match="holds 2 scenes, and its metadata name 1"):
        cf.convert(write_czi(V, scenes=True), tmp_path / "a.zarr")
