"""Classification loss, and the sum of a step's losses (`ops.ssc` and `ops.cpm_loss` have the others)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def classification_loss(
    logits: Float[Tensor, "B C"], image_labels: Float[Tensor, "B C"]
) -> Float[Tensor, ""]:
    """Binary cross-entropy of the image-level labels (0 or 1), averaged over images and classes."""
    return F.binary_cross_entropy_with_logits(logits, image_labels)


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
