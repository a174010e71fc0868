"""Loss of CPM (CAM-based Prompting Module): the CAM against the pseudo label that SAM's masks make."""

import math

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn import functional as F


def cpm_loss(
    cam: Float[Tensor, "B C H W"],
    pseudo_label: Integer[Tensor, "B H W"],
    temperature: float = 1.0,
    *,
    other_classes: int = 0,
    ignore: int = 255,
) -> Float[Tensor, ""]:
    """Cross-entropy of the CAM against the pseudo label (S2C).

    A class's logit is its CAM value, in [0, 1]; the background's logit is 1 - max_c cam_c (released code).
    Background comes first here, so that a logit's index is its stored label.

    The released code has no temperature. At 1 the loss never saturates: a correct background pixel pushes
    as hard as a wrong one, and the easiest way to push all of them down is to raise the maximum that the CAM
    is divided by. The network then learns small objects on large backgrounds slowly. Below 1, correct pixels
    stop pushing.

    Args:
        cam: CAM in [0, 1], zero for absent classes.
        pseudo_label: 0 = background, class c as c + 1, or ``ignore``.
        temperature: divides the logits; more than 0 (released code: 1).
        other_classes: number of classes that no image has. The loss counts them as CAMs of zero, without
            making these.
        ignore: label of pixels that are left out.

    Returns:
        Mean over the pixels that are not ignored; if all are ignored, a 0 that still has a graph. On a CPU,
        torch raises IndexError for a label above C that is not ``ignore``.
    """
    # amax shares the gradient between equal classes, so the loss does not depend on the order of classes.
    background = 1 - cam.amax(dim=1, keepdim=True)
    logits = torch.cat([background, cam], dim=1) / temperature
    if other_classes:
        # To the softmax, n logits of 0 are one of log n.
        others = torch.full_like(logits[:, :1], math.log(other_classes))
        logits = torch.cat([logits, others], dim=1)
    total = F.cross_entropy(logits, pseudo_label.long(), ignore_index=ignore, reduction="sum")
    # reduction="mean" would be 0 / 0 if every pixel is ignored.
    return total / (pseudo_label != ignore).sum().clamp(min=1)
