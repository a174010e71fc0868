"""Point prompts for SAM, batched over images and classes."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PromptSets:
    """N prompt sets of P positive points each: one set is one class of one image and gives one mask.

    Sets are batched by their number of points, since filling up with SAM's padding label (-1) changes the
    mask.
    """

    image_index: Int[Tensor, " N"]
    """Image of the set, an index into the batch."""
    class_index: Int[Tensor, " N"]
    """Class of the set, from 0; background is no class."""
    points_yx: Int[Tensor, "N P 2"]
    """Points in pixels of the CAM, y before x."""


def bucket_by_count(peak_mask: Bool[Tensor, "B C H W"]) -> list[PromptSets]:
    """Gather the peaks of each (image, class) into a prompt set, and batch sets of equal length.

    Returns:
        One PromptSets per distinct number of points, ascending. Its sets are ordered by (image, class), the
        points of a set row-major. A class without a peak has no set.
    """
    num_classes = peak_mask.shape[1]
    points = peak_mask.nonzero()
    image_and_class = points[:, 0] * num_classes + points[:, 1]
    set_ids, counts = image_and_class.unique_consecutive(return_counts=True)
    count_of_point = counts.repeat_interleave(counts)
    buckets = []
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


def points_to_sam_frame(
    points_yx: Int[Tensor, "N P 2"], cam_hw: tuple[int, int], sam_input_hw: tuple[int, int]
) -> Float[Tensor, "N P 2"]:
    """Map CAM pixels to the frame of the resized image that SAM's encoder sees.

    Multiplies by new / old per axis and no more, as segment_anything's `ResizeLongestSide.apply_coords`
    does; the half pixel to the pixel's centre is added by its `PromptEncoder`.

    Args:
        points_yx: pixels of the CAM, y before x.
        cam_hw: size of the CAM, which covers the image.
        sam_input_hw: size of the resized image, before SAM pads it to a square.

    Returns:
        float32 points, x before y, in pixels of SAM's input.
    """
    scale_xy = [sam_input_hw[1] / cam_hw[1], sam_input_hw[0] / cam_hw[0]]
    return points_yx.flip(-1).float() * torch.tensor(scale_xy, device=points_yx.device)
