"""Geometric augmentation: one sampled resize, crop and flip for an image and all its label maps."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Integer, Shaped
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How to make a square training crop of an image: resize, crop, mirror."""

    scaled_hw: tuple[int, int]
    """Height and width of the resized image, in pixels."""
    top: int
    """Row of the resized image at the crop's first row; negative if the crop starts in the padding."""
    left: int
    """Column of the resized image at the crop's first column; negative if the crop starts in the padding."""
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
        """Draw a random geometry.

        The image's long side gets a random length in ``long_side_px`` (both ends included). Along each axis
        the crop lies at a random place inside the resized image; if the image is shorter than the crop, the
        image lies at a random place inside the crop.

        Args:
            image_hw: height and width of the image, in pixels.
            long_side_px: shortest and longest long side of the resized image, in pixels.
            crop_px: side of the crop, in pixels.
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
        """Crop an image, or with ``nearest`` a label map; the padding gets the value ``fill``.

        Images are resized bilinearly with antialiasing and become float32. Label maps keep their values and
        dtype.
        """
        source = image[None].float()
        if nearest:
            scaled = F.interpolate(source, self.scaled_hw, mode="nearest-exact")[0]
        else:
            scaled = F.interpolate(source, self.scaled_hw, mode="bilinear", antialias=True)[0]
        crop = self.place(scaled, fill=fill)
        return crop.to(image.dtype) if nearest else crop

    def place(self, scaled: Shaped[Tensor, "C H W"], *, fill: float | int) -> Shaped[Tensor, "C P P"]:
        """Crop an image or label map that already has the size of the resized image."""
        height, width = self.scaled_hw
        side = self.crop_px
        crop = scaled.new_full((scaled.shape[0], side, side), fill)
        top, left = max(0, self.top), max(0, self.left)
        bottom, right = min(height, self.top + side), min(width, self.left + side)
        shown = scaled[:, top:bottom, left:right]
        crop[:, *self.visible()] = shown.flip(-1) if self.flip else shown
        return crop

    def crop_cells(
        self, cells: Float[Tensor, "D h w"], side: int
    ) -> tuple[Float[Tensor, "D n n"], Bool[Tensor, "n n"]]:
        """Resample the feature map of the whole image at the centres of a crop's cells (bilinear).

        Args:
            cells: map that covers the image, of any size.
            side: number of cells n along a side of the crop.

        Returns:
            The crop's feature map, 0 in the padding, and which of its cells have their centre in the image.
        """
        centres = (torch.arange(side) + 0.5) * (self.crop_px / side)
        across = self.crop_px - centres if self.flip else centres
        y, x = (centres + self.top) / self.scaled_hw[0], (across + self.left) / self.scaled_hw[1]
        grid = torch.stack([x.expand(side, side), y[:, None].expand(side, side)], -1) * 2 - 1
        # With "border", a cell at the image's edge is not mixed with nothing.
        cut = F.grid_sample(cells[None], grid[None], padding_mode="border", align_corners=False)[0]
        inside = ((y > 0) & (y < 1))[:, None] & ((x > 0) & (x < 1))
        return cut * inside, inside

    def mirrored(self) -> "Geometry":
        """The geometry that makes the same crop of the mirrored image."""
        left = self.scaled_hw[1] - self.left - self.crop_px
        return replace(self, left=left, flip=not self.flip)

    def visible(self) -> tuple[slice, slice]:
        """Rows and columns of the crop that show the image; the rest is padding."""
        height, width = self.scaled_hw
        rows = slice(max(0, -self.top), min(self.crop_px, height - self.top))
        left, right = max(0, -self.left), min(self.crop_px, width - self.left)
        return rows, slice(self.crop_px - right, self.crop_px - left) if self.flip else slice(left, right)

    def to_scaled(self, points_yx: Integer[Tensor, "*N 2"]) -> Integer[Tensor, "*N 2"]:
        """Convert pixels (y, x) of the crop to pixels of the resized image; padding lies outside it."""
        y, x = points_yx.unbind(-1)
        if self.flip:
            x = self.crop_px - 1 - x
        return torch.stack([y + self.top, x + self.left], dim=-1)

    def inside(self) -> Shaped[Tensor, "1 P P"]:
        """Bool mask of the crop: True where it shows the image, False in the padding."""
        inside = torch.zeros(1, self.crop_px, self.crop_px, dtype=torch.bool)
        inside[:, *self.visible()] = True
        return inside
