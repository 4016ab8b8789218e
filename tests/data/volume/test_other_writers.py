"""TIFF and Zarr on the disks of users: stacks in folders, tiles, thumbnails, cut and unfetched files."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import tifffile
import zarr

from canvas_fm import Points
from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError
from canvas_fm.prepare.convert.convert import convert

VOXELS = (np.arange(1, 1 + 12 * 20 * 30) % 65_521).astype(np.uint16).reshape(12, 20, 30)
UM = (4.0, 1.7, 1.8)
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 100\n"
GREY = {"photometric": "minisblack"}


def planes(folder, names, voxels=VOXELS):
    folder.mkdir(parents=True, exist_ok=True)
    for z, name in enumerate(names):
        tifffile.imwrite(folder / name, voxels[z % len(voxels)])
    return folder


def numbered(folder, pattern="z{:03d}.tif"):
    return planes(folder, [pattern.format(z) for z in range(12)])


def is_scene(path, **options):
    volume = Volume.open(path, **{"voxel_um": UM, **options})
    return np.array_equal(volume.read((0, 0, 0), volume.shape_zyx), VOXELS)


@pytest.mark.parametrize("pattern", [
    "x{t}_y0_z{z:03d}.tif", "Tile{t:02d}_z{z:03d}.tif", "{t:06d}_000000_{z:06d}.tif",
    "Image_XY01_{t:05d}_Z{z:03d}_CH1.tif",
    "spim_TL{t}_Angle0_z{z:03d}.tif", "a_T{t}_Z{z}.tif", "SPM00_TM{t:05d}_CM00_CHN00_PLN{z:04d}.tif",
    "img_{t:09d}_Default_{z:03d}.tif", "a_view{t}_z{z:03d}.tif", "IMG_s{t}_z{z:02d}.tif",
])  # fmt: skip
def test_tiles_views_and_times_are_not_channels(tmp_path, pattern):
    folder = planes(tmp_path / "p", [pattern.format(t=t, z=z) for t in (0, 1) for z in range(12)])
    with pytest.raises(CanvasError, match=r"holds 2 (tiles|positions|views|time points)"):
        Volume.open(folder, voxel_um=UM)
    alone = planes(tmp_path / "alone", [pattern.format(t=1, z=z) for z in range(12)])
    assert is_scene(alone)


def test_a_copy_among_the_planes_is_named(tmp_path):
    folder = numbered(tmp_path / "p")
    tifffile.imwrite(folder / "z003 copy.tif", VOXELS[3])
    with pytest.raises(CanvasError, match=r"move away what is no plane, such as z003 copy\.tif"):
        Volume.open(folder, voxel_um=UM)


def test_the_only_file_of_a_folder_is_the_volume(tmp_path):
    folder = tmp_path / "000000_000000"
    folder.mkdir()
    tifffile.imwrite(folder / "000000_000000_000000.tif", VOXELS, **GREY)
    assert is_scene(folder)
    lone = planes(tmp_path / "lone", ["brain.tif"])
    assert Volume.open(lone, voxel_um=UM).shape_zyx == (1, 20, 30)


def test_pages_that_were_written_one_by_one_are_planes_and_thumbnails_are_not(tmp_path):
    for first in (False, True):
        for about in ({}, None):
            path = tmp_path / f"{first}{about}.tif"
            with tifffile.TiffWriter(path) as writer:
                small = {"subfiletype": 1, "metadata": about, "contiguous": False, **GREY}
                if first:
                    writer.write(VOXELS[0, ::4, ::4], **small)
                for plane in VOXELS:
                    writer.write(plane, metadata=about, contiguous=False, **GREY)
                if not first:
                    writer.write(VOXELS[0, ::4, ::4], **small)
            assert is_scene(path), (first, about)


def test_several_images_in_a_file_are_named(tmp_path):
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(VOXELS[0], metadata={"axes": "YX"}, **GREY)
        writer.write(VOXELS, metadata={"axes": "ZYX"}, **GREY)
    with pytest.raises(CanvasError, match=r"holds 2 images \(YX \(20, 30\), ZYX \(12, 20, 30\)\)"):
        Volume.open(path, voxel_um=UM)


@pytest.mark.parametrize(
    "how", [{"metadata": None}, {"imagej": True}, {"bigtiff": True, "byteorder": ">"}, {}]
)
@pytest.mark.parametrize("part", [0.3, 0.66])
def test_a_stack_that_was_cut_short_is_not_a_shorter_stack(tmp_path, how, part):
    path = tmp_path / "cut.tif"
    more = {} if "imagej" in how else {"compression": "zlib", **GREY}
    tifffile.imwrite(path, VOXELS, **how, **more)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(CanvasError, match=r"cut\.tif': cannot be decoded .*cut short after \d+ pages?"):
        Volume.open(path, voxel_um=UM)


def test_inverted_planes_are_read_with_a_warning(tmp_path, caplog):
    folder = tmp_path / "p"
    folder.mkdir()
    for z in range(3):
        tifffile.imwrite(folder / f"z{z}.tif", VOXELS[z], photometric="miniswhite")
    Volume.open(folder, voxel_um=UM)
    assert "shows 0 as white" in caplog.text


@pytest.mark.parametrize(("content", "message"), [
    (LFS, "pointer of Git LFS in place of its content; fetch it: git lfs pull"),
    ("/annex/objects/MD5E-s100--abc.tif\n", "pointer of git-annex.*git annex get"),
    (None, r"is a link to \.\./annex/xx, which is not here; fetch it: git annex get, datalad get"),
])  # fmt: skip
def test_what_was_not_fetched_says_how_to_fetch_it(tmp_path, content, message):
    folder = numbered(tmp_path / "p")
    store = tmp_path / "a.zarr"
    zarr.create_array(store, data=VOXELS, chunks=(4, 20, 30), zarr_format=2)
    lone = tmp_path / "lone.tif"
    chunk = store / "1.0.0"
    for path in (folder / "z004.tif", lone, chunk):
        path.unlink(missing_ok=True)
        if content is None:
            path.symlink_to("../annex/xx")
        else:
            path.write_text(content)
    for path in (folder, lone, store):
        with pytest.raises(CanvasError, match=message):
            Volume.open(path, voxel_um=UM).read((0, 0, 0), VOXELS.shape)


def test_a_packed_tiff_is_to_be_unpacked(tmp_path):
    (tmp_path / "a.tif.gz").write_bytes(gzip.compress(b"II*\0"))
    with pytest.raises(CanvasError, match="is a compressed TIFF file; unpack it"):
        Volume.open(tmp_path / "a.tif.gz")


def test_what_is_no_volume_says_what_it_is(tmp_path):
    (tmp_path / "x.czi").write_bytes(b"z")
    (tmp_path / "x.nrrd").write_bytes(b"z")
    (tmp_path / "cut.zip").write_bytes(b"PK")
    numbered(tmp_path / "channels" / "ch0")
    numbered(tmp_path / "channels" / "ch1")
    numbered(tmp_path / "tiles" / "000000" / "000000_000000")
    for name, file, text in (("n5", "attributes.json", "{}"), ("pre", "info", "{}"), ("jp2", "z1.jp2", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(text)
    (tmp_path / "empty").mkdir()
    zarr.create_array(tmp_path / "stores" / "a.zarr", data=VOXELS, zarr_format=2)
    group = zarr.open_group(tmp_path / "group.zarr", mode="w", zarr_format=2)
    group.create_array("data", data=VOXELS)
    for name, message in {
        "x.czi": "canvas-fm convert x.czi OUT.zarr",
        "x.nrrd": r"\.nrrd file, which is not read; save it as TIFF",
        "cut.zip": "is no zip archive, or was cut short",
        "channels": "its folders ch0, ch1 hold TIFF files; give one of them",
        "tiles": "holds 1 tile in folders X/X_Y; give one, or canvas-fm stitch",
        "n5": "N5 container; canvas-fm convert",
        "pre": "precomputed volume of Neuroglancer; canvas-fm convert",
        "jp2": r"holds 1 \.jp2 file, which are not read",
        "empty": "it is empty",
        "stores": r"holds the Zarr stores a\.zarr; give one of them",
        "group.zarr": r"it holds data: give one, such as .*group\.zarr/data",
    }.items():
        with pytest.raises(CanvasError, match=message):
            Volume.open(tmp_path / name, voxel_um=UM)


def of_ome(path, *, version="0.4", image=None, root=True):
    zarr_format = 2 if version < "0.5" else 3
    group = zarr.open_group(path, mode="a", zarr_format=zarr_format)
    group.create_array("0", data=VOXELS, chunks=(8, 16, 16))
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    levels = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": list(UM)}]}]
    described = {"axes": axes, "datasets": levels} | (image or {})
    if zarr_format == 2:
        group.attrs["multiscales"] = [{"version": version} | described]
    else:
        group.attrs["ome"] = {"version": version, "multiscales": [described]}
    return path


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_the_only_series_of_bioformats2raw_is_the_volume(tmp_path, version):
    store = tmp_path / "a.zarr"
    root = zarr.open_group(store, mode="w", zarr_format=2 if version == "0.4" else 3)
    layout = {"bioformats2raw.layout": 3}
    root.attrs.update(layout if version == "0.4" else {"ome": {"version": version, **layout}})
    of_ome(store / "0", version=version)
    assert is_scene(store, voxel_um=None)
    assert Volume.open(store).voxel_um == UM
    of_ome(store / "1", version=version)
    with pytest.raises(CanvasError, match=r"collection of series \(0, 1\); give one, such as .*a\.zarr/0"):
        Volume.open(store)


@pytest.mark.parametrize("version", ["0.4.1", "0.5-dev", "0.5"])
def test_drafts_of_a_version_are_read_as_it(tmp_path, version):
    levels = [{"path": "./0", "coordinateTransformations": [{"type": "scale", "scale": list(UM)}]}]
    store = of_ome(tmp_path / "a.zarr", version=version, image={"datasets": levels})
    assert is_scene(store, voxel_um=None)
    assert Volume.open(store).voxel_um == UM


def test_ome_zarr_06_is_read_by_its_coordinate_system(tmp_path):
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    other = [{"name": axis, "type": "space", "unit": "meter"} for axis in "xyz"]

    def image(*steps):
        systems = [{"name": "other", "axes": other}, {"name": "physical", "axes": axes}]
        steps = [{"input": "0", "output": "physical", **step} for step in steps]
        return {
            "axes": None,
            "coordinateSystems": systems,
            "datasets": [{"path": "0", "coordinateTransformations": steps}],
        }

    scale = {"type": "scale", "scale": list(UM)}
    sequence = {
        "type": "sequence",
        "transformations": [scale, {"type": "translation", "translation": [1, 1, 1]}],
    }
    for number, (step, size) in enumerate(
        ((scale, UM), (sequence, UM), ({"type": "identity"}, (1.0, 1.0, 1.0)))
    ):
        store = of_ome(tmp_path / f"{number}.zarr", version="0.6.dev1", image=image(step))
        assert is_scene(store, voxel_um=None)
        assert Volume.open(store).voxel_um == size
    turned = of_ome(
        tmp_path / "r.zarr", version="0.6.dev1", image=image({"type": "rotation", "rotation": []})
    )
    with pytest.raises(CanvasError, match=r"give --voxel-um z y x once .*only a scale can be read"):
        Volume.open(turned)
    assert is_scene(turned)
    mapped = of_ome(
        tmp_path / "m.zarr", version="0.6.dev1", image=image({"type": "mapAxis", "mapAxis": [1, 2, 0]})
    )
    with pytest.raises(CanvasError, match="exchanges its axes"):
        Volume.open(mapped, voxel_um=UM)


def test_an_axis_named_channel_is_one_without_a_type(tmp_path):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    group.create_array("0", data=np.stack([VOXELS[::-1], VOXELS]), chunks=(1, 8, 16, 16))
    axes = [{"name": "channel"}, *({"name": axis, "unit": "micrometer"} for axis in "zyx")]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": [{"path": "0"}]}]
    assert json.loads((tmp_path / "a.zarr" / ".zattrs").read_text())
    assert is_scene(tmp_path / "a.zarr", c=1)


def test_a_pattern_and_a_compressed_file_are_said_as_that(tmp_path):
    numbered(tmp_path / "p")
    (tmp_path / "a.h5.gz").write_bytes(gzip.compress(b"x"))
    for use in (Volume.open, lambda path, **how: convert(path, tmp_path / "a.zarr", **how)):
        with pytest.raises(CanvasError, match=r"patterns are not looked up; give the folder, .*/p$"):
            use(tmp_path / "p/*.tif", voxel_um=UM)
        with pytest.raises(CanvasError, match=r"a\.h5\.gz is a compressed \.h5 file; unpack it"):
            use(tmp_path / "a.h5.gz", voxel_um=UM)


def test_a_description_of_bigdataviewer_names_its_voxels(tmp_path):
    loader = '<ImageLoader format="bdv.n5"><n5 type="relative">brain.n5</n5></ImageLoader>'
    (tmp_path / "a.xml").write_text(f'<?xml version="1.0"?>\n<SpimData version="0.2">{loader}</SpimData>')
    with pytest.raises(CanvasError, match=r"BigDataViewer's description .* to canvas-fm convert: brain\.n5"):
        Volume.open(tmp_path / "a.xml")
    with pytest.raises(CanvasError, match=r"root is <SpimData>.*canvas-fm convert takes the voxels"):
        Points.read(tmp_path / "a.xml")


def test_a_service_names_convert_for_what_it_does_not_read_either(tmp_path):
    (tmp_path / "a.ims").write_bytes(b"HDF")
    with pytest.raises(CanvasError, match=r"is read by convert alone: canvas-fm convert a\.ims"):
        Volume.open(tmp_path / "a.ims", follow_links=False)
