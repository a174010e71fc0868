"""Spread class maps to cells with like features."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ray_wsss.ops.resize import resize_images

MAX_CELLS = 4096
"""Most cells of an image that walk at a time, since each pair of cells has an affinity: 64 MiB."""


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
