"""Measure how many objects segment-everything finds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean

import numpy as np
import torch
from torch.nn import functional as F

from ray_wsss.config import SegmentsConfig
from ray_wsss.models.promptable.encoder import SamEncoder
from ray_wsss.models.promptable.everything import find_masks, masks_at_image_size
from ray_wsss.models.promptable.interface import PromptableModel
from ray_wsss.ops.resize import working_hw
from ray_wsss.pretraining.photos import Photo

_POINTS_PER_PASS = 64


@dataclass
class FoundObjects:
    """What segment-everything found of annotated objects."""

    ious: list[float] = field(default_factory=list)
    """For each object the highest IoU of a mask; 0 without any mask."""
    masks: list[int] = field(default_factory=list)
    """Number of masks of each photograph."""

    def as_json(self) -> dict[str, float]:
        """Numbers, and shares of the objects that a mask fits by half, and by three quarters."""
        shares = {f"recall_{iou}": mean(i >= iou for i in self.ious) for iou in (0.5, 0.75)}
        figures = shares | {"mean_iou": mean(self.ious), "masks": mean(self.masks)}
        counts = {"photographs": len(self.masks), "objects": len(self.ious)}
        return counts | {name: round(value, 3) for name, value in figures.items()}


@torch.no_grad()
def measure_everything(
    sam: PromptableModel, photos: Sequence[Photo], config: SegmentsConfig, least_share: float
) -> FoundObjects:
    """Prompt with a grid of points on each photograph, and look for each object among the masks.

    Args:
        config: grid and thresholds that suit the model (`SegmentsConfig.suiting`), and the working size.
        least_share: share of the photograph's pixels below which an object is left out.
    """
    encoder, found = SamEncoder(sam), FoundObjects()
    for photo in photos:
        size_hw = working_hw(photo.size_hw, config.max_side_px)
        embeddings = encoder([photo.image])
        (masks,) = find_masks(sam, embeddings, [size_hw], config, decode_batch_size=_POINTS_PER_PASS)
        found.masks.append(len(masks.areas))
        objects = _objects(photo, size_hw, least_share)
        ious = [
            _ious(part.flatten(1).float(), objects)
            for part in masks_at_image_size(sam, masks, size_hw, config.max_pixels_per_pass)
            if len(part)
        ]
        best = torch.cat(ious).amax(0) if ious else torch.zeros(len(objects))
        found.ious += best.tolist()
    return found


def _objects(photo: Photo, size_hw: tuple[int, int], least_share: float) -> torch.Tensor:
    """Masks (M, H * W) of the large enough objects at working size, 0 or 1."""
    large = np.flatnonzero(photo.areas >= least_share * np.prod(photo.size_hw))
    if not len(large):
        return torch.zeros(0, size_hw[0] * size_hw[1])
    masks = torch.from_numpy(np.stack([photo.mask(int(at)) for at in large])).float()
    return F.interpolate(masks[None], size_hw, mode="nearest-exact")[0].flatten(1)


def _ious(masks: torch.Tensor, objects: torch.Tensor) -> torch.Tensor:
    """IoU (K, M) of each of K masks (K, P) with each of M objects (M, P), all 0 or 1."""
    both = masks @ objects.T
    return both / (masks.sum(1)[:, None] + objects.sum(1)[None] - both).clamp(min=1)
