"""Batches of prompts of one shape, of many images and classes; points in SAM's frame."""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PromptSets:
    """N prompt sets of P positive points each: a set prompts for one class of one image and gives one mask.

    Sets are batched by their number of points, because filling up with SAM's padding label (-1) changes the
    mask. Reading that number makes the host wait for a GPU; `pad_points` avoids this by filling up with
    points that the decoder then masks.
    """

    image_index: Int[Tensor, " N"]
    """Image of each set, an index into the batch."""
    class_index: Int[Tensor, " N"]
    """Class of each set, from 0; background is not a class."""
    points_yx: Int[Tensor, "N P 2"]
    """Points in pixels of the CAM, y before x."""


def batch_by_shape(shapes: Sequence[Hashable], batch_size: int) -> Iterator[list[int]]:
    """Batches of indices with equal shapes, at most ``batch_size`` in each; shapes in order of appearance."""
    members: dict[Hashable, list[int]] = defaultdict(list)
    for index, shape in enumerate(shapes):
        members[shape].append(index)
    for chosen in members.values():
        yield from (chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size))


def bucket_by_count(peak_mask: Bool[Tensor, "B C H W"]) -> list[PromptSets]:
    """Gather the peaks of each (image, class) into one prompt set, and batch sets of equal length.

    Returns:
        One PromptSets per distinct number of points, ascending. Its sets are ordered by (image, class), the
        points within a set row-major. A class without a peak has no set.
    """
    num_classes = peak_mask.shape[1]
    points = peak_mask.nonzero()
    image_and_class = points[:, 0] * num_classes + points[:, 1]
    set_ids, counts = image_and_class.unique_consecutive(return_counts=True)
    count_of_point = counts.repeat_interleave(counts)
    buckets: list[PromptSets] = []
    for count in counts.unique().tolist():
        ids = set_ids[counts == count]
        buckets.append(
            PromptSets(
                image_index=ids // num_classes,
                class_index=ids % num_classes,
                points_yx=points[count_of_point == count, 2:].view(-1, count, 2),
            )
        )
    return buckets


def pad_points(
    peak_mask: Bool[Tensor, "N H W"], width: int
) -> tuple[Int[Tensor, "N K 2"], Bool[Tensor, "N K"]]:
    """Gather each map's peaks, row-major, and fill up to `width` = K points; the host never waits for a GPU.

    Args:
        peak_mask: True at peaks; of more than `width` peaks in a map, the first in row-major order stay.

    Returns:
        points_yx: pixels, y before x; (0, 0) for a point that only fills up.
        valid: True for peaks, False for points that only fill up. Peaks come first.
    """
    flat = peak_mask.flatten(1)
    place = flat.cumsum(1, dtype=torch.int32) - 1
    # Other pixels and surplus peaks go to an extra slot at the end, which is cut off.
    place = place.masked_fill_(~flat, width).clamp_(max=width)
    pixels = torch.arange(flat.shape[1], device=flat.device).expand_as(flat)
    at = pixels.new_zeros(len(flat), width + 1).scatter_(1, place.long(), pixels)[:, :width]
    valid = torch.arange(width, device=flat.device) < flat.sum(1, keepdim=True)
    at = at.masked_fill(~valid, 0)
    return torch.stack([at // peak_mask.shape[2], at % peak_mask.shape[2]], dim=2), valid


def points_to_sam_frame(
    points_yx: Int[Tensor, "N P 2"], cam_hw: tuple[int, int], sam_input_hw: tuple[int, int]
) -> Float[Tensor, "N P 2"]:
    """Map CAM pixels to the frame of the resized image that SAM's encoder sees.

    Multiplies each axis by new size / old size, as segment_anything's `ResizeLongestSide.apply_coords` does.
    Its `PromptEncoder` adds the half pixel to the pixel's centre.

    Args:
        points_yx: pixels of the CAM, y before x.
        cam_hw: height and width of the CAM, which covers the whole image.
        sam_input_hw: height and width of the resized image, before SAM pads it to a square.

    Returns:
        float32 points, x before y, in pixels of SAM's input.
    """
    y, x = points_yx.float().unbind(-1)
    # With a tensor of factors, the host would wait for its copy to the device.
    return torch.stack([x * (sam_input_hw[1] / cam_hw[1]), y * (sam_input_hw[0] / cam_hw[0])], dim=-1)
