"""Losses of the classifier: classification, CPM, and the weighted sum of a step (SSC is in `ops.ssc`)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn import functional as F

IGNORE_LABEL = 255
"""Label of pixels that losses leave out: no truth, or padding."""


def classification_loss(
    logits: Float[Tensor, "B C"], image_labels: Float[Tensor, "B C"]
) -> Float[Tensor, ""]:
    """Binary cross-entropy of the image-level labels (0 or 1), averaged over images and classes."""
    return F.binary_cross_entropy_with_logits(logits, image_labels)


def cpm_loss(
    cam: Float[Tensor, "B C H W"], pseudo_label: Integer[Tensor, "B H W"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """Cross-entropy of the CAM against the pseudo label (CPM: S2C's CAM-based Prompting Module).

    A class's logit is its CAM value, in [0, 1]; the background's logit is 1 - max_c cam_c (released code).
    Background comes first here, so that a logit's index is its stored label.

    The released code has no temperature. At 1 the loss never saturates: a correct background pixel pushes
    as hard as a wrong one, and the easiest way to push all of them down is to raise the maximum that the CAM
    is divided by. The network then learns small objects on large backgrounds slowly. Below 1, correct pixels
    stop pushing.

    Args:
        cam: CAM in [0, 1], zero for absent classes.
        pseudo_label: 0 = background, class c as c + 1, 255 = ignore.
        temperature: divides the logits; more than 0 (released code: 1).

    Returns:
        Mean over the pixels that are not ignored; if all are ignored, a 0 that still has a graph. On a CPU,
        torch raises IndexError for a label above C that is not 255.
    """
    # amax shares the gradient between equal classes, so the loss does not depend on the order of classes.
    background = 1 - cam.amax(dim=1, keepdim=True)
    logits = torch.cat([background, cam], dim=1) / temperature
    total = F.cross_entropy(logits, pseudo_label.long(), ignore_index=IGNORE_LABEL, reduction="sum")
    # reduction="mean" would be 0 / 0 if every pixel is ignored.
    return total / (pseudo_label != IGNORE_LABEL).sum().clamp(min=1)


@dataclass(frozen=True, eq=False)
class StepLosses:
    """Loss parts of one training step, each a scalar; a part that is off (warm-up, ablation) is None."""

    cls: Float[Tensor, ""]
    """Classification loss."""
    ssc: Float[Tensor, ""] | None
    """SAM-Segment Contrasting (SSC) loss."""
    cpm: Float[Tensor, ""] | None
    """CAM-based Prompting Module (CPM) loss."""

    def parts(self) -> dict[str, Tensor]:
        """The parts that are on, by name, in the order cls, ssc, cpm."""
        named = {"cls": self.cls, "ssc": self.ssc, "cpm": self.cpm}
        return {name: part for name, part in named.items() if part is not None}

    def total(self, weights: Mapping[str, float]) -> Float[Tensor, ""]:
        """Weighted sum of the parts that are on; ``weights`` has a factor for each part (S2C: all 1)."""
        terms = [weights[name] * part for name, part in self.parts().items()]
        return torch.stack(terms).sum()
