"""One sampled geometry for an image and everything drawn on it: resize, crop, flip."""

from dataclasses import dataclass

import torch
from jaxtyping import Integer, Shaped
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """From an image to a square training crop."""

    scaled_hw: tuple[int, int]
    """Size of the image after resizing, in pixels."""
    top: int
    """Row of the resized image at the crop's first row; negative where the crop begins in the padding."""
    left: int
    """Column, likewise."""
    crop_px: int
    """Side of the crop, in pixels."""
    flip: bool
    """Whether the crop is mirrored left to right."""

    @classmethod
    def sample(
        cls,
        image_hw: tuple[int, int],
        *,
        long_side_px: tuple[int, int],
        crop_px: int,
        flip: bool,
        generator: torch.Generator,
    ) -> "Geometry":
        """Draw a geometry.

        The long side becomes a random length in ``long_side_px`` (both ends included). The crop lies
        anywhere in the resized image; where that is smaller than the crop, the image lies anywhere in it.

        Args:
            image_hw: size of the image, in pixels.
            flip: mirror with probability 0.5.
            generator: source of all randomness.
        """

        def draw(low: int, high: int) -> int:
            return int(torch.randint(low, high + 1, (), generator=generator))

        scale = draw(*long_side_px) / max(image_hw)
        height, width = (max(1, round(side * scale)) for side in image_hw)
        spare_y, spare_x = height - crop_px, width - crop_px
        return cls(
            scaled_hw=(height, width),
            top=draw(min(0, spare_y), max(0, spare_y)),
            left=draw(min(0, spare_x), max(0, spare_x)),
            crop_px=crop_px,
            flip=flip and draw(0, 1) == 1,
        )

    def apply(
        self, image: Shaped[Tensor, "C H W"], *, fill: float | int, nearest: bool = False
    ) -> Shaped[Tensor, "C P P"]:
        """The crop of an image, or with ``nearest`` of a label map; padding is ``fill``.

        Images are resized bilinearly with antialiasing, labels keep their values and dtype.
        """
        source = image[None].float()
        if nearest:
            scaled = F.interpolate(source, self.scaled_hw, mode="nearest-exact")[0]
        else:
            scaled = F.interpolate(source, self.scaled_hw, mode="bilinear", antialias=True)[0]
        crop = self.place(scaled, fill=fill)
        return crop.to(image.dtype) if nearest else crop

    def place(self, scaled: Shaped[Tensor, "C H W"], *, fill: float | int) -> Shaped[Tensor, "C P P"]:
        """The crop of what has the size of the resized image already."""
        height, width = self.scaled_hw
        side = self.crop_px
        crop = scaled.new_full((scaled.shape[0], side, side), fill)
        top, left = max(0, self.top), max(0, self.left)
        bottom, right = min(height, self.top + side), min(width, self.left + side)
        inside = (slice(top - self.top, bottom - self.top), slice(left - self.left, right - self.left))
        crop[:, inside[0], inside[1]] = scaled[:, top:bottom, left:right]
        return crop.flip(-1) if self.flip else crop

    def to_scaled(self, points_yx: Integer[Tensor, "*N 2"]) -> Integer[Tensor, "*N 2"]:
        """Pixels of the crop as pixels of the resized image; those of the padding lie outside of it."""
        y, x = points_yx.unbind(-1)
        if self.flip:
            x = self.crop_px - 1 - x
        return torch.stack([y + self.top, x + self.left], dim=-1)

    def inside(self) -> Shaped[Tensor, "1 P P"]:
        """Where the crop shows the image (True) and where it is padding, as bool."""
        height, width = self.scaled_hw
        rows = torch.arange(self.crop_px) + self.top
        columns = torch.arange(self.crop_px) + self.left
        columns = columns.flip(0) if self.flip else columns
        return (((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width)))[None]
