"""An image that EXIF turns is read the way its annotations fit."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ray_wsss.data.coco import orient
from ray_wsss.data.images import ImageError, ImageInfo

STORED, UPRIGHT = (40, 100), (100, 40)
TURNED = ImageInfo(40, 100, 6)


def polygon(x0: float, y0: float, x1: float, y1: float) -> dict:
    return {"segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]], "bbox": None}


def bbox(x0: float, y0: float, x1: float, y1: float) -> dict:
    return {"segmentation": None, "bbox": (x0, y0, x1 - x0, y1 - y0)}


def rle(height: int, width: int) -> dict:
    encoded = coco_mask.encode(np.asfortranarray(np.eye(height, width), np.uint8))
    return {"segmentation": {"size": [height, width], "counts": str(encoded["counts"])}, "bbox": None}


@pytest.mark.parametrize("stated", [STORED, UPRIGHT, None])
@pytest.mark.parametrize(
    ("annotation", "orientation"),
    [
        (polygon(10, 50, 30, 95), 6),
        (polygon(50, 10, 95, 30), 1),
        (polygon(10, 20, 30, 101), 6),  # a small overshoot still fits
        (bbox(10, 50, 30, 95), 6),
        (bbox(50, 10, 95, 30), 1),
        (rle(100, 40), 6),
        (rle(40, 100), 1),
    ],
)
def test_annotations_that_fit_one_way_decide(annotation, orientation, stated):
    remarks: list[tuple[str, str]] = []
    assert orient(TURNED, stated, [polygon(1, 1, 9, 9), annotation], remarks) == orientation
    overruled = stated not in (None, UPRIGHT if orientation == 6 else STORED)
    assert [remark for remark, _ in remarks] == (
        ["read the way its annotations fit, not as the stated size says"] if overruled else []
    )


@pytest.mark.parametrize(("stated", "orientation"), [(STORED, 1), (UPRIGHT, 6), (None, 6)])
@pytest.mark.parametrize("annotations", [[], [polygon(1, 1, 39, 39)], [{"segmentation": "?", "bbox": None}]])
def test_else_the_stated_size_does(annotations, stated, orientation):
    assert orient(TURNED, stated, annotations, []) == orientation


@pytest.mark.parametrize(
    "annotations",
    [
        [polygon(10, 10, 95, 95)],
        [polygon(50, 10, 95, 30), polygon(10, 50, 30, 95)],
        [polygon(-20, 5, 10, 10)],
        [rle(50, 50)],
        [rle(99, 40)],
    ],
)
def test_annotations_that_fit_neither_way_are_an_error(annotations):
    with pytest.raises(ImageError, match="fits neither the stored 100x40 pixels nor the 40x100 that EXIF"):
        orient(TURNED, STORED, annotations, [])


@pytest.mark.parametrize("info", [ImageInfo(40, 100, 1), ImageInfo(40, 100, 3), ImageInfo(100, 100, 6)])
def test_images_of_one_size_are_not_asked(info):
    stored = (info.height, info.width)
    assert orient(info, stored, [polygon(500, 500, 900, 900)], []) == info.exif_orientation


def test_a_size_that_the_image_has_neither_way_stays_an_error():
    with pytest.raises(ImageError, match="the image is 100x40 pixels, its annotations state 41x100"):
        orient(TURNED, (100, 41), [polygon(10, 50, 30, 95)], [])
