"""How images and their pixels lie in the square input of a promptable model; for SAM without torch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HW = tuple[int, int]


@dataclass(frozen=True)
class InputFrame:
    """A square input, and how an image is resized into it."""

    side_px: int
    """Height and width of the input, in pixels."""
    squeeze: bool = False
    """True: both sides of an image become ``side_px``, so x and y scale apart (SAM 2, SAM 3). False: the long
    side does, the other keeps the aspect, and padding follows right and below (SAM)."""

    def inner_hw(self, image_hw: HW) -> HW:
        """Height and width, in pixels, of an image inside the input; a side of a thin image may become 0.

        Rounds as segment_anything's `ResizeLongestSide` does.
        """
        if self.squeeze:
            return self.side_px, self.side_px
        scale = self.side_px / max(image_hw)
        return int(image_hw[0] * scale + 0.5), int(image_hw[1] * scale + 0.5)

    def fit(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize an image (H, W, 3) to its size in the input, antialiased.

        As the models' own code does it: with Pillow for SAM, with torch for images that are squeezed.
        """
        height, width = self.inner_hw((image.shape[0], image.shape[1]))
        if image.shape[:2] == (height, width):
            return image
        if self.squeeze:
            return _resize_by_torch(image, (height, width))
        return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))

    def place_points(self, points_xy: NDArray[np.float64], image_hw: HW) -> NDArray[np.float64]:
        """Map points (..., 2), x before y, from pixels of the image to pixels of the input.

        Multiplies each axis by new size / old size, as segment_anything and transformers do. The half pixel
        to a pixel's centre is added by the models' prompt encoders.
        """
        height, width = self.inner_hw(image_hw)
        return points_xy * np.array([width / image_hw[1], height / image_hw[0]])


def _resize_by_torch(image: NDArray[np.uint8], size_hw: HW) -> NDArray[np.uint8]:
    """Resize as Pillow does, but for a difference of one level in some pixels."""
    import torch
    from torch.nn import functional as F

    pixels = torch.tensor(image).permute(2, 0, 1)[None]
    resized = F.interpolate(pixels, size_hw, mode="bilinear", align_corners=False, antialias=True)
    return resized[0].permute(1, 2, 0).contiguous().numpy()
