"""Turn overlapping masks into one segment map, in which each pixel belongs to at most one mask."""

from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor

MAX_SEGMENTS = 65_535
"""Most segments of an image: segment maps are stored with 16 bits per pixel, and 0 is uncovered."""

Overlap = Literal["smallest_area", "highest_iou"]


def rank_masks(
    rule: Overlap, areas: Int[Tensor, " K"], predicted_iou: Float[Tensor, " K"]
) -> Int[Tensor, " K"]:
    """Rank masks by their claim to shared pixels, 0 for the strongest: a permutation of 0 .. K - 1.

    Args:
        rule: "smallest_area" (paper) or "highest_iou" (equivalent to the released code's order of painting).
            Of equal masks, the earlier is the stronger.
        areas: pixels of each whole mask, including those that stronger masks take.
        predicted_iou: SAM's own estimate of each mask's IoU.
    """
    key = areas if rule == "smallest_area" else -predicted_iou
    return key.argsort(stable=True).argsort()


def paint_segments(
    slices: Iterable[Bool[Tensor, "k H W"]], ranks: Int[Tensor, " K"], image_hw: tuple[int, int]
) -> tuple[Int32[Tensor, "H W"], Int[Tensor, " N"]]:
    """Give each pixel to the strongest mask that covers it.

    Holds one slice of the masks at a time.

    Args:
        slices: the masks in order, any number per slice.
        ranks: rank of each mask, from `rank_masks`.
        image_hw: height and width of the masks, in pixels.

    Returns:
        segments: ids 1 .. N, ascending in the order of the masks; 0 = uncovered.
        mask_index: mask of each segment: id n is mask ``mask_index[n - 1]``. Empty and fully hidden masks
            have no id.

    Raises:
        ValueError: more than `MAX_SEGMENTS` masks are visible, or the numbers of masks and ranks differ.
    """
    count = len(ranks)
    best = torch.full(image_hw, count, dtype=torch.int32, device=ranks.device)
    strengths = ranks.tolist()
    painted = 0
    for masks in slices:
        for mask, rank in zip(masks, strengths[painted:]):
            best.masked_fill_(mask & (best > rank), rank)
        painted += len(masks)
    if painted != count:
        raise ValueError(f"slices hold {painted} masks; expected {count}, one per rank")
    # Uncovered pixels have rank `count`, which becomes mask `count`: none.
    mask_of_rank = torch.cat([ranks.argsort(), ranks.new_tensor([count])])
    return number_segments(mask_of_rank[best.long()], count)


def number_segments(
    winners: Int[Tensor, "H W"], num_masks: int
) -> tuple[Int32[Tensor, "H W"], Int[Tensor, " N"]]:
    """Number the masks that own at least one pixel 1 .. N.

    Args:
        winners: mask that owns each pixel, in 0 .. num_masks - 1; num_masks = no mask.

    Returns:
        ``segments`` and ``mask_index`` of `paint_segments`.

    Raises:
        ValueError: N is more than `MAX_SEGMENTS`.
    """
    visible = torch.zeros(num_masks + 1, dtype=torch.bool, device=winners.device)
    visible[winners.flatten()] = True
    visible[num_masks] = False
    mask_index = visible.nonzero()[:, 0]
    if len(mask_index) > MAX_SEGMENTS:
        raise ValueError(f"image has {len(mask_index)} segments; expected at most {MAX_SEGMENTS}")
    ids = (visible.cumsum(0) * visible).int()
    return ids[winners], mask_index
