"""Losses of a promptable segmenter: SAM's, and one for the whole object."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

FOCAL_WEIGHT = 10.0
KNOWN_WEIGHT = 0.5
ALTERNATIVE_WEIGHT = 0.3
"""Weight of the outputs 1 and 2 where the target is a whole object, which output 3 learns."""
SINGLE_WEIGHT = 0.5
IOU_WEIGHT = 2.0


def mask_losses(logits: Float[Tensor, "N K H W"], targets: Float[Tensor, "N 1 H W"]) -> Float[Tensor, "N K"]:
    """Focal loss (gamma 2) and dice loss of each mask, weighted 10 to 1."""
    targets = targets.expand_as(logits)
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    focal = (entropy * (probability - targets).square()).mean((2, 3))
    overlap = (probability * targets).sum((2, 3))
    dice = 1 - (2 * overlap + 1) / (probability.sum((2, 3)) + targets.sum((2, 3)) + 1)
    return FOCAL_WEIGHT * focal + dice


@torch.no_grad()
def reached_iou(logits: Float[Tensor, "N K H W"], targets: Float[Tensor, "N #K H W"]) -> Float[Tensor, "N K"]:
    """IoU of each mask with its target."""
    masks, truth = logits > 0, targets > 0.5
    return (masks & truth).sum((2, 3)) / (masks | truth).sum((2, 3)).clamp(min=1)


def prompt_loss(
    logits: Float[Tensor, "N 4 H W"],
    predicted_iou: Float[Tensor, "N 4"],
    targets: Float[Tensor, "N H W"],
    wholes: Float[Tensor, "N H W"],
    whole_weights: Float[Tensor, " N"],
) -> tuple[Tensor, dict[str, float]]:
    """Loss of a batch of prompts, and its parts as numbers.

    Output 3 learns the whole object around the prompt. Of the outputs 1 and 2, only the better one learns
    from a target, as in SAM's training, so that each may give another answer to an ambiguous click. Output 0
    always learns. The predicted IoUs learn the IoUs reached.

    Args:
        wholes: whole object around each prompt.
        whole_weights: 1 where that is the target, `KNOWN_WEIGHT` where it is another mask, 0 where it is
            unknown.
    """
    each = mask_losses(logits, targets[:, None])
    whole = mask_losses(logits[:, 3:], wholes[:, None])[:, 0]
    part = each[:, 1:3].min(1).values
    part_weights = torch.where(whole_weights == 1, ALTERNATIVE_WEIGHT, 1.0)
    iou = reached_iou(logits, targets[:, None])
    off = (predicted_iou - iou).square()
    loss = (
        part_weights * part + whole_weights * whole + SINGLE_WEIGHT * each[:, 0] + IOU_WEIGHT * off.sum(1) / 2
    )
    chosen = 1 + predicted_iou[:, 1:].argmax(1, keepdim=True)
    parts = {
        "part": part.mean().item(),
        "single": each[:, 0].mean().item(),
        "iou_error": off.mean().sqrt().item(),
        "iou_of_chosen": iou.gather(1, chosen).mean().item(),
        "iou_of_best": iou[:, 1:].max(1).values.mean().item(),
    }
    return loss.mean(), parts
