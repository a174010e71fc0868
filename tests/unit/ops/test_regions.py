import numpy as np
import pytest
from skimage.measure import label as connected

from ray_wsss.ops.regions import box_around, inmost, peak_regions


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


def test_the_centre_is_farthest_from_the_border() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        mask = np.zeros((14, 17), bool)
        top, left = rng.integers(0, 6, 2)
        mask[top : top + 8, left : left + 5] = True
        mask[:3, 9:] |= rng.random((3, 8)) < 0.8
        outside = np.argwhere(~np.pad(mask, 1)) - 1
        depth = {(int(y), int(x)): np.hypot(*(outside - (y, x)).T).min() for y, x in np.argwhere(mask)}
        assert np.isclose(depth[inmost(mask)], max(depth.values()))


def test_an_object_at_the_edge_has_its_centre_inside() -> None:
    mask = np.zeros((20, 20), bool)
    mask[:, :9] = True
    assert inmost(mask)[1] == 4
