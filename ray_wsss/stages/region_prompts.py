"""Prompt SAM with boxes or masks made of CAMs, which the paper argues against."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ray_wsss.config import LabelConfig
from ray_wsss.models.promptable.interface import Embeddings, PromptableModel
from ray_wsss.ops.regions import box_around, peak_regions
from ray_wsss.stages.cams import PairCams
from ray_wsss.stages.point_prompts import PairMasks, masks_for_labels, no_masks

_SURE = 10.0
"""Logit of a mask prompt inside the mask, and minus the logit outside: SAM's mask prompts are logits."""


def decode_regions(
    sam: PromptableModel,
    embeddings: Embeddings,
    cams: Sequence[PairCams],
    points_yx: Sequence[list[Tensor]],
    config: LabelConfig,
    batch_size: int,
) -> list[PairMasks]:
    """SAM's mask of every pair, like `point_prompts.decode_pairs`, but prompted with boxes or masks.

    `LabelConfig.prompts` names the kind of prompt. If a pair has several boxes, its mask has the highest
    logit of their masks at each pixel, and the mean of their predicted IoUs.
    """
    prompts: list[NDArray[np.float32]] = []
    pair_of: list[int] = []
    ends = [0]
    for group, group_points in zip(cams, points_yx):
        frame_hw = sam.frame.inner_hw((group.cam.shape[-2], group.cam.shape[-1]))
        for pair, (cam, points) in enumerate(zip(group.cam.cpu().numpy(), group_points), start=ends[-1]):
            if len(points):
                regions = peak_regions(cam, points.cpu().numpy(), config.tau)
                made = _make_prompts(sam, regions, config.prompts, frame_hw)
                prompts += made
                pair_of += [pair] * len(made)
        ends.append(ends[-1] + len(group_points))
    image_of = torch.cat([group.image_index for group in cams])
    logits, predicted_iou = no_masks(sam, embeddings, ends[-1])
    for start in range(0, len(prompts), batch_size):
        batch = torch.from_numpy(np.stack(prompts[start : start + batch_size])).to(logits)
        pairs = torch.tensor(pair_of[start : start + batch_size])
        kind = "mask_logits" if config.prompts == "mask" else "boxes_xyxy"
        images = image_of[pairs].to(embeddings.device)
        found = sam.decode(embeddings[images], **{kind: batch})
        masks, iou = masks_for_labels(sam, *found, config)
        for pair, mask in zip(pairs.tolist(), masks):
            torch.maximum(logits[pair], mask, out=logits[pair])
        predicted_iou.index_add_(0, pairs.to(iou.device), iou)
    counts = torch.bincount(torch.tensor(pair_of, dtype=torch.long), minlength=ends[-1]).clamp(min=1)
    predicted_iou /= counts.to(predicted_iou)
    return [
        PairMasks(logits[start:end], predicted_iou[start:end], list(group))
        for start, end, group in zip(ends, ends[1:], points_yx)
    ]


def _make_prompts(
    sam: PromptableModel, regions: NDArray[np.int32], kind: str, frame_hw: tuple[int, int]
) -> list[NDArray[np.float32]]:
    """Prompts of a pair: boxes (4,) in SAM's frame (left, top, right, bottom), or a mask (1, 4h, 4w)."""
    if kind == "mask":
        return [_mask_logits(sam, regions > 0, frame_hw)]
    covered = [regions > 0] if kind == "box" else [regions == k for k in range(1, regions.max() + 1)]
    to_frame = np.array(frame_hw)[[1, 0, 1, 0]] / np.array(regions.shape)[[1, 0, 1, 0]]
    return [(np.array(box_around(region)) * to_frame).astype(np.float32) for region in covered]


def _mask_logits(
    sam: PromptableModel, inside: NDArray[np.bool_], frame_hw: tuple[int, int]
) -> NDArray[np.float32]:
    """Logits (1, 4h, 4w) of a mask of the image, as SAM's decoder outputs them; padding is outside."""
    side, low = sam.frame.side_px, (sam.mask_side_px, sam.mask_side_px)
    signs = torch.from_numpy(np.where(inside, 1.0, -1.0).astype(np.float32))[None, None]
    frame = F.interpolate(signs, frame_hw, mode="bilinear", align_corners=False)
    square = F.pad(frame, (0, side - frame_hw[1], 0, side - frame_hw[0]), value=-1.0)
    return (_SURE * F.interpolate(square, low, mode="area"))[0].numpy()
