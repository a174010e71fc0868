"""Outlines against rasterisers: pycocotools for those along edges, OpenCV for those through centres."""

import warnings
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from skimage.measure import label

from ray_wsss.export.outlines import centre_ring, edge_ring


def rasterise_edges(ring: NDArray, height: int, width: int) -> NDArray[np.bool_]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pycocotools under NumPy 2
        rles: Any = coco_mask.frPyObjects([ring.ravel().tolist()], height, width)
        return coco_mask.decode(rles)[..., 0] > 0


def rasterise_centres(ring: NDArray, height: int, width: int) -> NDArray[np.bool_]:
    canvas = np.zeros((height, width), np.uint8)
    cv2.fillPoly(canvas, [ring.astype(np.int32)], (1,))
    return canvas > 0


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_any_region_comes_back(mask: NDArray[np.bool_]) -> None:
    regions = np.asarray(label(mask, connectivity=2))
    for k in range(1, regions.max() + 1):
        region = regions == k
        np.testing.assert_array_equal(rasterise_edges(edge_ring(region), *region.shape), region)
        np.testing.assert_array_equal(rasterise_centres(centre_ring(region), *region.shape), region)


def test_hole_in_a_ring_in_a_hole() -> None:
    y, x = np.mgrid[:80, :90]
    distance = np.hypot(y - 40, x - 45)
    region = ((distance < 38) & (distance > 10)) & ~((abs(y - 40) < 4) & (abs(x - 70) < 4))
    for ring, rasterise in ((edge_ring(region), rasterise_edges), (centre_ring(region), rasterise_centres)):
        np.testing.assert_array_equal(rasterise(ring, 80, 90), region)


def test_a_box_has_four_corners() -> None:
    region = np.zeros((9, 9), bool)
    region[2:6, 3:8] = True
    assert {tuple(corner) for corner in edge_ring(region).tolist()} == {(3, 2), (8, 2), (8, 6), (3, 6)}
    assert {tuple(corner) for corner in centre_ring(region).tolist()} == {(3, 2), (7, 2), (7, 5), (3, 5)}
    assert len(edge_ring(region)) == len(centre_ring(region)) == 4


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 1)])
def test_too_thin_for_an_area(shape: tuple[int, int]) -> None:
    region = np.ones(shape, bool)
    assert len(centre_ring(region)) == min(2, region.size)
    assert len(edge_ring(region)) == 4
