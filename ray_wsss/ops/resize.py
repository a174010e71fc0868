"""Resizing of images, CAMs and label maps."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


def working_hw(image_hw: tuple[int, int], max_side_px: int) -> tuple[int, int]:
    """Working size (height, width) of an image: its own, or reduced to a long side of ``max_side_px``."""
    scale = min(1.0, max_side_px / max(image_hw))
    return max(1, round(image_hw[0] * scale)), max(1, round(image_hw[1] * scale))


def shrink(pixels: NDArray[np.uint8], max_side_px: int) -> NDArray[np.uint8]:
    """Reduce an image (H, W, 3) uint8 to its working size (antialiased)."""
    image_hw = (pixels.shape[0], pixels.shape[1])
    size_hw = working_hw(image_hw, max_side_px)
    if size_hw == image_hw:
        return pixels
    source = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return F.interpolate(source, size_hw, mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()


def to_tensor(images: Sequence[NDArray[np.uint8]], device: torch.device) -> Tensor:
    """Convert images (H, W, 3) of one size to float RGB (B, 3, H, W) in [0, 1], on the device."""
    return torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2).float().div_(255)


def group_by_size(
    images: Sequence[NDArray[np.uint8]], most: int, max_pixels: float | None = None
) -> list[list[int]]:
    """Group the indices of images (H, W, 3) by image size.

    A group holds at most ``most`` images and ``max_pixels`` pixels (None: no limit), but at least one image.
    """
    members: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for at, image in enumerate(images):
        members[image.shape].append(at)
    groups: list[list[int]] = []
    for (height, width, *_), group in members.items():
        fitting = most if max_pixels is None else min(most, int(max_pixels / (height * width)))
        groups += [group[part] for part in slices_of(len(group), 1, max(1, fitting))]
    return groups


def slices_of(count: int, pixels: int, max_pixels: int) -> list[slice]:
    """Cut ``count`` maps of ``pixels`` pixels each into slices of at most ``max_pixels``, or of one map."""
    step = max(1, max_pixels // pixels)
    return [slice(at, min(at + step, count)) for at in range(0, count, step)]


def scale_images(
    images: Float[Tensor, "B 3 _H _W"], scale: float, multiple: int = 1
) -> Float[Tensor, "B 3 h w"]:
    """Resize images by a factor (`resize_images`); no side gets shorter than 32 pixels.

    Args:
        multiple: the sides are rounded to multiples of it, such as a transformer's patch.
    """
    height, width = (max(32, round(side * scale)) for side in images.shape[-2:])
    return resize_images(images, round_sides((height, width), multiple))


def round_sides(size_hw: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Height and width rounded to multiples of a number, at least once the number."""
    if multiple == 1:
        return size_hw
    return _round_side(size_hw[0], multiple), _round_side(size_hw[1], multiple)


def _round_side(side: int, multiple: int) -> int:
    if isinstance(side, torch.SymInt):
        # While torch.export traces images of any size: the layers that follow know the number of cells alone,
        # since an expression of the image's side would grow from layer to layer.
        exact = torch.scalar_tensor(side, dtype=torch.float64) / multiple
        cells = cast(int, exact.round().clamp(min=1).long().item())
        torch._check(cells >= 1)  # pyright: ignore[reportPrivateUsage]
        return multiple * cells
    return multiple * max(1, round(side / multiple))


def resize_images(images: Float[Tensor, "B C _H _W"], size_hw: tuple[int, int]) -> Float[Tensor, "B C h w"]:
    """Resize images bilinearly to height and width in pixels, antialiased if a side gets shorter."""
    old_hw = (images.shape[-2], images.shape[-1])
    if any(isinstance(side, torch.SymInt) for side in size_hw):
        # Antialiasing changes nothing where no side gets shorter, which torch.export can't know.
        return F.interpolate(images, size_hw, mode="bilinear", align_corners=False, antialias=True)
    if size_hw == old_hw:
        return images
    smaller = size_hw[0] < old_hw[0] or size_hw[1] < old_hw[1]
    return F.interpolate(images, size_hw, mode="bilinear", align_corners=False, antialias=smaller)


def resize_maps(maps: Float[Tensor, "B C _h _w"], size_hw: tuple[int, int]) -> Float[Tensor, "B C H W"]:
    """Resize maps bilinearly to height and width `size_hw` in pixels, corners not aligned."""
    return F.interpolate(maps, size=size_hw, mode="bilinear", align_corners=False)


def resize_map(label_map: NDArray[Any], image_hw: tuple[int, int]) -> NDArray[Any]:
    """Resize a label map, mask or segment map (h, w) to the image's size (nearest); it keeps its dtype."""
    if label_map.shape == image_hw:
        return label_map
    return resize_label_maps(torch.from_numpy(label_map)[None], image_hw)[0].numpy()


def resize_label_maps(maps: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """`resize_map` for N maps (N, h, w) at once, on their device."""
    if maps.shape[1:] == image_hw:
        return maps
    if not len(maps):
        return maps.new_zeros(0, *image_hw)
    # float32 is exact here, since all labels and ids are below 2**24.
    source = maps.to(torch.uint8 if maps.dtype in (torch.bool, torch.uint8) else torch.float32)
    return F.interpolate(source[:, None], image_hw, mode="nearest-exact")[:, 0].to(maps.dtype)
