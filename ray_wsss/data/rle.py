"""COCO's compressed RLE for masks on any torch device."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional as F

from ray_wsss.data.coco import encode_rle

_MOST_AREAS = 255
"""Masks whose areas pycocotools computes at a time: it puts their number into a byte, and NumPy 2 objects."""


def encode_rles(masks: Bool[Tensor, "N H W"]) -> list[str]:
    """Encode N masks as the counts of compressed RLE. A GPU sends only the starts of runs, all at once."""
    if masks.device.type == "cpu":
        return [encode_rle(mask)["counts"] for mask in masks.numpy()]
    return encode_by_runs(masks)


def rle_areas(counts: Sequence[str], image_hw: tuple[int, int]) -> list[int]:
    """Number of pixels of each mask, from its counts."""
    rles: Any = [{"counts": of_mask.encode("ascii"), "size": list(image_hw)} for of_mask in counts]
    parts = [rles[at : at + _MOST_AREAS] for at in range(0, len(rles), _MOST_AREAS)]
    return [int(area) for part in parts for area in np.atleast_1d(coco_mask.area(part))]


def encode_by_runs(masks: Bool[Tensor, "N H W"]) -> list[str]:
    """Encode masks as `encode_rles` does, on their device. On a CPU pycocotools is twice as fast."""
    count, height, width = masks.shape
    by_column = masks.transpose(1, 2).flatten(1)
    # A run begins where a pixel differs from the one before it; before the first, there is background.
    begins = by_column != F.pad(by_column[:, :-1], (1, 0))
    mask_of, pixel = begins.nonzero().cpu().numpy().T
    encoded, bounds = [], np.searchsorted(mask_of, np.arange(count + 1))
    for first, end in pairwise(bounds):
        counts = np.diff(pixel[first:end], prepend=0, append=height * width).tolist()
        rle: Any = coco_mask.frPyObjects({"counts": counts, "size": [height, width]}, height, width)
        encoded.append(rle["counts"].decode("ascii"))
    return encoded
