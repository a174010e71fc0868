"""Measure a SAM with one click per object."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ray_wsss.models.promptable.encoder import SamEncoder
from ray_wsss.models.promptable.interface import PromptableModel
from ray_wsss.ops.regions import inmost
from ray_wsss.pretraining.photos import Photo

LEAST_SHARE = 0.01
"""Objects below this share of their image's pixels are left out."""


@dataclass
class ClickFigures:
    """IoUs of masks from one click at the centre of each object."""

    best_iou: list[float] = field(default_factory=list)
    """IoU of the mask with the highest predicted IoU among outputs 1 to 3."""
    whole: list[float] = field(default_factory=list)
    """IoU of output 3."""
    single: list[float] = field(default_factory=list)
    """IoU of output 0."""
    oracle: list[float] = field(default_factory=list)
    """IoU of the best of outputs 1 to 3."""
    predicted: list[float] = field(default_factory=list)
    """Highest predicted IoU."""

    def extend(self, other: "ClickFigures") -> None:
        """Add the objects of another measurement."""
        for name, values in vars(other).items():
            getattr(self, name).extend(values)

    def as_json(self) -> dict[str, float]:
        """Number of objects, and means."""
        means = {name: round(float(np.mean(values)), 4) for name, values in vars(self).items()}
        return {"objects": len(self.whole)} | means


@torch.no_grad()
def measure_clicks(
    sam: PromptableModel, photos: Sequence[Photo], least_share: float = LEAST_SHARE
) -> ClickFigures:
    """Click on every mask of some photographs that is large enough."""
    figures = ClickFigures()
    encoder = SamEncoder(sam)
    for photo in photos:
        large = np.flatnonzero(photo.areas >= least_share * np.prod(photo.size_hw))
        if not len(large):
            continue
        masks = [photo.mask(int(at)) for at in large]
        clicks = np.array([[inmost(mask)[::-1]] for mask in masks], np.float64)
        points = torch.from_numpy(sam.frame.place_points(clicks, photo.size_hw)).float()
        embeddings = encoder([photo.image])[[0] * len(masks)]
        logits, predicted = sam.decode(embeddings, points, torch.ones(len(masks), 1))
        found = sam.upscale(logits, sam.frame.inner_hw(photo.size_hw), photo.size_hw) > sam.mask_threshold
        for at, mask, answers, scores in zip(large, masks, found.numpy(), predicted.numpy()):
            scored = ~photo.ignored(int(at))
            ious = [(a & mask & scored).sum() / max(((a | mask) & scored).sum(), 1) for a in answers]
            chosen = 1 + int(scores[1:].argmax())
            figures.best_iou.append(ious[chosen])
            figures.whole.append(ious[3])
            figures.single.append(ious[0])
            figures.oracle.append(max(ious[1:]))
            figures.predicted.append(float(scores[chosen]))
    return figures
