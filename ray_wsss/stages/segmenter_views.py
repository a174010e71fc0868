"""Views of an image, or of a batch of them, as a segmenter sees them: scaled, mirrored."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from ray_wsss.ops.resize import resize_maps


@dataclass(frozen=True, eq=False)
class View:
    """Logits (B, K, h, w) of the head's cells, for one view of the images."""

    logits: Tensor
    mirrored: bool

    def of_image(self, index: int) -> "View":
        return replace(self, logits=self.logits[index : index + 1])

    def resized(self, labels: slice, size_hw: tuple[int, int]) -> Tensor:
        """Logits of some labels at the images' size, not mirrored.

        They are resized directly from the head's cells, not first to the view's own size, which may be
        larger.
        """
        maps = resize_maps(self.logits[:, labels], size_hw)
        return maps.flip(-1) if self.mirrored else maps

    def denominator(self, size_hw: tuple[int, int], parts: Sequence[slice]) -> tuple[Tensor, Tensor]:
        """Highest logit of each pixel, and the sum of exp(logit - highest) over all labels."""
        tops = [self.resized(part, size_hw).amax(1, keepdim=True) for part in parts]
        top = reduce(torch.maximum, tops)
        sums = [self.resized(part, size_hw).sub_(top).exp_().sum(1, keepdim=True) for part in parts]
        return top, reduce(torch.add, sums)


def sum_up(
    views: Sequence[View],
    denominators: Sequence[tuple[Tensor, Tensor]],
    labels: slice,
    size_hw: tuple[int, int],
) -> Tensor:
    """Scores (1, k, h, w) of some labels: logits of the only view, or summed probabilities of several."""
    total = views[0].resized(labels, size_hw)
    for k, (view, (top, summed)) in enumerate(zip(views, denominators)):
        # In place: with many labels, a copy is large.
        probability = (view.resized(labels, size_hw) if k else total).sub_(top).exp_().div_(summed)
        total = total.add_(probability) if k else probability
    return total
