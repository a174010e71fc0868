"""Does what was exported compute what the network computes?"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ray_wsss.data.scenes import make_scene
from ray_wsss.errors import UserError

_TOLERANCE = 1e-3
"""Largest difference, as a share of the largest value of a result."""
_LABELS = 1e-3
"""Largest share of pixels whose label differs: those whose two highest logits are as good as equal."""


def check_images(sizes: Sequence[tuple[int, int, int]]) -> list[Tensor]:
    """Generated scenes, one batch [B, H, W, 3] uint8 for each (B, H, W)."""
    batches = []
    for count, height, width in sizes:
        scenes = [make_scene(k, max(48, height), max(48, width)).image for k in range(count)]
        batches.append(torch.from_numpy(np.stack(scenes)[:, :height, :width].copy()))
    return batches


def largest_difference(
    expected: Callable[[Tensor], Mapping[str, Tensor]],
    found: Callable[[Tensor], Mapping[str, Tensor]],
    batches: Sequence[Tensor],
    name: str,
) -> float:
    """Largest absolute difference of the results of a network and of its exported form.

    Args:
        name: what was exported, for the message.

    Raises:
        UserError: the results differ by more than rounding.
    """
    largest = 0.0
    for images in batches:
        with torch.no_grad():
            ours, theirs = expected(images), found(images)
        for key, value in ours.items():
            other = theirs[key]
            size = " x ".join(map(str, images.shape))
            if value.shape != other.shape or value.dtype != other.dtype:
                raise UserError(
                    f"{key} of the {name} is {other.dtype} {tuple(other.shape)} for images of {size}; "
                    f"expected {value.dtype} {tuple(value.shape)}: nothing was written"
                )
            if value.is_floating_point():
                off, allowed = (value - other).abs().max().item(), _TOLERANCE * value.abs().max().item()
                largest = max(largest, off)
            else:
                off, allowed = (value != other).float().mean().item(), _LABELS
            if not off <= allowed:
                raise UserError(
                    f"{key} of the {name} differs from the network's by {off:.3g} for images of {size}; "
                    f"expected at most {allowed:.3g}: nothing was written"
                )
    return largest
