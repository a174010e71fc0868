import numpy as np
import pytest
from skimage.measure import label as connected

from ray_wsss.ops.regions import box_around, peak_regions


def hill(height: float, y: int, x: int, width: float, size: int = 40) -> np.ndarray:
    ys, xs = np.mgrid[:size, :size]
    return (height * np.exp(-((ys - y) ** 2 + (xs - x) ** 2) / (2 * width**2))).astype(np.float32)


def test_hills_apart_are_their_connected_components():
    cam = np.maximum(hill(1, 10, 10, 4), hill(0.8, 28, 30, 3))
    regions = peak_regions(cam, np.array([[10, 10], [28, 30]]), 0.5)
    components = np.asarray(connected(cam > 0.5, connectivity=2))
    assert components.max() == 2
    np.testing.assert_array_equal(regions == 1, components == components[10, 10])
    np.testing.assert_array_equal(regions == 2, components == components[28, 30])


def test_hills_that_touch_are_divided_at_the_saddle():
    cam = np.maximum(hill(1, 20, 12, 6), hill(1, 20, 27, 6))
    regions = peak_regions(cam, np.array([[20, 12], [20, 27]]), 0.3)
    np.testing.assert_array_equal(regions > 0, cam > 0.3)
    left, right = np.nonzero(regions == 1)[1], np.nonzero(regions == 2)[1]
    assert left.max() <= 20
    assert right.min() >= 19
    assert right.max() > 27


def test_what_no_peak_reaches_belongs_to_none():
    cam = np.maximum(hill(1, 10, 10, 4), hill(0.8, 28, 30, 3))
    regions = peak_regions(cam, np.array([[10, 10]]), 0.5)
    assert not regions[28, 30]


@pytest.mark.parametrize("height", [0.4, 0.001])
def test_a_weak_peak_has_what_is_above_half_of_it(height: float):
    cam = hill(height, 15, 20, 5)
    regions = peak_regions(cam, np.array([[15, 20]]), 0.5)
    np.testing.assert_array_equal(regions > 0, cam > cam.max() / 2)


def test_a_guess_on_an_empty_map_has_its_own_pixel():
    regions = peak_regions(np.zeros((9, 9), np.float32), np.array([[4, 7]]), 0.5)
    assert np.argwhere(regions).tolist() == [[4, 7]]


def test_box_has_the_edges_of_the_pixels():
    inside = np.zeros((8, 9), bool)
    inside[2:5, 3] = inside[4, 3:8] = True
    assert box_around(inside) == (3, 2, 8, 5)
