"""Crops and points are let in only as what the encoder takes; everything else gets its sentence."""

from types import SimpleNamespace

import numpy as np
import pytest

from canvas_fm.data.volume.window import Window
from canvas_fm.errors import CanvasError
from canvas_fm.inference.input_checks import check_crops, check_points

CROP = (4, 6, 8)
CONFIG = SimpleNamespace(architecture=SimpleNamespace(crop_zyx=CROP, channels=1))


def crops(n=3, shape=CROP, dtype=np.float32):
    return np.linspace(0, 1, n * int(np.prod(shape)), dtype=dtype).reshape(n, *shape)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ">f4"])
def test_values_and_order_survive(dtype):
    given = crops().astype(dtype)
    for array in (given, given[:, None]):
        got = check_crops(array, CONFIG)
        assert got.dtype == np.float32
        assert got.dtype.isnative
        assert got.shape == (3, 1, *CROP)
        np.testing.assert_array_equal(got[:, 0], given.astype(np.float32))


def test_raw_integers_go_through_the_window_that_came_with_them():
    raw = np.arange(2 * np.prod(CROP), dtype=np.uint16).reshape(2, *CROP)
    window = Window(100, 300)
    got = check_crops(raw, CONFIG, window=window)
    np.testing.assert_allclose(got[:, 0], np.clip((raw - 100.0) / 200, 0, 1), atol=1e-6)
    np.testing.assert_array_equal(got, check_crops(raw, CONFIG, window=(100, 300)))


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((1, 1, 8, 8, 8), r"crops have shape \(1, 1, 8, 8, 8\); this encoder takes \(n, 1, 4, 6, 8\)$"),
        ((2, 8, 6, 4), r"these look like x, y, z: the axes are z, y, x, so transpose"),
        ((2, 1, 6, 4, 8), r"these look like y, z, x"),
        ((2, 4, 6, 8, 1), r"these look like \(n, z, y, x, channel\)"),
        ((2, 8, 6, 4, 1), r"these look like \(n, x, y, z, channel\)"),
        ((4, 6, 8), r"a single crop needs its leading axis"),
        ((2, 2, 4, 6, 8), r"takes \(n, 1, 4, 6, 8\)$"),
        ((192,), r"takes \(n, 1, 4, 6, 8\)$"),
        ((), r"takes \(n, 1, 4, 6, 8\)$"),
        ((0, 1, 4, 6, 8), r"no crop at all; .* with n at least 1"),
    ],
)
def test_another_shape_is_refused(shape, sentence):
    with pytest.raises(CanvasError, match=sentence):
        check_crops(np.zeros(shape, np.float32), CONFIG)


@pytest.mark.parametrize(
    ("dtype", "sentence"),
    [
        (np.uint16, "raw integers need their volume's window"),
        (np.int8, "raw integers need their volume's window"),
        (bool, "crops are bool; give float32"),
        (np.float16, "crops are float16; give float32"),
        (np.complex64, "crops are complex64"),
        (object, "crops are object"),
        ("U3", "crops are <U3"),
        ("M8[s]", "crops are datetime64"),
    ],
)
def test_another_dtype_is_refused(dtype, sentence):
    with pytest.raises(CanvasError, match=sentence):
        check_crops(np.zeros((1, *CROP), dtype), CONFIG)


def test_what_is_no_array_is_refused():
    with pytest.raises(CanvasError, match="no array of numbers"):
        check_crops([[1.0, 2.0], [3.0]], CONFIG)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_name_the_first_crop(bad):
    given = crops(5)
    given[2, 1, 1, 1] = given[4, 0, 0, 0] = bad
    with pytest.raises(CanvasError, match="2 of 5 crops hold NaN or infinite values, the first is crop 2"):
        check_crops(given, CONFIG)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("value", "sentence"), [(-0.25, "from -0.25 to 1"), (700, "from 0 to 700")])
def test_values_outside_zero_to_one_name_their_range(dtype, value, sentence):
    given = crops(dtype=dtype)
    given[1, 0, 0, 0] = value
    with pytest.raises(CanvasError, match=sentence):
        check_crops(given, CONFIG)


def test_a_double_that_overflows_float_is_refused_and_one_that_rounds_to_one_is_not():
    given = crops(dtype=np.float64)
    given[0, 0, 0, 0] = 1e300
    with pytest.raises(CanvasError, match="to inf"):
        check_crops(given, CONFIG)
    given[0, 0, 0, 0] = 1 + 1e-12
    assert check_crops(given, CONFIG).max() == 1


def test_a_float_with_a_window_would_be_windowed_twice():
    with pytest.raises(CanvasError, match="floats are windowed already"):
        check_crops(crops(), CONFIG, window=Window(0, 1))


@pytest.mark.parametrize("window", [(5, 5), (5, 4), (np.nan, 4), (0, np.inf)])
def test_a_window_has_to_have_two_ends(window):
    with pytest.raises(CanvasError, match="lower one first"):
        check_crops(np.zeros((1, *CROP), np.uint16), CONFIG, window=window)


def test_points_inside_are_kept_in_order_and_voxel_i_spans_half_a_voxel_each_way():
    given = [[-0.5, 0, 0], [3.49, 5, 7], [1, 2, 3]]
    np.testing.assert_array_equal(check_points(given, CROP), np.array(given))


@pytest.mark.parametrize("point", [(-0.51, 0, 0), (3.5, 0, 0), (0, 0, 7.5)])
def test_points_outside_are_counted_and_the_first_is_named(point):
    given = np.zeros((6, 3))
    given[[2, 4]] = point
    with pytest.raises(CanvasError, match=r"2 of 6, first at row 3 .*\(4, 6, 8\)"):
        check_points(given, CROP)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([], "there are no points"),
        (np.zeros((0, 3)), "there are no points"),
        (np.zeros((2, 2)), r"points have shape \(2, 2\)"),
        ([0, 0, 0], r"points have shape \(3,\)"),
        ([["a", "b", "c"]], "points are numbers"),
        ([[1, 2], [3]], "points are numbers"),
        ([[0, 0, 0], [np.nan, 0, 0]], r"row 2 .* is not finite"),
    ],
)
def test_what_is_no_list_of_points_is_refused(given, sentence):
    with pytest.raises(CanvasError, match=sentence):
        check_points(given, CROP)
