"""RLE made of where runs begin equals pycocotools'."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from ray_wsss.data.coco import decode_rle, encode_rle
from ray_wsss.data.rle import encode_by_runs, encode_rles, rle_areas


@given(arrays(bool, array_shapes(min_dims=3, max_dims=3, max_side=9), elements=st.booleans()))
def test_runs_equal_pycocotools(masks):
    expected = [encode_rle(mask)["counts"] for mask in masks]
    assert encode_by_runs(torch.from_numpy(masks)) == encode_rles(torch.from_numpy(masks)) == expected


def test_large_masks():
    """Runs of more than one character, and masks that begin inside."""
    noise = np.random.default_rng(0).random((5, 30, 40))
    masks = torch.nn.functional.interpolate(torch.from_numpy(noise)[None], (300, 401))[0] > 0.4
    masks[1], masks[2] = True, False
    rles = encode_by_runs(masks)
    assert rle_areas(rles, (300, 401)) == masks.sum((1, 2)).tolist()
    for mask, rle in zip(masks.numpy(), rles):
        assert rle == encode_rle(mask)["counts"]
        np.testing.assert_array_equal(decode_rle(rle, (300, 401)), mask)


@pytest.mark.parametrize("encode", [encode_rles, encode_by_runs])
def test_no_masks(encode):
    assert encode(torch.zeros(0, 4, 5, dtype=torch.bool)) == []
    assert rle_areas([], (4, 5)) == []


def test_areas_of_many_masks():
    masks = torch.zeros(300, 4, 5, dtype=torch.bool)
    masks[:, 0, 0] = masks[255:, 1, 1] = True
    assert rle_areas(encode_rles(masks), (4, 5)) == [1] * 255 + [2] * 45
    assert rle_areas([], (4, 5)) == []
