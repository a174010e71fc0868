"""The contest of classes for the pixels of large images: labels and masks within a budget of memory."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ray_wsss.config import PromptingConfig
from ray_wsss.models.promptable.interface import PromptableModel
from ray_wsss.ops.pseudo_label import LabelContest, stability_score
from ray_wsss.ops.resize import slices_of
from ray_wsss.stages.cams import PairCams
from ray_wsss.stages.point_prompts import PairMasks, score_pairs, upscale_masks


@dataclass(frozen=True, eq=False)
class Contest:
    """Results of a group of B images of one size, with N (image, class) pairs, on the device."""

    labels: Tensor
    """(B, h, w) pseudo labels, uint8 or int32 by `label_format`: 0 background, class c as c + 1."""
    masks: Tensor
    """(N, h, w) bool, SAM's mask of each pair, before classes compete."""
    scores: Tensor
    """(N, 3), per pair: SAM's predicted IoU, stability score, mean CAM over the mask."""


def hold_contest(
    sam: PromptableModel,
    cams: PairCams,
    masks: PairMasks,
    num_images: int,
    config: PromptingConfig,
    max_pixels: int,
) -> Contest:
    """The labels and masks of `point_prompts.aggregate`, and scores, from a few pairs at a time.

    All maps of floats together have ``max_pixels`` pixels per kind at a time, or those of one pair. What
    stays are bytes: a mask for each pair, and a label for each image.

    Args:
        cams: ``image_index`` counts within the group; the classes of an image ascend, as from `find_cams`.
        num_images: B.
        max_pixels: most pixels of pairs in memory as floats, also counted in SAM's frame.
    """
    image_hw = (cams.cam.shape[-2], cams.cam.shape[-1])
    frame_hw = sam.frame.inner_hw(image_hw)
    of_pair = max(image_hw[0] * image_hw[1], frame_hw[0] * frame_hw[1])
    contest = LabelContest(num_images, image_hw, cams.cam, cams.num_classes)
    covered = torch.zeros_like(cams.cam, dtype=torch.bool)
    scores = cams.cam.new_zeros(len(covered), 3)
    for part in slices_of(len(covered), of_pair, max_pixels):
        some, some_masks = cams.part(part), masks.part(part)
        logits = upscale_masks(sam, some, some_masks)
        scores[part, 0], scores[part, 1] = some_masks.predicted_iou, stability_score(logits)
        of_pixels, covered[part] = score_pairs(logits, some_masks.predicted_iou, some, config)
        contest.add(of_pixels, some.image_index, some.class_index)
        inside = covered[part]
        scores[part, 2] = (some.cam * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
    return Contest(contest.labels, covered, scores)
