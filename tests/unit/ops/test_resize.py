"""Working copies and maps: sizes, and values at the right places."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ray_wsss.data.scenes import make_scene
from ray_wsss.ops.resize import group_by_size, resize_label_maps, resize_map, shrink, slices_of, working_hw

SCENE = make_scene(3, 60, 80).image


def test_working_size():
    assert working_hw((60, 80), 80) == (60, 80)
    assert working_hw((60, 80), 1000) == (60, 80)
    assert working_hw((60, 80), 40) == (30, 40)
    assert working_hw((1, 1000), 32) == (1, 32)
    assert shrink(SCENE, 80) is SCENE
    assert shrink(SCENE, 40).shape == (30, 40, 3)


def test_groups_hold_one_size_and_no_more_pixels_than_allowed():
    images = [np.zeros((*hw, 3), np.uint8) for hw in ((4, 5), (5, 4), (4, 5), (4, 5), (20, 20), (4, 5))]
    assert group_by_size(images, 9) == [[0, 2, 3, 5], [1], [4]]
    assert group_by_size(images, 3) == [[0, 2, 3], [5], [1], [4]]
    assert group_by_size(images, 9, 40.0) == [[0, 2], [3, 5], [1], [4]]
    assert group_by_size(images, 9, 39.9) == [[0], [2], [3], [5], [1], [4]]
    assert group_by_size([], 9, 1.0) == []


def test_slices_cover_every_map_once():
    assert slices_of(5, 10, 20) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert slices_of(2, 10, 9) == [slice(0, 1), slice(1, 2)]
    assert slices_of(0, 10, 20) == []


def test_the_working_copy_is_as_pillow_would_shrink_it():
    expected = np.array(Image.fromarray(SCENE).resize((33, 25), Image.Resampling.BILINEAR))
    assert np.abs(shrink(SCENE, 33).astype(int) - expected).max() <= 1


def test_maps_are_scaled_without_new_values():
    segments = np.array([[0, 65_535], [7, 0]], np.int32)
    scaled = resize_map(segments, (4, 6))
    assert scaled.dtype == np.int32
    np.testing.assert_array_equal(scaled, segments.repeat(2, axis=0).repeat(3, axis=1))
    assert resize_map(segments, (2, 2)) is segments


@pytest.mark.parametrize("image_hw", [(13, 31), (11, 40), (100, 7)])
def test_maps_take_the_value_at_each_pixels_centre(image_hw):
    segments = np.arange(7 * 11, dtype=np.int32).reshape(7, 11) * 800
    rows, columns = ((np.arange(n) + 0.5) * m / n for n, m in zip(image_hw, segments.shape))
    expected = segments[rows.astype(int)[:, None], columns.astype(int)]
    np.testing.assert_array_equal(resize_map(segments, image_hw), expected)
    mask = segments % 3 == 0
    assert resize_map(mask, image_hw).dtype == bool
    np.testing.assert_array_equal(resize_map(mask, image_hw), expected % 3 == 0)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(32, 1500))
def test_the_working_size_keeps_the_shape(height, width, most):
    small = working_hw((height, width), most)
    assert max(small) == min(most, max(height, width))
    scale = max(small) / max(height, width)
    assert all(abs(a - max(1, b * scale)) <= 0.501 for a, b in zip(small, (height, width)))


@pytest.mark.parametrize("image_hw", [(13, 9), (40, 31), (20, 30)])
def test_maps_are_resized_alike_one_by_one_and_together(image_hw):
    maps = np.random.default_rng(0).integers(0, 255, (3, 20, 30), np.uint8)
    for each in (maps, maps > 100):
        found = resize_label_maps(torch.from_numpy(each), image_hw).numpy()
        assert found.dtype == each.dtype
        np.testing.assert_array_equal(found, [resize_map(one, image_hw) for one in each])
    assert resize_label_maps(torch.from_numpy(maps[:0]), image_hw).shape == (0, *image_hw)
