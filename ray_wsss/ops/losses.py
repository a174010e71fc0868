"""Losses of one training step, and their parts by name."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn import functional as F

IGNORE_LABEL = 255


def classification_loss(
    logits: Float[Tensor, "B C"], image_labels: Float[Tensor, "B C"]
) -> Float[Tensor, ""]:
    """Binary cross-entropy of the image-level labels (0 or 1), mean over images and classes."""
    return F.binary_cross_entropy_with_logits(logits, image_labels)


def cpm_loss(
    cam: Float[Tensor, "B C H W"], pseudo_label: Integer[Tensor, "B H W"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """Cross-entropy of the CAM against the pseudo label (S2C's CAM-based Prompting Module).

    The logits are the CAM values themselves, in [0, 1], and 1 - max_c cam_c for background (released code).
    Background comes first here, so that a logit's index is its stored label.

    The released code has no temperature. At 1 the loss never saturates: a background pixel that is right
    pushes as hard as one that is wrong, and pushing all of them down is easiest by raising the maximum that
    the CAM is divided by. Small objects on much background are then learned slowly; below 1 the pixels that
    are right fall silent.

    Args:
        cam: CAM in [0, 1], zero for absent classes.
        pseudo_label: 0 = background, class c as c + 1, 255 = ignore.
        temperature: divides the logits; more than 0, 1 is the released code.

    Returns:
        Mean over the pixels that are not ignored; 0, still with a graph, where all are. On a CPU a label
        above C raises IndexError (torch).
    """
    # amax shares the gradient between equal classes: the loss does not depend on the order of classes.
    background = 1 - cam.amax(dim=1, keepdim=True)
    logits = torch.cat([background, cam], dim=1) / temperature
    total = F.cross_entropy(logits, pseudo_label.long(), ignore_index=IGNORE_LABEL, reduction="sum")
    # Not reduction="mean": that is 0 / 0 where every pixel is ignored.
    return total / (pseudo_label != IGNORE_LABEL).sum().clamp(min=1)


@dataclass(frozen=True, eq=False)
class StepLosses:
    """Parts of one step's loss, each a scalar; None for a part that is off (warm-up, ablation)."""

    cls: Float[Tensor, ""]
    """Classification."""
    ssc: Float[Tensor, ""] | None
    """SAM-Segment Contrasting."""
    cpm: Float[Tensor, ""] | None
    """CAM-based Prompting Module."""

    def parts(self) -> dict[str, Tensor]:
        """The parts that are on, by name, in the order cls, ssc, cpm."""
        named = {"cls": self.cls, "ssc": self.ssc, "cpm": self.cpm}
        return {name: part for name, part in named.items() if part is not None}

    def total(self, weights: Mapping[str, float]) -> Float[Tensor, ""]:
        """Weighted sum of the parts that are on; ``weights`` has a factor for each part (S2C: all 1)."""
        terms = [weights[name] * part for name, part in self.parts().items()]
        return torch.stack(terms).sum()
