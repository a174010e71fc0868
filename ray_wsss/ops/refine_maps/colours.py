"""Pull class maps to edges of colour."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

DILATIONS = (1, 2, 4, 8)
"""Distances of the neighbours whose colours are compared, in pixels."""


def refine_by_colour(
    maps: Float[Tensor, "B M H W"], images: Float[Tensor, "B 3 H W"], *, steps: int
) -> Float[Tensor, "B M H W"]:
    """Pixel-adaptive mask refinement (PAMR; Araslanov and Roth, CVPR 2020): pull maps to edges of colour.

    In every step a pixel gets the mean of its neighbours' activations, weighted by the softmax of their
    colours' closeness, -|difference| / (0.1 x the standard deviation around the pixel), averaged over the
    channels. Neighbours are the eight at each of the distances `DILATIONS`; those beyond the border are
    copies of the pixels at it.

    Args:
        images: RGB of the same size as the maps.
        steps: number of steps; 0 changes nothing.
    """
    if not steps:
        return maps
    refined = []
    for image, of_image in zip(images.float(), maps.float()):
        around = _neighbours(image)  # one image at a time, since 32 copies of it are made
        spread = torch.cat([image[None], around]).std(0)
        closeness = -(around - image).abs() / (1e-8 + 0.1 * spread)
        weight = closeness.mean(1, keepdim=True).softmax(0)
        for _ in range(steps):
            of_image = (_neighbours(of_image) * weight).sum(0)
        refined.append(of_image)
    return torch.stack(refined)


def _neighbours(maps: Tensor) -> Tensor:
    """Copies (K, C, H, W) of maps (C, H, W), each moved by one of the distances in one of 8 directions."""
    height, width = maps.shape[-2:]
    reach = max(DILATIONS)
    padded = F.pad(maps[None], (reach,) * 4, mode="replicate")[0]
    moves = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    return torch.stack(
        [
            padded[:, top : top + height, left : left + width]
            for dilation in DILATIONS
            for top, left in ((reach + dilation * y, reach + dilation * x) for y, x in moves)
        ]
    )
