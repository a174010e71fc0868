"""A large scene with a few small objects, for tests of tiles."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ray_wsss.data.scenes import _paint_background, _paint_object

_GROUND_PX = 500
_CROP_PX = 256
RADIUS_PX = 66
"""Radius of an object's body, about; its emblem is 40 px wide, about."""


@dataclass(frozen=True)
class Painted:
    """An object of a large scene."""

    class_index: int
    corner_yx: tuple[int, int]
    """Upper left corner of the crop that the masks are of, in pixels of the scene."""
    body: NDArray[np.bool_]
    emblem: NDArray[np.bool_]

    @property
    def at(self) -> tuple[slice, slice]:
        """The crop around the object, as an index into the scene."""
        (top, left), side = self.corner_yx, len(self.body)
        return slice(top, top + side), slice(left, left + side)


def paint_large_scene(
    height: int, width: int, centres_yx: Sequence[tuple[int, int]], classes: Sequence[int], seed: int = 0
) -> tuple[NDArray[np.uint8], list[Painted]]:
    """An image (H, W, 3), and its objects, whose crops of 256 px lie in the image."""
    rng = np.random.default_rng(seed)
    ground = _paint_background(rng, _GROUND_PX, _GROUND_PX)
    # Mirrored, so that the ground has no edges.
    block = np.concatenate([ground, ground[::-1]])
    block = np.concatenate([block, block[:, ::-1]], axis=1)
    image = np.tile(block.astype(np.uint8), (-(-height // len(block)), -(-width // len(block)), 1))
    image = np.ascontiguousarray(image[:height, :width])
    painted = []
    for (y, x), class_index in zip(centres_yx, classes, strict=True):
        top = min(max(0, y - _CROP_PX // 2), height - _CROP_PX)
        left = min(max(0, x - _CROP_PX // 2), width - _CROP_PX)
        at = slice(top, top + _CROP_PX), slice(left, left + _CROP_PX)
        canvas = image[at].astype(np.float32)
        body, _, emblem = _paint_object(rng, canvas, class_index, (y - top, x - left), RADIUS_PX)
        canvas += rng.normal(0, 3, canvas.shape)
        image[at] = np.clip(canvas, 0, 255)
        painted.append(Painted(class_index, (top, left), body, emblem))
    return image, painted
