"""Plane and channel numbers in file names, as microscopes and other tools write them."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from canvas_fm.data.volume.tiff.plane_series import order_planes
from canvas_fm.errors import CanvasError

FOLDER = Path("brain")


def order(names: list[str], c: int | None = None, **options: bool) -> list[str | None]:
    shuffled = sorted(names, key=lambda name: hash(name) % 97)
    files = order_planes(FOLDER, [FOLDER / name for name in shuffled], c, **options).files
    return [None if file is None else file.name for file in files]


@pytest.mark.parametrize(
    "pattern",
    [
        "{:d}",  # bare numbers, not padded
        "img_{:04d}",
        "344170_392340_{:06d}_ch2",  # CANVAS
        "brain_UltraII_C00_Z{:04d}",  # LaVision
        "10-00-00_brain_UltraII_C00_xyz-Table Z{:04d}",
        "background_ch01{:04d}",  # cellfinder: channel and plane run together
        "ch0{:04d}",
        "ch0_{:04d}",
        "brain_z{:d}um_final2",
        "2024-11-03_slice {:03d} of 12",
        "plane{:d}_561nm",
        "img_channel000_position000_time000000000_z{:03d}",  # Micro-Manager
        "Z{:d}.ome",
        "10-00_brain_UltraII[00 x 00]_C00_xyz-Table Z{:04d}.ome",
        "c1z{:03d}",  # channel and plane run together
        "brain_{:4d}",  # padded with blanks
    ],
)
def test_planes_come_in_the_order_of_their_numbers(pattern):
    names = [pattern.format(z) + ".tif" for z in range(12)]
    assert order(names) == names


@pytest.mark.parametrize(
    "pattern", ["z{}", "brain_{}", "brain_{}um", "Z {}_561nm"], ids=["z", "last", "unit", "marked"]
)
def test_numbers_may_be_negative_and_decimal(pattern):
    names = [pattern.format(z) + ".tif" for z in ("-5", "-2.5", "0", "2.5", "5", "7.5", "10")]
    assert order(names) == names


def test_a_dash_before_padded_numbers_separates():
    names = [f"brain_z-{z:04d}.tif" for z in range(12)]
    assert order(names) == names


@pytest.mark.parametrize(
    ("names", "channels"),
    [
        ("brain_UltraII_C{c:02d}_Z{z:04d}", (0, 1)),
        ("brain_UltraII_Filter{c:04d}_Z{z:04d}", (0, 1)),
        ("{c}nm_{z:04d}", (488, 561)),
        ("Ex_{c}_Em_2_{z:06d}", (488, 642)),
        ("brain_ch{c:02d}{z:04d}", (0, 1)),
        ("1_2_{z:06d}_ch{c}", (1, 2)),
        ("z{z:03d}_ch{c}", (0, 3)),
        ("{z:04d}_{c}", (0, 1)),
        ("b_UltraII[00 x 00]_C{c:02d}_xyz-Table Z{z:04d}.ome", (0, 1)),
    ],
)
def test_channels_of_one_folder_are_never_stacked(names, channels):
    each = {c: [names.format(c=c, z=z) + ".tif" for z in range(12)] for c in channels}
    with pytest.raises(CanvasError, match=r"holds the channels \[.*choose one with --c"):
        order([name for of_one in each.values() for name in of_one])
    for channel in channels:
        assert order([name for of_one in each.values() for name in of_one], channel) == each[channel]
    with pytest.raises(CanvasError, match="there is no c=7"):
        order([name for of_one in each.values() for name in of_one], 7)


def test_channels_that_differ_in_words_are_chosen_by_index():
    names = [f"{stain}_{z:03d}.tif" for z in range(6) for stain in ("GFP", "autofluorescence")]
    with pytest.raises(CanvasError, match=r"holds the channels 0 \(GFP\), 1 \(autofluorescence\)"):
        order(names)
    assert order(names, 1) == [f"autofluorescence_{z:03d}.tif" for z in range(6)]


@pytest.mark.parametrize("lost", [[3], [1], [4, 5, 6]])
def test_a_gap_in_the_series_is_named_and_never_closed(lost):
    names = [f"Z{10 * z:04d}.tif" for z in range(12)]
    left = [name for z, name in enumerate(names) if z not in lost]
    with pytest.raises(
        CanvasError, match=rf"{len(lost)} planes? .*missing between Z{10 * (lost[0] - 1):04d}"
    ):
        order(left)
    assert order(left, fill_gaps=True) == [None if z in lost else name for z, name in enumerate(names)]


def test_positions_that_were_rounded_are_no_gap():
    names = [f"z{round(2.5 * z)}.tif" for z in range(12)]
    assert order(names) == names


@pytest.mark.parametrize("pattern", ["b_{:.1f}_ch0", "pos{:.2f}", "z{:+.1f}", "b_z{:.1f}µm"])
@pytest.mark.parametrize("mark", [".", ","])
def test_decimals_are_never_taken_for_channels(pattern, mark):
    if mark == "," and "z" not in pattern:
        pytest.skip("a decimal comma is read where the number is marked as the plane")
    names = [pattern.format((z - 5) * 2.5).replace(".", mark) + ".tif" for z in range(12)]
    assert order(names) == names


@pytest.mark.parametrize(
    "lost",
    [[0, 2, 3], [0, 1, 3], [0, 2, 4, 5, 6, 8, 10], [*range(9), 10, 11, 13, 14], [*range(5), *range(6, 40)]],
)
def test_a_gap_is_named_where_few_or_many_planes_are_lost(lost):
    with pytest.raises(CanvasError, match="missing between"):
        order([f"z{z}.tif" for z in lost])


def test_steps_of_one_and_a_half_that_were_rounded_are_no_gap():
    names = [f"z{int(1.5 * z)}.tif" for z in range(14)]
    assert order(names) == names


@pytest.mark.parametrize(
    ("pattern", "what"),
    [
        ("b_UltraII[{:02d} x 00]_C00_xyz-Table Z{:04d}.ome.tif", "2 tiles"),
        ("img_channel000_position{:03d}_time000000000_z{:03d}.tif", "2 positions"),
        ("img_channel000_position000_time{:09d}_z{:03d}.tif", "2 time points"),
        ("Image_XY{:02d}_Z{:03d}_CH1.tif", "2 positions"),
        ("r01c01f{:02d}p{:02d}-ch1sk1fk1fl1.tiff", "2 positions"),
        ("Plate_A01_T0001F{:03d}L01A01Z{:02d}C01.tif", "2 positions"),
    ],
)
def test_tiles_positions_and_times_are_no_channels(pattern, what):
    with pytest.raises(CanvasError, match=f"holds {what}"):
        order([pattern.format(k, z) for k in (0, 1) for z in range(6)], 0)


def test_what_is_no_plane_is_refused():
    with pytest.raises(CanvasError, match=r"overview\.tif are not named alike; move away"):
        order(["1_2.tif", "1_3.tif", "overview.tif"])
    with pytest.raises(CanvasError, match="holds 2 tiles"):
        order(["10_20_000000_ch1.tif", "11_20_000000_ch1.tif"])
    with pytest.raises(CanvasError, match="carry the same plane number"):
        order(["z1.tif", "z01.tif", "z2.tif"])


def test_names_without_numbers_are_said_as_that():
    with pytest.raises(CanvasError, match=r"names such as .* have no number, and planes are ordered by it"):
        order(["front.tif", "middle.tif", "back.tif"])


def test_accents_in_one_letter_and_in_two_are_the_same_name():
    """As after a copy of some planes through macOS."""
    names = [unicodedata.normalize("NFD" if z % 2 else "NFC", f"Gehirn_ü_{z:03d}_C01.tif") for z in range(6)]
    assert order(names) == names


def test_a_bare_second_number_may_be_layers_of_sections():
    names = [f"section_{1 + k // 2:03d}_{1 + k % 2:02d}.tif" for k in range(12)]
    with pytest.raises(CanvasError, match=r"channels \[1, 2\].*optical layers of a section, number all"):
        order(names)
    assert order(names, 1) == names[::2]
    for pattern in ("C{:d}-brain_{:04d}.tif", "brain_{:d}nm_{:03d}.tif", "z{1:03d}_Filter000{0:d}.tif"):
        with pytest.raises(CanvasError, match="holds the channels") as refused:
            order([pattern.format(k, z) for k in (1, 2) for z in range(6)])
        assert "layers" not in str(refused.value)


@pytest.mark.parametrize(
    "pattern",
    ["b_{z:04d}_10-{m}-{s:02d}.tif", "20240315_10{m}{s:02d}_{z:04d}.tif", "b_{z:04d}_6384612345{s}.tif"],
)
def test_a_time_in_each_name_is_no_plane_number_and_no_channel(pattern):
    names = [pattern.format(z=z, m=22 + z // 2, s=(17 + 23 * z) % 60) for z in range(6)]
    assert order(names) == names


def test_names_in_which_no_number_counts_the_planes_are_refused():
    with pytest.raises(CanvasError, match="differ in more than one number, and it is not clear which counts"):
        order([f"a_{z * z}_{(17 + 23 * z) % 60}.tif" for z in range(6)])
    with pytest.raises(CanvasError, match="differ in more than one number"):
        order([f"a_{z}_b{50 - z}c.tif" for z in range(6)])


@pytest.mark.parametrize("pattern", ["p_{:04x}.tif", "z{:02X}.tif", "C00_z0x{:02x}.tif", "z{:03x}_C01.tif"])
def test_numbers_in_base_16_are_ordered_and_their_gaps_named(pattern):
    names = [pattern.format(z) for z in range(5, 40)]
    assert order(names) == names
    with pytest.raises(CanvasError, match=rf"1 plane is missing between {names[5]} and {names[7]}"):
        order(names[:6] + names[7:])


def test_numbers_in_base_16_of_two_channels():
    names = [f"z{z:02x}_C0{c}.tif" for z in range(18) for c in (0, 1)]
    assert order(names, 1) == names[1::2]


@pytest.mark.parametrize(
    "names",
    [
        [f"s_{k // 2 + 1:02d}{'ab'[k % 2]}.tif" for k in range(24)],  # two layers a section
        [f"s_{k // 6 + 1:02d}{'abcdef'[k % 6]}.tif" for k in range(36)],
        [f"s_{k:02x}.tif" for k in range(4, 14)],  # too few to tell
    ],
)
def test_letters_behind_numbers_are_no_base_16(names):
    with pytest.raises(CanvasError, match="holds the channels"):
        order(names)
