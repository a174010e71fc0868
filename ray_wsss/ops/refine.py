"""Refine class maps by what the image shows: cells with like features, pixels with like colours."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ray_wsss.ops.resize import resize_images

MAX_CELLS = 4096
"""Most cells of an image that walk at a time, since each pair of cells has an affinity: 64 MiB."""
DILATIONS = (1, 2, 4, 8)
"""Distances of the neighbours whose colours are compared, in pixels."""


def spread_by_features(
    maps: Float[Tensor, "B M h w"], features: Float[Tensor, "B D h w"], *, steps: int, power: float
) -> Float[Tensor, "B M h w"]:
    """Let activations walk at random between cells whose features are alike (`AffinityNet`, CVPR 2018).

    The affinity of two cells is max(0, cosine of their features) ** power. From the features their mean over
    the image is taken off first, since what all cells share tells none of them apart. A cell gets the mean of
    all cells' activations, weighted by affinity, in every step.

    Args:
        maps: class maps, 0 or more.
        features: the backbone's, of the same cells. More than `MAX_CELLS` cells are merged for the walk.
        steps: length of the walk; 0 changes nothing.
        power: sharpness of the affinity, above 0.
    """
    if not steps:
        return maps
    size_hw = (maps.shape[-2], maps.shape[-1])
    shrink = min(1.0, math.sqrt(MAX_CELLS / math.prod(size_hw)))
    walk_hw = (max(1, int(size_hw[0] * shrink)), max(1, int(size_hw[1] * shrink)))
    centred = features.float() - features.float().mean((2, 3), keepdim=True)
    directions = F.normalize(resize_images(centred, walk_hw).flatten(2), dim=1)
    walking = resize_images(maps.float(), walk_hw).flatten(2)
    spread = torch.stack([_walk(m, d, steps, power) for m, d in zip(walking, directions)])
    return resize_images(spread.unflatten(2, walk_hw), size_hw)


def _walk(maps: Tensor, directions: Tensor, steps: int, power: float) -> Tensor:
    """Walk of the maps (M, N) of one image, whose cells have unit features (D, N)."""
    affinity = (directions.mT @ directions).relu().pow(power)
    affinity.fill_diagonal_(1)  # also for a cell without features
    affinity = affinity / affinity.sum(1, keepdim=True)
    for _ in range(steps):
        maps = maps @ affinity.mT
    return maps


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
